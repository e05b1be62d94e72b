"""mremap with MREMAP_DONTUNMAP: the pages move, the mapping stays; test_mremap.py has the other moves."""

from __future__ import annotations

import errno

from kerneld.mm.calls.mlock import do_mlock, do_munlock
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.vm_flags import VM_LOCKED, VM_LOCKED_MASK
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import Rlimit
from tests.mm.calls.remapping import KEEP, LOCKED, TO, frames, remap, write_pages
from tests.support.machine import (
    BASE,
    READ,
    RW,
    SHARED_ANON,
    Machine,
    entry,
    errno_of,
    layout,
    load,
    mmap,
    page,
    pfn_of,
    store,
    vma_at,
)


class TestDontUnmap:
    """The pages go, the mapping stays."""

    def test_the_old_place_reads_zeros(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        held = write_pages(mm, 0, 2)
        new = remap(mm, 0, 2, 2, KEEP)
        assert frames(mm, new, 2) == held
        assert layout(mm)[0] == (0, 2, RW)
        assert load(mm, page(1)) == b"\0"
        assert mm.total_vm == 4
        assert vma_at(mm, BASE).anon_vma is None

    def test_a_part_keeps_the_owner_of_the_rest(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        held = write_pages(mm, 0, 3)
        new = remap(mm, 1, 1, 1, KEEP)
        assert frames(mm, BASE, 3) == [held[0], 0, held[2]]
        assert pfn_of(mm, new) == held[1]
        assert vma_at(mm, BASE).anon_vma is not None
        assert layout(mm)[0] == (0, 3, RW)

    def test_to_a_place(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        mmap(mm, 1, READ, at=page(5))
        held = write_pages(mm, 0, 1)
        assert remap(mm, 0, 1, 1, KEEP | TO, page(5)) == page(5)
        assert frames(mm, page(5), 1) == held
        assert layout(mm) == [(0, 1, RW), (5, 1, RW)]

    def test_a_hint_that_is_free_is_taken(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        mmap(mm, 1, READ, at=page(5))
        assert remap(mm, 0, 1, 1, KEEP, page(7)) == page(7)
        assert remap(mm, 0, 1, 1, KEEP, page(5)) not in (page(5), page(0))

    def test_the_old_place_is_not_locked_any_more(self, mm: MmStruct) -> None:
        mmap(mm, 2, RW, LOCKED, at=BASE)
        new = remap(mm, 0, 2, 2, KEEP)
        assert not vma_at(mm, BASE).vm_flags & VM_LOCKED_MASK
        assert vma_at(mm, new).vm_flags & VM_LOCKED
        assert mm.locked_vm == 2

    def test_shared_memory_is_seen_at_both_places(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW, SHARED_ANON, at=BASE)
        store(mm, BASE, b"s")
        new = remap(mm, 0, 1, 1, KEEP)
        assert entry(mm, BASE) == 0
        assert load(mm, BASE) == load(mm, new) == b"s"


class TestLocked:
    """v6.8 unlocks the old VMA whole, and counts none of that: mm/mremap.c:move_vma()."""

    def test_a_part_that_moves_unlocks_all_and_vmlck_stays(self, mm: MmStruct) -> None:
        mmap(mm, 8, RW, LOCKED, at=BASE)
        new = remap(mm, 2, 3, 3, KEEP)
        assert not vma_at(mm, BASE).vm_flags & VM_LOCKED_MASK
        assert vma_at(mm, new).vm_flags & VM_LOCKED
        assert mm.locked_vm == 8
        do_munmap(mm, new, 3 * PAGE_SIZE)
        assert mm.locked_vm == 5
        do_munmap(mm, BASE, 8 * PAGE_SIZE)
        assert mm.locked_vm == 5

    def test_what_is_counted_too_much_counts_against_the_limit(self, mm: MmStruct) -> None:
        mmap(mm, 8, RW, LOCKED, at=BASE)
        new = remap(mm, 0, 1, 1, KEEP)
        do_munlock(mm, new, PAGE_SIZE)
        assert mm.locked_vm == 7
        mm.rlimits.soft[Rlimit.MEMLOCK] = 8 * PAGE_SIZE
        do_mlock(mm, BASE, PAGE_SIZE, VM_LOCKED, privileged=False)
        assert errno_of(lambda: do_mlock(mm, page(1), PAGE_SIZE, VM_LOCKED, privileged=False)) == errno.ENOMEM

    def test_a_child_starts_from_nothing(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 8, RW, LOCKED, at=BASE)
        remap(mm, 2, 3, 3, KEEP)
        assert (machine.fork(mm).locked_vm, mm.locked_vm) == (0, 8)

    def test_a_move_that_fails_has_changed_nothing(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 8, RW, LOCKED, at=BASE)
        with machine.failing_allocation(0) as failed:
            assert errno_of(lambda: remap(mm, 2, 3, 3, KEEP | TO, 0x20_0000_0000)) == errno.ENOMEM
            assert failed
        assert mm.locked_vm == 8
        assert vma_at(mm, BASE).vm_flags & VM_LOCKED
