"""The processor's walk over hand-made tables: rights of all levels together, huge pages, accessed and dirty bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.hw.paging import (
    PF_INSTR,
    PF_PK,
    PF_PROT,
    PF_USER,
    PF_WRITE,
    PGD_SHIFT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PKEY_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_PSE,
    PTE_RW,
    PTE_TABLE,
    PTE_USER,
    PUD_SHIFT,
    make_pte,
    present_mask,
    pte_pfn,
    pte_pkey,
    pte_present,
    table_index,
    translate,
)
from kerneld.hw.processor import INIT_PKRU, NR_PKEYS, PKRU_AD, PKRU_WD, Processor
from kerneld.hw.ram import WORDS_SHIFT, Ram
from shared.uapi.page import PAGE_SHIFT, PMD_SHIFT, TASK_SIZE

VADDR = 0x7F12_3456_7ABC
ROOT, PUD, PMD, PTE, PAGE, HUGE = 2, 3, 4, 5, 100, 0x200
SHIFTS = (PGD_SHIFT, PUD_SHIFT, PMD_SHIFT, PAGE_SHIFT)
TABLES = (ROOT, PUD, PMD, PTE)
LEAF = PTE_PRESENT | PTE_RW | PTE_USER


class Walk:
    """Tables that map the page of VADDR to frame PAGE."""

    def __init__(self) -> None:
        self.ram = Ram(4 << 20)
        for level, below in enumerate((PUD, PMD, PTE)):
            self.set(level, make_pte(below, PTE_TABLE))
        self.set(3, make_pte(PAGE, LEAF))

    def slot(self, level: int) -> int:
        return TABLES[level] << WORDS_SHIFT | VADDR >> SHIFTS[level] & 511

    def get(self, level: int) -> int:
        return self.ram.words[self.slot(level)]

    def set(self, level: int, entry: int) -> None:
        self.ram.words[self.slot(level)] = entry

    def translate(self, access: int = 0, vaddr: int = VADDR, pkru: int = 0) -> int:
        return translate(self.ram.words, ROOT, vaddr, access, pkru)


@pytest.fixture
def walk() -> Iterator[Walk]:
    made = Walk()
    yield made
    made.ram.close()


@pytest.mark.parametrize("access", [0, PF_WRITE, PF_INSTR])
def test_an_address_becomes_frame_and_offset(walk: Walk, access: int) -> None:
    assert walk.translate(access) == PAGE << PAGE_SHIFT | VADDR & 0xFFF


def test_the_next_page_is_another_entry(walk: Walk) -> None:
    assert walk.translate(vaddr=VADDR + 0x1000) == ~PF_USER


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("access", [0, PF_WRITE, PF_INSTR])
def test_absent_at_any_level(walk: Walk, level: int, access: int) -> None:
    walk.set(level, walk.get(level) & ~PTE_PRESENT)
    before = walk.get(level)
    assert walk.translate(access) == ~(PF_USER | access)
    assert walk.get(level) == before


@pytest.mark.parametrize("level", range(4))
def test_a_write_needs_the_right_at_every_level(walk: Walk, level: int) -> None:
    walk.set(level, walk.get(level) & ~PTE_RW)
    assert walk.translate(PF_WRITE) == ~(PF_PROT | PF_USER | PF_WRITE)
    assert walk.translate(0) >= 0
    assert walk.translate(PF_INSTR) >= 0


@pytest.mark.parametrize("level", range(4))
def test_no_fetch_where_any_level_forbids_it(walk: Walk, level: int) -> None:
    walk.set(level, walk.get(level) | PTE_NX)
    assert walk.translate(PF_INSTR) == ~(PF_PROT | PF_USER | PF_INSTR)
    assert walk.translate(0) >= 0
    assert walk.translate(PF_WRITE) >= 0


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("access", [0, PF_WRITE, PF_INSTR])
def test_a_supervisor_entry_is_not_for_user_mode(walk: Walk, level: int, access: int) -> None:
    walk.set(level, walk.get(level) & ~PTE_USER)
    assert walk.translate(access) == ~(PF_PROT | PF_USER | access)


def test_a_prot_none_entry_is_absent_for_the_processor(walk: Walk) -> None:
    entry = make_pte(PAGE, PTE_PROTNONE | PTE_NX)
    walk.set(3, entry)
    assert walk.translate(0) == ~PF_USER
    assert pte_present(entry)


@pytest.mark.parametrize(
    ("access", "bits"), [(0, PTE_ACCESSED), (PF_INSTR, PTE_ACCESSED), (PF_WRITE, PTE_ACCESSED | PTE_DIRTY)]
)
def test_accessed_and_dirty_bits(walk: Walk, access: int, bits: int) -> None:
    assert walk.translate(access) >= 0
    assert walk.get(3) == make_pte(PAGE, LEAF | bits)


def test_a_read_keeps_the_dirty_bit(walk: Walk) -> None:
    walk.set(3, make_pte(PAGE, LEAF | PTE_DIRTY))
    walk.translate(0)
    assert walk.get(3) == make_pte(PAGE, LEAF | PTE_DIRTY | PTE_ACCESSED)


def test_an_access_that_fails_sets_no_bits(walk: Walk) -> None:
    walk.set(3, make_pte(PAGE, PTE_PRESENT | PTE_USER))
    assert walk.translate(PF_WRITE) < 0
    assert walk.get(3) == make_pte(PAGE, PTE_PRESENT | PTE_USER)


def test_a_huge_page_ends_the_walk_one_level_earlier(walk: Walk) -> None:
    walk.set(2, make_pte(HUGE, LEAF | PTE_PSE))
    assert walk.translate(PF_WRITE) == HUGE << PAGE_SHIFT | VADDR & (1 << PMD_SHIFT) - 1
    assert walk.get(2) == make_pte(HUGE, LEAF | PTE_PSE | PTE_ACCESSED | PTE_DIRTY)
    assert walk.get(3) == make_pte(PAGE, LEAF)


def test_a_huge_page_that_is_absent(walk: Walk) -> None:
    walk.set(2, make_pte(HUGE, PTE_PSE | PTE_USER))
    assert walk.translate(0) == ~PF_USER


def test_that_bit_in_a_last_level_entry_is_not_a_huge_page(walk: Walk) -> None:
    walk.set(3, make_pte(PAGE, LEAF | PTE_PSE))
    assert walk.translate(0) == PAGE << PAGE_SHIFT | VADDR & 0xFFF


def test_the_last_page_of_user_space(walk: Walk) -> None:
    vaddr = TASK_SIZE - 1
    assert [table_index(vaddr, shift) for shift in SHIFTS] == [255, 511, 511, 510]
    assert walk.translate(vaddr=vaddr) == ~PF_USER


def test_entries_of_arrays() -> None:
    entries = np.array(
        [0, make_pte(7, LEAF | PTE_NX), make_pte(9, PTE_PROTNONE), make_pte(11, PTE_RW)], dtype=np.uint64
    )
    assert pte_pfn(entries).tolist() == [0, 7, 9, 11]
    assert present_mask(entries).tolist() == [False, True, True, False]
    assert [pte_present(entry) for entry in entries.tolist()] == [False, True, True, False]
    assert pte_pfn(make_pte(7, LEAF | PTE_NX)) == 7


class TestProtectionKeys:
    """The Intel SDM, volume 3, 4.6.2 and 4.7: a leaf's key, and two bits of PKRU for it."""

    @pytest.mark.parametrize("key", range(NR_PKEYS))
    @pytest.mark.parametrize("access", [0, PF_WRITE, PF_INSTR])
    @pytest.mark.parametrize("bits", [0, PKRU_AD, PKRU_WD, PKRU_AD | PKRU_WD])
    def test_its_bits_alone_count(self, walk: Walk, key: int, access: int, bits: int) -> None:
        walk.set(3, make_pte(PAGE, LEAF | key << PTE_PKEY_SHIFT))
        of_others = 0xFFFF_FFFF & ~(3 << 2 * key)
        denied = (access == 0 and bits & PKRU_AD) or (access == PF_WRITE and bits)
        for others in (0, of_others):
            paddr = walk.translate(access, pkru=bits << 2 * key | others)
            assert paddr == (~(PF_PROT | PF_USER | PF_PK | access) if denied else PAGE << PAGE_SHIFT | VADDR & 0xFFF)

    def test_the_error_says_so_whatever_else_is_wrong(self, walk: Walk) -> None:
        walk.set(3, make_pte(PAGE, PTE_PRESENT | PTE_USER | PTE_NX | 5 << PTE_PKEY_SHIFT))
        assert walk.translate(PF_WRITE, pkru=PKRU_WD << 10) == ~(PF_PROT | PF_USER | PF_WRITE | PF_PK)
        assert walk.translate(PF_WRITE) == ~(PF_PROT | PF_USER | PF_WRITE)
        assert walk.translate(PF_INSTR, pkru=PKRU_AD << 10) == ~(PF_PROT | PF_USER | PF_INSTR)

    def test_a_page_that_is_absent_or_the_kernels_has_no_key(self, walk: Walk) -> None:
        walk.set(3, make_pte(PAGE, PTE_PRESENT | PTE_RW | 5 << PTE_PKEY_SHIFT))
        assert walk.translate(pkru=0xFFFF_FFFF) == ~(PF_PROT | PF_USER)
        walk.set(3, make_pte(PAGE, PTE_PROTNONE | 5 << PTE_PKEY_SHIFT))
        assert walk.translate(pkru=0xFFFF_FFFF) == ~PF_USER

    def test_a_denied_access_leaves_the_entry_alone(self, walk: Walk) -> None:
        walk.set(3, make_pte(PAGE, LEAF | 1 << PTE_PKEY_SHIFT))
        before = walk.get(3)
        assert walk.translate(PF_WRITE, pkru=INIT_PKRU) < 0
        assert walk.get(3) == before
        assert walk.translate(PF_WRITE, pkru=0) >= 0
        assert walk.get(3) == before | PTE_ACCESSED | PTE_DIRTY

    def test_a_huge_page_has_one(self, walk: Walk) -> None:
        walk.set(2, make_pte(HUGE, LEAF | PTE_PSE | 9 << PTE_PKEY_SHIFT))
        assert walk.translate(pkru=INIT_PKRU) == ~(PF_PROT | PF_USER | PF_PK)
        assert walk.translate(pkru=INIT_PKRU & ~(3 << 18)) >= 0

    def test_the_key_of_many_entries(self) -> None:
        entries = np.array([0, 15 << PTE_PKEY_SHIFT | PTE_NX, 1 << PTE_PKEY_SHIFT], dtype=np.uint64)
        assert pte_pkey(entries).tolist() == [0, 15, 1]
        assert pte_pkey(make_pte(PAGE, LEAF | PTE_NX | 6 << PTE_PKEY_SHIFT)) == 6


def test_pkru_of_a_new_program() -> None:
    """Source: Linux v6.8 arch/x86/mm/pkeys.c: init_pkru_value."""
    assert INIT_PKRU == 0x5555_5554
    assert (Processor().pkru, Processor(ospke=False).pkru) == (INIT_PKRU, 0)
    processor = Processor()
    processor.wrpkru(1 << 32 | 0xFFFF_FFFF)
    assert processor.pkru == 0xFFFF_FFFF
    processor.set_pkru_bits(3, PKRU_WD)
    assert processor.pkru == 0xFFFF_FFBF
