"""mremap: every errno in Linux's order, what has happened before a late one, and what listeners are told."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_DONTEXPAND
from shared.uapi.mman import Map, Mremap
from shared.uapi.page import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from shared.uapi.resource import Rlimit
from tests.support.machine import (
    ANON,
    BASE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    entry,
    errno_of,
    failure,
    layout,
    load,
    mmap,
    page,
    pfn_of,
    store,
    vma_at,
)

MAYMOVE, FIXED, DONTUNMAP = Mremap.MAYMOVE.value, Mremap.FIXED.value, Mremap.DONTUNMAP.value
TO, KEEP = MAYMOVE | FIXED, MAYMOVE | DONTUNMAP
LOCKED = ANON | Map.LOCKED.value
FAR = page(1000)


def remap(mm: MmStruct, addr: int, old: int, new: int, flags: int = 0, to: int = 0, privileged: bool = False) -> int:
    """Remap with lengths in pages."""
    return do_mremap(mm, addr, old * PAGE_SIZE, new * PAGE_SIZE, flags, to, privileged=privileged)


class TestArgumentsInOrder:
    """Source: Linux v6.8 mm/mremap.c:SYSCALL_DEFINE5(mremap) and mremap_to(). Nothing is changed by any of them."""

    @pytest.mark.parametrize(
        ("addr", "old", "new", "flags", "to", "expected"),
        [
            pytest.param(BASE, 1, 1, 8, 0, errno.EINVAL, id="unknown flag"),
            pytest.param(FAR, 1, 1, FIXED, 0, errno.EINVAL, id="FIXED alone, before the hole"),
            pytest.param(FAR, 1, 1, DONTUNMAP, 0, errno.EINVAL, id="DONTUNMAP alone, before the hole"),
            pytest.param(FAR, 1, 2, KEEP, 0, errno.EINVAL, id="DONTUNMAP with two sizes, before the hole"),
            pytest.param(FAR + 1, 1, 1, 0, 0, errno.EINVAL, id="not aligned, before the hole"),
            pytest.param(FAR, 1, 0, 0, 0, errno.EINVAL, id="no new size, before the hole"),
            pytest.param(FAR, 1, 1, 0, 0, errno.EFAULT, id="nothing there, although nothing is to do"),
            pytest.param(FAR, 2, 1, TO, 1, errno.EFAULT, id="nothing there, before the new place is looked at"),
            pytest.param(BASE, 1, 1, TO, FAR + 1, errno.EINVAL, id="new place not aligned"),
            pytest.param(BASE, 9, 1 << 40, TO, FAR, errno.EINVAL, id="new size over user space, before the old one"),
            pytest.param(BASE, 9, 2, TO, TASK_SIZE - PAGE_SIZE, errno.EINVAL, id="new place past the end"),
            pytest.param(BASE, 2, 1, TO, page(1), errno.EINVAL, id="new place in the old one"),
            pytest.param(BASE, 1, 2, TO, page(-1), errno.EINVAL, id="new place over the old one's start"),
            pytest.param(BASE, 2, 2, TO, BASE, errno.EINVAL, id="onto itself"),
            pytest.param(BASE, 2, 2, KEEP, page(1), errno.EINVAL, id="DONTUNMAP's hint in the old one"),
            pytest.param(BASE, 0, 1, MAYMOVE, 0, errno.EINVAL, id="old size 0 of private memory"),
            pytest.param(BASE, 0, 1, TO, FAR, errno.EINVAL, id="old size 0 of private memory, to a place"),
            pytest.param(BASE, 5, 6, MAYMOVE, 0, errno.EFAULT, id="past the VMA's end"),
            pytest.param(page(3), 2, 3, MAYMOVE, 0, errno.EFAULT, id="across two VMAs"),
            pytest.param(page(2), 3, 3, KEEP, 0, errno.EFAULT, id="DONTUNMAP across two VMAs"),
            pytest.param(BASE, 4, 5, 0, 0, errno.ENOMEM, id="no room behind it and must not move"),
            pytest.param(BASE, 3, 5, 0, 0, errno.ENOMEM, id="not at the VMA's end and must not move"),
            pytest.param(page(4), 4, 1 << 36, 0, 0, errno.ENOMEM, id="grows past user space"),
            pytest.param(page(4), 4, 1 << 36, MAYMOVE, 0, errno.ENOMEM, id="moves to no room"),
        ],
    )
    def test_row(self, mm: MmStruct, addr: int, old: int, new: int, flags: int, to: int, expected: int) -> None:
        mmap(mm, 4, at=BASE)
        mmap(mm, 4, READ, at=page(4))
        before = layout(mm)
        assert errno_of(lambda: remap(mm, addr, old, new, flags, to)) == expected
        assert layout(mm) == before

    def test_a_size_that_rounds_up_to_nothing(self, mm: MmStruct) -> None:
        assert errno_of(lambda: do_mremap(mm, BASE, 0, (1 << 64) - 1, 0, 0, privileged=False)) == errno.EINVAL

    def test_an_offset_that_wraps(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, READ, SHARED, at=BASE, file=file)
        vma_at(mm, BASE).pgoff = (1 << 64) - 2
        assert errno_of(lambda: remap(mm, BASE, 1, 3, MAYMOVE)) == errno.EINVAL
        vma_at(mm, BASE).pgoff = 0

    def test_memory_that_must_not_expand(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        mm.set_vma_flags(vma_at(mm, BASE), vma_at(mm, BASE).vm_flags | VM_DONTEXPAND)
        assert errno_of(lambda: remap(mm, BASE, 2, 2, KEEP)) == errno.EINVAL
        assert errno_of(lambda: remap(mm, BASE, 3, 3, KEEP)) == errno.EINVAL
        assert errno_of(lambda: remap(mm, BASE, 3, 4, MAYMOVE)) == errno.EFAULT
        assert errno_of(lambda: remap(mm, BASE, 2, 4, MAYMOVE)) == errno.EFAULT
        assert remap(mm, BASE, 2, 2, TO, FAR) == FAR
        assert remap(mm, FAR, 2, 1) == FAR

    def test_too_low_a_place(self, mm: MmStruct) -> None:
        """get_unmapped_area() says so after what lay at the place has gone."""
        mmap(mm, 1, at=BASE)
        assert errno_of(lambda: remap(mm, BASE, 1, 1, TO, PAGE_SIZE)) == errno.EPERM
        assert remap(mm, BASE, 1, 1, TO, PAGE_SIZE, privileged=True) == PAGE_SIZE


class TestShrinkErrors:
    """The tail is a munmap like any other."""

    def test_a_tail_past_user_space(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        assert errno_of(lambda: remap(mm, BASE, 1 << 40, 1)) == errno.EINVAL
        assert layout(mm) == [(0, 2, RW)]

    def test_too_many_mappings(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        machine.sysctl.max_map_count = 1
        assert errno_of(lambda: remap(mm, BASE, 3, 1)) == errno.ENOMEM
        assert layout(mm) == [(0, 4, RW)]
        assert remap(mm, BASE, 4, 1) == BASE


class TestLimits:
    """RLIMIT_MEMLOCK is EAGAIN and comes before RLIMIT_AS and RLIMIT_DATA, which are ENOMEM."""

    def test_locked_memory(self, mm: MmStruct) -> None:
        mmap(mm, 2, RW, LOCKED, at=BASE)
        mm.rlimits.soft[Rlimit.MEMLOCK] = 3 * PAGE_SIZE
        mm.rlimits.soft[Rlimit.AS] = 2 * PAGE_SIZE
        assert errno_of(lambda: remap(mm, BASE, 2, 4)) == errno.EAGAIN
        assert errno_of(lambda: remap(mm, BASE, 2, 4, TO, FAR)) == errno.EAGAIN
        assert errno_of(lambda: remap(mm, BASE, 2, 3)) == errno.ENOMEM
        assert errno_of(lambda: remap(mm, BASE, 2, 4, privileged=True)) == errno.ENOMEM
        mm.rlimits.soft[Rlimit.AS] = 4 * PAGE_SIZE
        assert remap(mm, BASE, 2, 3) == BASE
        assert remap(mm, BASE, 3, 4, privileged=True) == BASE

    @pytest.mark.parametrize("resource", [Rlimit.AS, Rlimit.DATA])
    def test_the_size_of_memory(self, mm: MmStruct, resource: Rlimit) -> None:
        mmap(mm, 2, at=BASE)
        mm.rlimits.soft[resource] = 4 * PAGE_SIZE
        assert errno_of(lambda: remap(mm, BASE, 2, 5)) == errno.ENOMEM
        assert errno_of(lambda: remap(mm, BASE, 2, 5, MAYMOVE)) == errno.ENOMEM
        assert remap(mm, BASE, 2, 4) == BASE
        assert remap(mm, BASE, 4, 4, TO, FAR) == FAR  # A move needs room for nothing more.
        assert errno_of(lambda: remap(mm, FAR, 4, 4, KEEP)) == errno.ENOMEM
        assert layout(mm) == [(1000, 4, RW)]

    def test_more_than_the_machine_has(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        mmap(mm, 1, READ, at=page(3))
        pages = machine.frames.total_pages + 3
        assert errno_of(lambda: remap(mm, BASE, 2, pages, MAYMOVE)) == errno.ENOMEM
        assert errno_of(lambda: remap(mm, BASE, 2, pages, TO, FAR)) == errno.ENOMEM
        machine.sysctl.overcommit_memory = 1
        remap(mm, BASE, 2, pages, TO, FAR)

    def test_the_count_of_mappings(self, machine: Machine, mm: MmStruct) -> None:
        """A move to a place wants five to spare, any other three: mremap_to() and move_vma()."""
        mmap(mm, 2, at=BASE)
        mmap(mm, 1, READ, at=page(2))
        machine.sysctl.max_map_count = 5
        assert errno_of(lambda: remap(mm, BASE, 2, 3, MAYMOVE)) == errno.ENOMEM
        machine.sysctl.max_map_count = 6
        new = remap(mm, BASE, 2, 3, MAYMOVE)
        machine.sysctl.max_map_count = 7
        assert errno_of(lambda: remap(mm, new, 3, 3, TO, FAR)) == errno.ENOMEM
        assert errno_of(lambda: remap(mm, new, 3, 3, KEEP)) == errno.ENOMEM
        machine.sysctl.max_map_count = 8
        assert remap(mm, new, 3, 3, TO, FAR) == FAR


class TestLateFailure:
    """What has happened before an error that comes late."""

    def test_the_new_place_has_gone(self, mm: MmStruct) -> None:
        """mremap_to() unmaps it before vma_to_resize() finds that the old range is no good."""
        mmap(mm, 2, at=BASE)
        mmap(mm, 4, READ, at=page(10))
        assert errno_of(lambda: remap(mm, BASE, 3, 3, TO, page(11))) == errno.EFAULT
        assert layout(mm) == [(0, 2, RW), (10, 1, READ)]

    def test_the_tail_has_gone(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        mm.rlimits.soft[Rlimit.AS] = 0
        assert errno_of(lambda: remap(mm, BASE, 4, 2, TO, PAGE_SIZE)) == errno.EPERM
        assert layout(mm) == [(0, 2, RW)]

    @pytest.mark.parametrize("flags", [TO, KEEP | FIXED])
    def test_without_frames_for_tables_it_moves_back(self, machine: Machine, mm: MmStruct, flags: int) -> None:
        """Five tables are needed at the new place; whichever fails, everything is where it was."""
        start, pages = BASE + PMD_SIZE // 2, 3 * 512
        mmap(mm, pages, at=start)
        mm_populate(mm, start, start + pages * PAGE_SIZE)
        store(mm, start, b"first")
        before = mm.page_table.walk.entries(start, start + pages * PAGE_SIZE).tolist()
        to = BASE + (1 << 39)
        free, failures = machine.frames.free_pages, 0
        for number in range(10):
            with machine.failing_allocation(number) as failed:
                code = failure(lambda: remap(mm, start, pages, pages, flags, to))
            assert code == (errno.ENOMEM if failed else 0)
            if not failed:
                break
            failures += 1
            assert mm.page_table.walk.entries(start, start + pages * PAGE_SIZE).tolist() == before
            assert [(vma.start, vma.nr_pages) for vma in mm.vmas] == [(start, pages)]
            assert machine.frames.free_pages == free
            machine.check()
        assert failures == 5  # A PUD, a PMD and three leaf tables.
        assert load(mm, to, 5) == b"first"

    def test_moving_back_leaves_its_neighbour_alone(self, machine: Machine, mm: MmStruct) -> None:
        """The new place had merged with what lies before it: only what was added goes."""
        to = BASE + (1 << 39) + PMD_SIZE - PAGE_SIZE
        mmap(mm, 1, at=to)
        mmap(mm, 4, at=BASE)
        load(mm, BASE)
        load(mm, page(3))
        with machine.failing_allocation(0):
            assert errno_of(lambda: remap(mm, BASE, 4, 4, TO, to + PAGE_SIZE)) == errno.ENOMEM
        assert [(vma.start, vma.nr_pages) for vma in mm.vmas] == [(BASE, 4), (to, 1)]
        assert entry(mm, BASE)
        assert entry(mm, page(3))


class Listener:
    """Notes which addresses it is told of."""

    def __init__(self, mm: MmStruct) -> None:
        self.pages: set[int] = set()
        mm.notifiers.append(self)

    def invalidate_range(self, start: int, end: int) -> None:
        self.pages |= set(range((start - BASE) // PAGE_SIZE, (end - BASE) // PAGE_SIZE))

    def release(self) -> None:
        pass

    def exec_mmap(self, new_mm: MmStruct) -> None:
        raise AssertionError("no execve here")


class TestNotified:
    """What a shadow page table must learn of: all that a move takes away and all that it brings."""

    def changed(self, mm: MmStruct, addr: int, old: int, new: int, flags: int = 0, to: int = 0) -> set[int]:
        listener = Listener(mm)
        remap(mm, addr, old, new, flags, to)
        mm.notifiers.remove(listener)
        return listener.pages

    def test_shrink_and_grow(self, mm: MmStruct) -> None:
        mmap(mm, 8, at=BASE)
        mm_populate(mm, BASE, page(8))
        assert self.changed(mm, BASE, 8, 5) >= {5, 6, 7}
        assert self.changed(mm, BASE, 5, 7) >= {5, 6}

    def test_move(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        mm_populate(mm, BASE, page(4))
        moved = self.changed(mm, page(1), 2, 2, TO, page(600))
        assert moved >= {1, 2, 600, 601}
        assert not moved & set(range(4, 600))

    def test_dont_unmap(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        mm_populate(mm, BASE, page(2))
        assert self.changed(mm, BASE, 2, 2, KEEP | FIXED, page(40)) >= {0, 1, 40, 41}

    def test_the_failed_move_too(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 1024, at=BASE)
        mm_populate(mm, BASE, page(1024))
        frames = [pfn_of(mm, BASE), pfn_of(mm, page(1023))]
        listener = Listener(mm)
        to = 512 * 512 * 512 + 1
        with machine.failing_allocation(4):
            assert errno_of(lambda: remap(mm, BASE, 1024, 1024, TO, page(to))) == errno.ENOMEM
        assert listener.pages >= set(range(512)) | set(range(to, to + 1024))
        assert [pfn_of(mm, BASE), pfn_of(mm, page(1023))] == frames

    def test_whole_tables_that_have_moved_come_back(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 1025, at=BASE)
        mm_populate(mm, BASE, page(1025))
        frames = [pfn_of(mm, page(number)) for number in range(1025)]
        listener = Listener(mm)
        to = 512 * 512 * 512
        with machine.failing_allocation(2):
            assert errno_of(lambda: remap(mm, BASE, 1025, 1025, TO, page(to))) == errno.ENOMEM
        assert listener.pages >= set(range(1024)) | set(range(to, to + 1024))
        assert [pfn_of(mm, page(number)) for number in range(1025)] == frames
        remap(mm, BASE, 1025, 1025, TO, page(to))
        assert [pfn_of(mm, page(to + number)) for number in range(1025)] == frames

    def test_shared_memory_mapped_a_second_time(self, mm: MmStruct) -> None:
        mmap(mm, 2, RW, SHARED_ANON, at=BASE)
        assert self.changed(mm, BASE, 0, 2, TO, page(9)) >= {9, 10}
