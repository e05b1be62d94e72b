"""Pages that more than one has locked: the last who unlocks gives them back.

Source: Linux v6.8 mm/mlock.c, folio->mlock_count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kerneld.mm.calls.access import pin_user_pages, unpin_user_pages
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mlock import do_mlock, do_munlock
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.frames.frames import PG_ACTIVE, PG_REFERENCED, PG_UNEVICTABLE
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap, munmap_in_pieces
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.space.truncate import punch_hole, truncate_pagecache
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv, Mremap
from shared.uapi.page import PAGE_SIZE
from tests.support.huge_machine import HUGE, HugeMachine, frame_at, sizes
from tests.support.machine import (
    BASE,
    PRIVATE,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    checked,
    load,
    mmap,
    page,
    pfn_of,
    store,
)

SECOND = 512
"""Where the same pages are mapped a second time, in pages from BASE."""


def lock(mm: MmStruct, first: int = 0, pages: int = 1) -> None:
    mm_populate(mm, *do_mlock(mm, page(first), pages * PAGE_SIZE, VM_LOCKED, privileged=True))


def unlock(mm: MmStruct, first: int = 0, pages: int = 1) -> None:
    do_munlock(mm, page(first), pages * PAGE_SIZE)


def is_locked(machine: Machine, pfn: int) -> bool:
    return machine.frames.flags_at[pfn] & PG_UNEVICTABLE != 0


def by_fork(machine: Machine, mm: MmStruct) -> tuple[int, MmStruct, int]:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"x")
    child = machine.fork(mm)
    # A write would copy.
    do_mlock(child, BASE, PAGE_SIZE, VM_LOCKED, privileged=True)
    do_mlock(mm, BASE, PAGE_SIZE, VM_LOCKED, privileged=True)
    return pfn_of(mm, BASE), child, 0


def by_a_second_mapping(machine: Machine, mm: MmStruct) -> tuple[int, MmStruct, int]:
    mmap(mm, 1, RW, SHARED_ANON, at=BASE)
    store(mm, BASE, b"x")
    lock(mm)
    do_mremap(mm, BASE, 0, PAGE_SIZE, (Mremap.MAYMOVE | Mremap.FIXED).value, page(SECOND), privileged=True)
    load(mm, page(SECOND))
    return pfn_of(mm, BASE), mm, SECOND


def by_a_file(machine: Machine, mm: MmStruct) -> tuple[int, MmStruct, int]:
    file, _ = machine.new_file(b"f" * PAGE_SIZE)
    for at, flags in ((0, SHARED), (SECOND, PRIVATE)):
        mmap(mm, 1, RW, flags, at=page(at), file=file)
        load(mm, page(at))
        do_mlock(mm, page(at), PAGE_SIZE, VM_LOCKED, privileged=True)
    return pfn_of(mm, BASE), mm, SECOND


WAYS = [by_fork, by_a_second_mapping, by_a_file]
Way = Callable[[Machine, MmStruct], tuple[int, MmStruct, int]]


@pytest.mark.parametrize("second_first", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_one_unlocks_and_the_page_stays_locked(machine: Machine, mm: MmStruct, way: Way, second_first: bool) -> None:
    pfn, other, at = way(machine, mm)
    both = [(mm, 0), (other, at)]
    for (who, where), left in zip(reversed(both) if second_first else both, (True, False), strict=True):
        unlock(who, where)
        assert is_locked(machine, pfn) is left
        machine.check()


@pytest.mark.parametrize("way", WAYS)
def test_one_unmaps_or_goes(machine: Machine, mm: MmStruct, way: Way) -> None:
    pfn, other, _ = way(machine, mm)
    do_munmap(mm, BASE, PAGE_SIZE)
    assert is_locked(machine, pfn)
    machine.check()
    machine.exit(other)
    machine.check()


def test_a_writer_takes_its_copy_and_leaves_the_page_to_the_other(machine: Machine, mm: MmStruct) -> None:
    pfn, child, _ = by_fork(machine, mm)
    store(child, BASE, b"y")
    assert pfn_of(child, BASE) != pfn
    assert is_locked(machine, pfn)
    assert is_locked(machine, pfn_of(child, BASE))
    unlock(mm)
    assert not is_locked(machine, pfn)
    assert is_locked(machine, pfn_of(child, BASE))


def test_so_does_who_is_read_by_another(machine: Machine, mm: MmStruct) -> None:
    pfn, child, _ = by_fork(machine, mm)
    unpin_user_pages(child, pin_user_pages(child, BASE, 1, write=False), dirty=False)
    assert pfn_of(child, BASE) != pfn
    unlock(mm)
    assert not is_locked(machine, pfn)


def test_a_page_that_was_locked_by_two_is_nobodys_when_it_is_free(machine: Machine, mm: MmStruct) -> None:
    pfn, child, _ = by_fork(machine, mm)
    for who in (mm, child):
        do_madvise(who, BASE, PAGE_SIZE, Madv.DONTNEED_LOCKED)
    assert not machine.frames.refcount_at[pfn]
    assert not machine.frames.mlock_more.any()


@pytest.mark.parametrize("how", [truncate_pagecache, lambda mapping, size: punch_hole(mapping, 0, 2)])
def test_a_file_that_is_cut(machine: Machine, mm: MmStruct, how: Callable[..., None]) -> None:
    file, backing = machine.new_file(b"f" * 2 * PAGE_SIZE)
    mmap(mm, 2, RW, PRIVATE, at=BASE, file=file)
    mmap(mm, 2, RW, SHARED, at=page(SECOND), file=file)
    store(mm, BASE, b"copy")
    for at in (0, SECOND):
        load(mm, page(at + 1))
        do_mlock(mm, page(at), 2 * PAGE_SIZE, VM_LOCKED, privileged=True)
    del backing.data[PAGE_SIZE:]
    how(file.mapping, PAGE_SIZE)
    machine.check()
    assert is_locked(machine, pfn_of(mm, BASE))
    unlock(mm, 0, 2)
    machine.check()


def test_a_huge_page(huge_machine: HugeMachine) -> None:
    mm = huge_machine.new_mm()
    mmap(mm, HUGE, at=BASE)
    store(mm, BASE, b"x")
    child = huge_machine.fork(mm)
    for who in (mm, child):
        do_mlock(who, BASE, HUGE * PAGE_SIZE, VM_LOCKED, privileged=True)
    last = frame_at(mm, page(HUGE - 1))
    unlock(mm, 0, HUGE)
    assert is_locked(huge_machine, last)
    unlock(child, 0, HUGE)
    assert not is_locked(huge_machine, last)
    assert sizes(mm, 1) == sizes(child, 1) == "H"


@pytest.fixture
def huge_machine() -> Iterator[HugeMachine]:
    yield from checked(HugeMachine(16 << 20, TransparentHugepage.ALWAYS))


def test_a_file_that_is_unmapped_in_pieces(machine: Machine, mm: MmStruct) -> None:
    file, _backing = machine.new_file(bytes(PAGE_SIZE))
    mmap(mm, 1, RW, SHARED, at=BASE, file=file)
    mmap(mm, 1, RW, SHARED, at=page(SECOND), file=file)
    lock(mm)
    pfn = pfn_of(mm, BASE)
    run_at_once(munmap_in_pieces(mm, BASE, PAGE_SIZE))
    assert not is_locked(machine, pfn)


@pytest.mark.parametrize("unmap", [do_munmap, lambda mm, at, length: run_at_once(munmap_in_pieces(mm, at, length))])
def test_a_page_that_is_unmapped_counts_as_used_while_it_is_locked(
    machine: Machine, mm: MmStruct, unmap: Callable[..., None]
) -> None:
    """Its mark stays: a second use of a page that reclaim could take would make it active, and take the mark."""
    file, _backing = machine.new_file(bytes(PAGE_SIZE))
    mmap(mm, 1, RW, SHARED, at=BASE, file=file)
    mmap(mm, 1, RW, SHARED, at=page(SECOND), file=file)
    lock(mm)
    load(mm, BASE)
    pfn = pfn_of(mm, BASE)
    machine.frames.flags_at[pfn] |= PG_REFERENCED
    unmap(mm, BASE, PAGE_SIZE)
    assert machine.frames.flags_at[pfn] & (PG_REFERENCED | PG_ACTIVE | PG_UNEVICTABLE) == PG_REFERENCED
