"""What the kernel's own way to a page leaves on it: a page that MADV_FREE has given up is wanted again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY
from kerneld.mm.calls.access import pin_user_pages, read_remote_vm, unpin_user_pages, write_remote_vm
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mlock import do_mlock, do_munlock
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.frames.frames import PG_ACTIVE, PG_DIRTY, PG_REFERENCED, PG_SWAPBACKED
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.writeback import do_msync
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv, Ms
from shared.uapi.page import PAGE_SIZE
from tests.support.huge_machine import HUGE, HugeMachine, entry_at, frame_at, huge, sizes
from tests.support.machine import BASE, RW, SHARED, Machine, checked, entry, load, mmap, page, pfn_of, store

PAGES = 3


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


@pytest.fixture
def huge_machine() -> Iterator[HugeMachine]:
    yield from checked(HugeMachine(16 << 20, TransparentHugepage.ALWAYS))


def advise(mm: MmStruct, advice: int) -> None:
    do_madvise(mm, BASE, PAGES * PAGE_SIZE, advice)


def lock_and_unlock(mm: MmStruct) -> None:
    mm_populate(mm, *do_mlock(mm, BASE, PAGES * PAGE_SIZE, VM_LOCKED, privileged=True))
    do_munlock(mm, BASE, PAGES * PAGE_SIZE)


def pin(mm: MmStruct, *, write: bool) -> None:
    unpin_user_pages(mm, pin_user_pages(mm, BASE, PAGES * PAGE_SIZE, write=write), dirty=write)


def write_back(mm: MmStruct) -> None:
    """Write what is there already, as a debugger might."""
    write_remote_vm(mm, BASE, read_remote_vm(mm, BASE, PAGES * PAGE_SIZE))


WRITES: list[Callable[[MmStruct], None]] = [
    lambda mm: advise(mm, Madv.POPULATE_WRITE),
    lock_and_unlock,
    lambda mm: pin(mm, write=True),
    write_back,
]
READS: list[Callable[[MmStruct], None]] = [
    lambda mm: None,
    lambda mm: advise(mm, Madv.POPULATE_READ),
    lambda mm: pin(mm, write=False),
    lambda mm: (read_remote_vm(mm, BASE, PAGES * PAGE_SIZE), None)[1],
]


def given_up(mm: MmStruct) -> None:
    mmap(mm, PAGES, at=BASE)
    for number in range(PAGES):
        store(mm, page(number), b"%d" % number)
    advise(mm, Madv.FREE)


@pytest.mark.parametrize("way", WRITES)
def test_what_the_kernel_went_to_for_writing_is_kept(
    machine: Machine, mm: MmStruct, way: Callable[[MmStruct], None]
) -> None:
    given_up(mm)
    way(mm)
    assert machine.frames.flags_at[pfn_of(mm, BASE)] & PG_DIRTY
    advise(mm, Madv.PAGEOUT)
    assert machine.frames.flags_at[pfn_of(mm, BASE)] & PG_SWAPBACKED
    advise(mm, Madv.PAGEOUT)
    assert mm.rss.counts[1] == 0
    assert [load(mm, page(number)) for number in range(PAGES)] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("way", READS)
def test_what_it_has_only_read_is_dropped(mm: MmStruct, way: Callable[[MmStruct], None]) -> None:
    given_up(mm)
    way(mm)
    advise(mm, Madv.PAGEOUT)
    assert [load(mm, page(number)) for number in range(PAGES)] == [b"\0"] * PAGES


@pytest.mark.parametrize("way", [way for way in [*WRITES, *READS[1:]] if way is not lock_and_unlock])
def test_the_first_time_marks_a_frame_as_used_and_the_second_as_active(
    machine: Machine, mm: MmStruct, way: Callable[[MmStruct], None]
) -> None:
    mmap(mm, PAGES, at=BASE)
    store(mm, BASE, b"x")
    young = entry(mm, BASE)
    pfn = pfn_of(mm, BASE)
    used = PG_REFERENCED | PG_ACTIVE
    assert not machine.frames.flags_at[pfn] & used
    pin(mm, write=False)
    assert machine.frames.flags_at[pfn] & used == PG_REFERENCED
    way(mm)
    assert machine.frames.flags_at[pfn] & PG_ACTIVE
    assert entry(mm, BASE) == young


def test_locked_pages_are_on_no_list_to_be_active_on(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, PAGES, at=BASE)
    lock_and_unlock(mm)
    lock_and_unlock(mm)
    assert machine.frames.flags_at[pfn_of(mm, BASE)] & (PG_REFERENCED | PG_ACTIVE) == PG_REFERENCED


def test_a_range_that_stops_has_marked_what_lies_before(machine: Machine, mm: MmStruct) -> None:
    file, _ = machine.new_file(b"f" * 2 * PAGE_SIZE)
    mmap(mm, 4, RW, SHARED, at=BASE, file=file)
    mm_populate(mm, BASE, page(4))
    assert [machine.frames.flags_at[file.mapping.pages[index]] & PG_REFERENCED for index in (0, 1)] == [
        PG_REFERENCED
    ] * 2


def test_a_files_page_that_is_written_to_is_dirty_in_the_file(machine: Machine, mm: MmStruct) -> None:
    file, backing = machine.new_file(b"f" * PAGE_SIZE)
    mmap(mm, 1, RW, SHARED, at=BASE, file=file)
    store(mm, BASE, b"1")
    do_msync(mm, BASE, PAGE_SIZE, Ms.SYNC)
    (paddr,) = pin_user_pages(mm, BASE, 1, write=True)
    do_msync(mm, BASE, PAGE_SIZE, Ms.SYNC)
    machine.ram.write(paddr, b"2")
    assert not file.mapping.dirty
    unpin_user_pages(mm, [paddr], dirty=True)
    assert set(file.mapping.dirty) == {0}
    machine.exit(mm)
    assert bytes(backing.data[:1]) == b"2"


def test_a_huge_page_is_touched_by_its_entry_and_dirty_as_a_whole(huge_machine: HugeMachine) -> None:
    mm = huge_machine.new_mm()
    frames = huge_machine.frames
    mmap(mm, HUGE, at=BASE)
    store(mm, BASE, b"x")
    pmd = mm.page_table.find_huge_pmd(BASE)
    assert pmd is not None
    untouched = entry_at(mm, BASE) & ~(PTE_ACCESSED | PTE_DIRTY)
    run = slice(frame_at(mm, BASE), frame_at(mm, BASE) + HUGE)
    mm.pages.update_huge_pmd(pmd, BASE, untouched)
    mm_populate(mm, page(3), page(4))
    assert entry_at(mm, BASE) == untouched | PTE_ACCESSED | PTE_DIRTY
    assert not (frames.flags[run] & np.uint32(PG_DIRTY | PG_REFERENCED)).any()
    mm.pages.update_huge_pmd(pmd, BASE, untouched)
    unpin_user_pages(mm, pin_user_pages(mm, page(5), 1, write=False), dirty=False)
    assert entry_at(mm, BASE) == untouched, "x86 notes a read nowhere: pmdp_set_access_flags()"
    unpin_user_pages(mm, pin_user_pages(mm, page(5), 2 * PAGE_SIZE, write=True), dirty=True)
    assert entry_at(mm, BASE) == untouched | PTE_ACCESSED | PTE_DIRTY
    assert (frames.flags[run] & np.uint32(PG_DIRTY)).all()
    assert sizes(mm, 1) == "H"
    assert load(mm, huge(0)) == b"x"


def test_a_huge_page_of_small_entries_is_used_and_dirty_as_a_whole(huge_machine: HugeMachine) -> None:
    """Each page that is gone to is a mark of all of it: the first says referenced, the second makes it active."""
    mm = huge_machine.new_mm()
    flags = huge_machine.frames.flags
    mmap(mm, HUGE, at=BASE)
    store(mm, BASE, b"x")
    run = slice(frame_at(mm, BASE), frame_at(mm, BASE) + HUGE)
    do_madvise(mm, BASE, HUGE * PAGE_SIZE, Madv.FREE)
    pmd = mm.page_table.find_huge_pmd(BASE)
    assert pmd is not None
    mm.pages.split_huge_pmd(pmd, BASE)
    unpin_user_pages(mm, pin_user_pages(mm, page(5), 1, write=False), dirty=False)
    assert set((flags[run] & np.uint32(PG_DIRTY | PG_REFERENCED | PG_ACTIVE)).tolist()) == {PG_REFERENCED}
    mm_populate(mm, page(3), page(5))
    assert set((flags[run] & np.uint32(PG_DIRTY | PG_REFERENCED | PG_ACTIVE)).tolist()) == {
        PG_DIRTY | PG_REFERENCED | PG_ACTIVE
    }
