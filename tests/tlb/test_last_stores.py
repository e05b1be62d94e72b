"""What a program stores before its agent has dropped a page is not lost, whoever takes the page away.

The program here stores to each page at the last moment: when the order to drop it has come.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kerneld.errors import SysError
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.writeback import do_msync
from kerneld.tlb.record import OPERATION, RECORD
from kerneld.tlb.tlb import Tlb
from shared.uapi.mman import Madv, Map, Ms
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Pfn, Vaddr
from tests.support.machine import BASE, RW, Machine, advise, checked, load, mmap, page, store

PAGES = 512
USED = 24
PROT_WRITE = 2
_VALUE = struct.Struct("<Q")


class Program:
    """A program that runs: what the host maps for it, and what it has stored last at each page."""

    def __init__(self, mm: MmStruct) -> None:
        self.mm = mm
        self.tlb = Tlb(mm, lambda _: None, self)
        self.view = self.tlb.enter(1)
        self.acknowledged = 0
        self.stored: dict[Vaddr, int] = {}
        self._mapped: dict[Vaddr, tuple[Pfn, int]] = {}
        self._values = itertools.count(1)
        self._run()

    def order(self, record: bytes) -> bool:
        """Store to each page that is to go, then drop it."""
        self._carry_out(record, stores=True)
        return True

    def dismiss(self) -> None:
        """The machine of the test ends."""

    def _run(self) -> None:
        self._carry_out(self.view.take(), stores=False)

    def _carry_out(self, record: bytes, *, stores: bool) -> None:
        for start, word, offset in OPERATION.iter_unpack(record[RECORD.size :]):
            length = word & -PAGE_SIZE
            if not word & 7:
                for vaddr in [vaddr for vaddr in self._mapped if start <= vaddr < start + length]:
                    pfn, rights = self._mapped.pop(vaddr)
                    if stores and rights & PROT_WRITE:
                        self._store(vaddr, pfn)
                continue
            for at in range(0, length, PAGE_SIZE):
                self._mapped[start + at] = offset + at >> PAGE_SHIFT, word & 7

    def _store(self, vaddr: Vaddr, pfn: Pfn) -> None:
        self.stored[vaddr] = value = next(self._values)
        self.mm.frames.ram.frames_np[pfn][:1] = np.uint64(value)

    def use(self, vaddr: Vaddr) -> None:
        """Store by a fault, as the program's instruction does, and keep the page mapped."""
        self.view.begin(memoryview(b""))
        value = self.stored[vaddr] = next(self._values)
        store(self.mm, vaddr, _VALUE.pack(value))
        self.tlb.grant_page(vaddr)
        self._run()

    def check(self) -> None:
        for vaddr, value in self.stored.items():
            assert _VALUE.unpack(load(self.mm, vaddr, 8))[0] == value, hex(vaddr)


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(32 << 20, swap_bytes=8 << 20))


def scan(machine: Machine) -> None:
    for _ in ksm_do_scan(ksm_of(machine.frames), machine.frames, 2 * PAGES, lambda _: False):
        pass


def protect(mm: MmStruct) -> None:
    do_mprotect(mm, BASE, 4 * PAGE_SIZE, 1)
    do_mprotect(mm, BASE, 4 * PAGE_SIZE, RW)


def collapse(mm: MmStruct) -> None:
    try:
        advise(mm, 0, PAGES, Madv.COLLAPSE)
    except SysError:
        return  # No page can be written to.


def events(machine: Machine, mm: MmStruct) -> dict[str, Callable[[], object]]:
    """Return what takes pages away, or moves what they hold."""
    return {
        "pageout": lambda: advise(mm, 0, PAGES, Madv.PAGEOUT),
        "cold": lambda: advise(mm, 0, PAGES, Madv.COLD),
        "reclaim": machine.reclaim_all,
        "fork": lambda: machine.fork(mm),
        "merge": lambda: scan(machine),
        "collapse": lambda: collapse(mm),
        "protect": lambda: protect(mm),
    }


@pytest.mark.parametrize("name", ["pageout", "cold", "reclaim", "fork", "merge", "collapse", "protect"])
def test_one_event_loses_no_store(machine: Machine, name: str) -> None:
    program = Program(begun(machine))
    for number in range(USED):
        program.use(page(number))
    for _ in range(3):
        events(machine, program.mm)[name]()
        program.check()


@pytest.mark.parametrize("seed", range(12))
def test_no_sequence_of_events_loses_a_store(machine: Machine, seed: int) -> None:
    chosen = random.Random(seed)
    program = Program(begun(machine))
    for _ in range(40):
        for number in chosen.sample(range(USED), 4):
            program.use(page(number))
        made = events(machine, program.mm)
        made[chosen.choice([name for name in made if name != "fork" or len(machine.mms) < 6])]()
    program.check()


def begun(machine: Machine) -> MmStruct:
    """Return an address space with 2 MiB of memory that may be merged."""
    mm = machine.new_mm()
    mmap(mm, PAGES, at=BASE)
    advise(mm, 0, PAGES, Madv.MERGEABLE)
    return mm


def test_a_page_that_moves_takes_the_last_store_along(machine: Machine) -> None:
    program = Program(begun(machine))
    program.use(BASE)
    to = do_mremap(program.mm, BASE, PAGE_SIZE, PAGE_SIZE, 3, BASE + 2 * PMD_SIZE, privileged=True)
    program.stored[to] = program.stored.pop(BASE)
    program.check()


@pytest.mark.parametrize("event", ["msync", "reclaim"])
def test_what_is_stored_last_comes_to_the_file(machine: Machine, event: str) -> None:
    file, backing = machine.new_file(bytes(PAGES * PAGE_SIZE))
    mm = machine.new_mm()
    mmap(mm, PAGES, RW, Map.SHARED, at=BASE, file=file)
    program = Program(mm)
    for _ in range(2):
        for number in range(USED):
            program.use(page(number))
        if event == "msync":
            do_msync(mm, BASE, PAGES * PAGE_SIZE, Ms.SYNC)
        else:
            machine.reclaim_all()
        program.check()
        for vaddr, value in program.stored.items():
            assert _VALUE.unpack(bytes(backing.data[vaddr - BASE : vaddr - BASE + 8]))[0] == value
