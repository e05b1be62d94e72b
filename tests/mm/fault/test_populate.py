"""Faulting in a range does what the single faults do, and stops where one of them would."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneld.hw.paging import PTE_DIRTY, PTE_RW
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.fault.populate import fault_in_range, mm_populate
from kerneld.mm.fault.vm_fault import VM_FAULT_OOM, VM_FAULT_SIGBUS
from kerneld.mm.frames.frames import ZERO_PFN
from kerneld.mm.space.mm import MmStruct
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import (
    BASE,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    entry,
    load,
    mmap,
    page,
    pfn_of,
    store,
    vma_at,
)


def fault_in(mm: MmStruct, first: int, last: int, write: bool) -> tuple[int, int]:
    reached, fault = fault_in_range(mm, vma_at(mm, page(first)), page(first), page(last), write)
    return (reached - BASE) // PAGE_SIZE, fault


def test_a_read_gives_zero_pages_and_a_write_frames(mm: MmStruct) -> None:
    mmap(mm, 600, at=BASE)
    assert fault_in(mm, 100, 600, False) == (600, 0)
    assert {pfn_of(mm, page(number)) for number in (100, 511, 512, 599)} == {ZERO_PFN}
    assert not entry(mm, page(99))
    assert fault_in(mm, 50, 550, True) == (550, 0)
    assert mm.rss.counts[1] == 500
    assert entry(mm, page(549)) & (PTE_RW | PTE_DIRTY) == PTE_RW | PTE_DIRTY
    assert pfn_of(mm, page(550)) == ZERO_PFN


def test_a_write_copies_what_is_shared_by_fork(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 40, at=BASE)
    for number in range(0, 40, 2):
        store(mm, page(number), b"%02d" % number)
    child = machine.fork(mm)
    assert fault_in(child, 0, 40, True) == (40, 0)
    machine.check()
    assert [load(child, page(number), 2) for number in (0, 1, 38)] == [b"00", b"\0\0", b"38"]
    assert not {pfn_of(mm, page(number)) for number in range(40)} & {
        pfn_of(child, page(number)) for number in range(40)
    }


@pytest.mark.parametrize(("flags", "write"), [(SHARED, False), (SHARED, True), (PRIVATE, False), (PRIVATE, True)])
def test_a_file_up_to_its_end(machine: Machine, mm: MmStruct, flags: int, write: bool) -> None:
    file, _ = machine.new_file(b"x" * (20 * PAGE_SIZE + 1))
    mmap(mm, 40, RW, flags, at=BASE, file=file)
    assert fault_in(mm, 3, 40, write) == (21, VM_FAULT_SIGBUS)
    assert entry(mm, page(20))
    assert set(file.mapping.dirty) == (set(range(3, 21)) if write and flags == SHARED else set())


def test_without_frames_it_stops_where_they_end(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 40, at=BASE)
    mm.page_table.ensure_pte(BASE)
    held = machine.frames.alloc_pages(machine.frames.free_pages - 8)
    assert fault_in(mm, 0, 40, True) == (8, VM_FAULT_OOM)
    machine.frames.put_pages(held)
    machine.check()


def test_over_holes_and_memory_without_rights(mm: MmStruct) -> None:
    mmap(mm, 2, at=page(0))
    mmap(mm, 2, NONE, at=page(4))
    mmap(mm, 2, RW, SHARED_ANON, at=page(6))
    mmap(mm, 2, READ, at=page(8))
    mm_populate(mm, page(1), page(9))
    assert [number for number in range(10) if entry(mm, page(number))] == [1, 6, 7, 8]
    assert mm.rss.counts == [0, 1, 0, 2]


def test_the_processors_bits_for_a_range(mm: MmStruct) -> None:
    mmap(mm, 4, at=BASE)
    store(mm, page(1), b"x")
    do_mprotect(mm, BASE, 4 * PAGE_SIZE, RW)
    clean = entry(mm, page(1)) & ~PTE_DIRTY
    mm.pages.update_pte(mm.page_table.ensure_pte(page(1)), page(1), clean)
    mm.pages.mark_accessed(BASE, page(4), False)
    assert entry(mm, page(1)) == clean
    mm.pages.mark_accessed(BASE, page(4), True)
    assert entry(mm, page(1)) == clean | PTE_DIRTY
    assert not entry(mm, page(0))


ACCESS = st.tuples(st.integers(0, 59), st.integers(1, 30), st.booleans())


@settings(max_examples=60)
@given(kind=st.sampled_from(["anon", "shmem", "shared", "private"]), accesses=st.lists(ACCESS, min_size=1, max_size=8))
def test_a_range_is_as_good_as_its_pages(kind: str, accesses: list[tuple[int, int, bool]]) -> None:
    """Rights and contents come out the same; a page of its own each time, or the shared one each time."""
    machine = Machine(4 << 20)
    at = BASE + PMD_SIZE - 30 * PAGE_SIZE
    mms = [machine.new_mm(), machine.new_mm()]
    for mm in mms:
        file = None if kind in ("anon", "shmem") else machine.new_file(b"f" * 60 * PAGE_SIZE)[0]
        flags = {"anon": PRIVATE | 0x20, "shmem": SHARED_ANON, "shared": SHARED, "private": PRIVATE}[kind]
        mmap(mm, 60, RW, flags, at=at, file=file)
    for first, count, write in accesses:
        start, end = at + first * PAGE_SIZE, at + min(first + count, 60) * PAGE_SIZE
        assert fault_in_range(mms[0], vma_at(mms[0], at), start, end, write) == (end, 0)
        for vaddr in range(start, end, PAGE_SIZE):
            fault_in_range(mms[1], vma_at(mms[1], at), vaddr, vaddr + PAGE_SIZE, write)
        machine.check()
    whole, single = (mm.page_table.walk.entries(at, at + 60 * PAGE_SIZE) for mm in mms)
    assert ((whole & 0xFFF) == (single & 0xFFF)).all()
    assert ((whole >> 12 == ZERO_PFN) == (single >> 12 == ZERO_PFN)).all()
    assert mms[0].rss.counts == mms[1].rss.counts
    machine.close()
