"""Foreign referees of our walk over tables that no kernel would make: any rights at any level, pages of three sizes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from kerneld.hw.paging import (
    PGD_SHIFT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_PSE,
    PTE_RW,
    PTE_SPECIAL,
    PTE_USER,
    PUD_SHIFT,
    make_pte,
    table_index,
)
from kerneld.hw.ram import WORDS_SHIFT, Ram
from shared.uapi.page import PAGE_SHIFT, PMD_SHIFT
from tests.foreign.agreement import judge
from tests.foreign.walker import Walker

ADDRESSES = 5000
RAM_BYTES = 1 << 30
"""One page of the largest size; the memory file is sparse."""
_TABLES_A_LEVEL = (1, 6, 16, 40)
_ENTRIES_A_TABLE = (24, 48, 200, 400)
_SHIFTS = (PGD_SHIFT, PUD_SHIFT, PMD_SHIFT, PAGE_SHIFT)
_PAT_LARGE = 1 << 12
_SET_EARLY = (PTE_ACCESSED, PTE_ACCESSED, 0, 0)
"""Accessed bits, by level, that are set beforehand. In a table's entry they are in Linux, and our walk does not look.
In a page's entry of the PUD, Unicorn sets the bit before it has checked the rights, so also where it faults."""


class Tables:
    """Random tables; `slots` are the addresses, by level, whose entries are not empty."""

    def __init__(self, ram: Ram, seed: int) -> None:
        self.rng = random.Random(seed)
        self.levels: list[list[int]] = []
        pfn = 2
        for count in _TABLES_A_LEVEL:
            self.levels.append(list(range(pfn, pfn + count)))
            pfn += count
        self.used: dict[int, list[int]] = {}
        for level, tables in enumerate(self.levels):
            for table in tables:
                self._fill(ram, level, table)
        self.cr3 = self.levels[0][0] << PAGE_SHIFT

    def _fill(self, ram: Ram, level: int, table: int) -> None:
        """The upper half of the root stays empty: it is not user space."""
        self.used[table] = self.rng.sample(range(512 if level else 256), _ENTRIES_A_TABLE[level])
        for index in self.used[table]:
            ram.words[table << WORDS_SHIFT | index] = self._entry(level)

    def _entry(self, level: int) -> int:
        rng = self.rng
        if rng.random() < 0.08:
            return rng.choice([rng.getrandbits(63) << 1, make_pte(rng.getrandbits(17), PTE_PROTNONE | PTE_NX)])
        bits = PTE_PRESENT | rng.choice([0, PTE_SPECIAL])
        bits |= sum(bit for bit, share in ((PTE_RW, 0.85), (PTE_USER, 0.93)) if rng.random() < share)
        bits |= PTE_NX if rng.random() < 0.1 else 0
        if level < 3 and not (level and rng.random() < 0.3):
            return make_pte(rng.choice(self.levels[level + 1]), bits | PTE_ACCESSED)
        bits |= rng.choice([_SET_EARLY[level], PTE_ACCESSED]) | rng.choice([0, PTE_DIRTY])
        if level < 3:
            small_pages = 1 << _SHIFTS[level] - PAGE_SHIFT
            pfn = rng.randrange(RAM_BYTES >> PAGE_SHIFT) & -small_pages
            return make_pte(pfn, bits | PTE_PSE) | rng.choice([0, _PAT_LARGE])
        return make_pte(rng.randrange(RAM_BYTES >> PAGE_SHIFT), bits | rng.choice([0, PTE_PSE]))

    def addresses(self, ram: Ram, count: int) -> list[int]:
        """Return addresses, most of which come down to a last entry that is not empty."""
        chosen: set[int] = set()
        while len(chosen) < count:
            vaddr, table = 0, self.levels[0][0]
            for level, shift in enumerate(_SHIFTS):
                empty = self.rng.random() < 0.03
                index = self.rng.randrange(512 if level else 256) if empty else self.rng.choice(self.used[table])
                vaddr |= index << shift
                entry = ram.words[table << WORDS_SHIFT | index]
                table = entry >> PAGE_SHIFT & 0xFFFF
                if table not in self.used or entry & PTE_PSE:
                    vaddr |= self.rng.randrange(1 << shift)
                    break
            chosen.add(vaddr)
        return sorted(chosen)


@pytest.fixture
def ram() -> Iterator[Ram]:
    made = Ram(RAM_BYTES)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(4))
def test_any_tables(ram: Ram, seed: int) -> None:
    tables = Tables(ram, seed)
    addresses = tables.addresses(ram, ADDRESSES)
    fd = ram.open_readonly()
    try:
        verdicts = judge(fd, RAM_BYTES, tables.cr3, addresses)
    finally:
        os.close(fd)
    faults = (verdicts < 0).mean(axis=0)
    assert ((faults > 0.1) & (faults < 0.9)).all(), "tables in which everything, or nothing, faults say little"


@pytest.mark.parametrize("shift", [PUD_SHIFT, PMD_SHIFT])
@pytest.mark.parametrize("bits", [PTE_USER | PTE_RW, PTE_USER | PTE_NX, PTE_USER | PTE_RW | PTE_NX, PTE_RW])
def test_huge_pages(ram: Ram, shift: int, bits: int) -> None:
    """One huge page between two empty places; every 4 KiB page of it is in the right frame."""
    vaddr = 0x7F00_4020_0000 & -(1 << shift)
    pfn = 0 if shift == PUD_SHIFT else 0x3000 & -512
    table = 2
    for level_shift in _SHIFTS[: _SHIFTS.index(shift)]:
        entry = make_pte(table + 1, PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED)
        ram.words[table << WORDS_SHIFT | table_index(vaddr, level_shift)] = entry
        table += 1
    bits |= PTE_PRESENT | PTE_PSE | _SET_EARLY[_SHIFTS.index(shift)]
    ram.words[table << WORDS_SHIFT | table_index(vaddr, shift)] = make_pte(pfn, bits)
    step = max(1 << PAGE_SHIFT, 1 << shift - 10)
    addresses = [*range(vaddr + 0x123, vaddr + (1 << shift), step), vaddr - 1, vaddr, vaddr + (1 << shift)]
    fd = ram.open_readonly()
    try:
        verdicts = judge(fd, RAM_BYTES, 2 << PAGE_SHIFT, addresses)
        whole = Walker(fd, RAM_BYTES, 2 << PAGE_SHIFT).mapped_pages()
    finally:
        os.close(fd)
    inside = [vaddr <= address < vaddr + (1 << shift) for address in addresses]
    user = bits & PTE_USER != 0
    assert (verdicts[:, 0] >= 0).tolist() == [user and mapped for mapped in inside]
    assert (verdicts[:, 1] >= 0).tolist() == [user and bits & PTE_RW != 0 and mapped for mapped in inside]
    assert (verdicts[:, 2] >= 0).tolist() == [user and not bits & PTE_NX and mapped for mapped in inside]
    assert len(whole) == 1 << shift - PAGE_SHIFT
    assert whole[vaddr + 0x3000] == (pfn + 3) << PAGE_SHIFT
