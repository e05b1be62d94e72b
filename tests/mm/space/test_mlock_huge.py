"""Locks on huge pages: the whole page is locked, or nothing of it. Small entries of it lose the lock.

Source: Linux v6.8 mm/mlock.c (allow_mlock_munlock(), folio_mlock_step()), mm/rmap.c (munlock_vma_folio()),
mm/huge_memory.c (__split_huge_pmd_locked(), split_huge_page_to_list()).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mlock import do_mlock, do_munlock
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.frames.frames import PG_UNEVICTABLE
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.split_folio import split_folio
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.huge_machine import HUGE, HugeMachine, frame_at, marked, sizes
from tests.support.machine import BASE, READ, checked, page, store


@pytest.fixture
def machine() -> Iterator[HugeMachine]:
    yield from checked(HugeMachine())


def lock(mm: MmStruct, first: int, pages: int) -> None:
    mm_populate(mm, *do_mlock(mm, page(first), pages * PAGE_SIZE, VM_LOCKED, privileged=True))


def locked_pages(mm: MmStruct, pages: int = HUGE) -> int:
    """Return how many frames of the first pages reclaim may not take."""
    flags = (mm.frames.flags_at[frame_at(mm, page(number))] for number in range(pages))
    return sum(word & PG_UNEVICTABLE != 0 for word in flags)


def test_a_huge_page_is_locked_whole(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    lock(mm, 0, HUGE)
    assert (sizes(mm, 1), locked_pages(mm)) == ("H", HUGE)
    do_munlock(mm, BASE, PMD_SIZE)
    assert locked_pages(mm) == 0


@pytest.mark.parametrize(("first", "pages"), [(0, 1), (HUGE - 1, 1), (0, HUGE - 1), (100, 200)])
def test_a_lock_of_a_part_locks_nothing(machine: HugeMachine, mm: MmStruct, first: int, pages: int) -> None:
    marked(mm, HUGE)
    lock(mm, first, pages)
    assert (sizes(mm, 1), locked_pages(mm)) == ("t", 0)


def test_small_entries_of_a_whole_huge_page_lock_it(machine: HugeMachine, mm: MmStruct) -> None:
    """mprotect cuts the entry up, and the mappings merge again."""
    marked(mm, HUGE)
    do_mprotect(mm, BASE, PAGE_SIZE, READ)
    do_mprotect(mm, BASE, PAGE_SIZE, READ | 2)
    lock(mm, 0, HUGE)
    assert (sizes(mm, 1), locked_pages(mm)) == ("t", HUGE)


def test_a_lock_in_two_steps_locks_nothing(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    lock(mm, 0, HUGE // 2)
    lock(mm, HUGE // 2, HUGE // 2)
    assert locked_pages(mm) == 0


def test_small_pages_beside_are_locked(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE + 2)
    lock(mm, HUGE - 1, 3)
    assert locked_pages(mm) == 0
    assert [mm.frames.flags_at[frame_at(mm, page(HUGE + n))] & PG_UNEVICTABLE != 0 for n in range(2)] == [True, True]


def test_a_locked_huge_page_that_is_cut_up_can_be_evicted(machine: HugeMachine, mm: MmStruct) -> None:
    """A write after a fork needs a page of its own; the new one is locked."""
    marked(mm, HUGE)
    lock(mm, 0, HUGE)
    child = machine.fork(mm)
    assert locked_pages(child) == HUGE
    store(mm, BASE, b"x")
    assert (sizes(mm, 1), locked_pages(mm), locked_pages(child)) == ("t", 1, 0)


def test_an_unlock_of_a_part_unlocks_all(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    lock(mm, 0, HUGE)
    do_munlock(mm, page(7), PAGE_SIZE)
    assert locked_pages(mm) == 0


def test_what_another_process_has_locked_stays_so(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    child = machine.fork(mm)
    for each in (mm, child):
        do_mlock(each, BASE, PMD_SIZE, VM_LOCKED, privileged=True)
    do_munmap(child, BASE, PMD_SIZE)
    assert locked_pages(mm) == HUGE
    do_munmap(mm, page(HUGE - 1), PAGE_SIZE)
    assert locked_pages(mm, HUGE - 1) == 0


def test_each_small_entry_that_goes_unlocks_once(machine: HugeMachine, mm: MmStruct) -> None:
    """Two have locked it. One of them unmaps two pages of it: both locks are gone."""
    marked(mm, HUGE)
    child = machine.fork(mm)
    for each in (mm, child):
        do_mprotect(each, BASE, PAGE_SIZE, READ)
        do_mprotect(each, BASE, PAGE_SIZE, READ | 2)
        do_mlock(each, BASE, PMD_SIZE, VM_LOCKED, privileged=True)
    do_munmap(child, page(8), PAGE_SIZE)
    assert locked_pages(mm) == HUGE
    do_munmap(child, page(0), PAGE_SIZE)
    assert locked_pages(mm) == 0


def test_the_single_pages_of_a_split_huge_page_are_locked_by_those_who_map_them(
    machine: HugeMachine, mm: MmStruct
) -> None:
    marked(mm, HUGE)
    lock(mm, 0, HUGE // 2)
    assert locked_pages(mm) == 0
    split_folio(mm.frames, frame_at(mm, BASE))
    assert locked_pages(mm) == HUGE // 2
    do_munlock(mm, BASE, PMD_SIZE)
    assert locked_pages(mm) == 0


def test_a_new_huge_page_in_locked_memory_is_locked(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    lock(mm, 0, HUGE)
    do_madvise(mm, BASE, PMD_SIZE, Madv.DONTNEED_LOCKED)
    store(mm, BASE, b"x")
    assert (sizes(mm, 1), locked_pages(mm)) == ("H", HUGE)


def test_collapsed_memory_is_locked_once(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    do_madvise(mm, BASE, PMD_SIZE, Madv.NOHUGEPAGE)
    do_madvise(mm, BASE, PMD_SIZE, Madv.DONTNEED)
    for number in range(HUGE):
        store(mm, page(number), b"x")
    lock(mm, 0, HUGE)
    do_madvise(mm, BASE, PMD_SIZE, Madv.HUGEPAGE)
    do_madvise(mm, BASE, PMD_SIZE, Madv.COLLAPSE)
    assert (sizes(mm, 1), locked_pages(mm)) == ("H", HUGE)
    do_munlock(mm, BASE, PMD_SIZE)
    assert locked_pages(mm) == 0
