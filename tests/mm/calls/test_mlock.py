"""mlock and its kin: rights, limits, holes, flags and merges; tests/syscalls has what is faulted in."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.calls.mlock import (
    can_do_mlock,
    do_mlock,
    do_mlockall,
    do_munlock,
    mlock_future_ok,
    mlockall_flags_in_pieces,
)
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.vm_flags import VM_LOCKED, VM_LOCKED_MASK, VM_LOCKONFAULT
from shared.uapi.mman import Map, Mcl
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import RLIM_INFINITY, Rlimit
from tests.support.machine import ANON, BASE, NONE, READ, RW, Machine, errno_of, layout, mmap, page

CURRENT, FUTURE, ONFAULT = Mcl.CURRENT.value, Mcl.FUTURE.value, Mcl.ONFAULT.value
ON_FAULT = VM_LOCKED | VM_LOCKONFAULT
WRAPS = (1 << 64) - 1


def lock(mm: MmStruct, first: int, count: int, vm_flags: int = VM_LOCKED, *, privileged: bool = False) -> None:
    do_mlock(mm, page(first), count * PAGE_SIZE, vm_flags, privileged=privileged)


def unlock(mm: MmStruct, first: int, count: int) -> None:
    do_munlock(mm, page(first), count * PAGE_SIZE)


def locked(mm: MmStruct) -> dict[int, int]:
    """Return the lock flags of each page that has any, by page from BASE."""
    return {
        (at - BASE) // PAGE_SIZE: vma.vm_flags & VM_LOCKED_MASK
        for vma in mm.vmas
        for at in range(vma.start, vma.end, PAGE_SIZE)
        if vma.vm_flags & VM_LOCKED_MASK
    }


class TestLock:
    """Source: Linux v6.8 mm/mlock.c:do_mlock(), apply_vma_lock_flags(), mlock_fixup()."""

    def test_the_range_is_rounded_outward(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        assert do_mlock(mm, page(1) + 4000, 200, VM_LOCKED, privileged=False) == (page(1), page(3))
        assert locked(mm) == {1: VM_LOCKED, 2: VM_LOCKED}
        assert mm.locked_vm == 2
        do_munlock(mm, page(2) + 1, 1)
        assert locked(mm) == {1: VM_LOCKED}

    def test_nothing_to_lock(self, mm: MmStruct) -> None:
        """Not even a mapping is needed for no page; one byte that is not aligned is a page."""
        assert do_mlock(mm, BASE, 0, VM_LOCKED, privileged=False) == (BASE, BASE)
        do_munlock(mm, BASE, 0)
        assert errno_of(lambda: do_mlock(mm, BASE + 1, 0, VM_LOCKED, privileged=False)) == errno.ENOMEM

    def test_parts_split_and_merge_back(self, mm: MmStruct) -> None:
        mmap(mm, 6, at=BASE)
        lock(mm, 1, 2)
        lock(mm, 3, 2)
        assert layout(mm) == [(0, 1, RW), (1, 4, RW), (5, 1, RW)]
        unlock(mm, 0, 6)
        assert layout(mm) == [(0, 6, RW)]
        assert mm.locked_vm == 0

    def test_on_fault_and_back(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        lock(mm, 0, 3, ON_FAULT)
        lock(mm, 1, 1)
        assert locked(mm) == {0: ON_FAULT, 1: VM_LOCKED, 2: ON_FAULT}
        assert mm.locked_vm == 3
        lock(mm, 1, 1, ON_FAULT)
        assert layout(mm) == [(0, 3, RW)]

    def test_several_mappings_at_once(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, READ, at=page(2))
        mmap(mm, 2, NONE, at=page(4))
        lock(mm, 1, 4)
        assert sorted(locked(mm)) == [1, 2, 3, 4]

    def test_a_second_time_is_nothing(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        lock(mm, 0, 3)
        machine.sysctl.max_map_count = 1
        lock(mm, 1, 1)
        assert (layout(mm), mm.locked_vm) == ([(0, 3, RW)], 3)


class TestHoles:
    """ENOMEM; what lies before the hole has been locked, what lies behind it has not."""

    @pytest.mark.parametrize(
        ("first", "count", "done"),
        [(0, 5, {0, 1}), (0, 3, {0, 1}), (2, 2, set()), (1, 2, {1}), (3, 3, {3, 4}), (9, 1, set())],
    )
    def test_lock_and_unlock(self, mm: MmStruct, first: int, count: int, done: set[int]) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, READ, at=page(3))
        assert errno_of(lambda: lock(mm, first, count)) == errno.ENOMEM
        assert set(locked(mm)) == done
        lock(mm, 0, 2)
        lock(mm, 3, 2)
        assert errno_of(lambda: unlock(mm, first, count)) == errno.ENOMEM
        assert set(locked(mm)) == {0, 1, 3, 4} - done

    def test_too_many_mappings(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        machine.sysctl.max_map_count = 2
        assert errno_of(lambda: lock(mm, 1, 1)) == errno.ENOMEM
        assert locked(mm) == {}
        lock(mm, 1, 2)

    def test_a_range_that_wraps(self, mm: MmStruct) -> None:
        """The rounded length itself wraps to 0 first, as Linux's does."""
        assert errno_of(lambda: do_munlock(mm, BASE, (1 << 64) - PAGE_SIZE)) == errno.EINVAL
        assert errno_of(lambda: do_mlock(mm, BASE, (1 << 64) - BASE, VM_LOCKED, privileged=True)) == errno.EINVAL
        do_munlock(mm, BASE, WRAPS)


class TestLimits:
    """RLIMIT_MEMLOCK, and CAP_IPC_LOCK over it."""

    def test_none_at_all(self, mm: MmStruct) -> None:
        mm.rlimits.soft[Rlimit.MEMLOCK] = 0
        assert not can_do_mlock(mm, False)
        assert errno_of(lambda: do_mlock(mm, BASE, WRAPS, VM_LOCKED, privileged=False)) == errno.EPERM
        assert errno_of(lambda: do_mlockall(mm, CURRENT, privileged=False)) == errno.EPERM
        mmap(mm, 1, at=BASE)
        lock(mm, 0, 1, privileged=True)
        unlock(mm, 0, 1)  # Anybody may unlock.

    def test_less_than_a_page_is_a_right_without_room(self, mm: MmStruct) -> None:
        mm.rlimits.soft[Rlimit.MEMLOCK] = PAGE_SIZE - 1
        mmap(mm, 1, at=BASE)
        assert errno_of(lambda: lock(mm, 0, 1)) == errno.ENOMEM

    def test_over_it(self, mm: MmStruct) -> None:
        mmap(mm, 6, at=BASE)
        mm.rlimits.soft[Rlimit.MEMLOCK] = 3 * PAGE_SIZE
        assert errno_of(lambda: lock(mm, 0, 4)) == errno.ENOMEM
        assert mm.locked_vm == 0
        lock(mm, 0, 3)
        assert errno_of(lambda: lock(mm, 3, 1)) == errno.ENOMEM
        lock(mm, 3, 1, privileged=True)
        assert mm.locked_vm == 4

    def test_what_is_locked_already_counts_once(self, mm: MmStruct) -> None:
        mmap(mm, 6, at=BASE)
        mm.rlimits.soft[Rlimit.MEMLOCK] = 4 * PAGE_SIZE
        lock(mm, 1, 3)
        lock(mm, 0, 4)
        assert mm.locked_vm == 4
        assert errno_of(lambda: lock(mm, 0, 5)) == errno.ENOMEM
        assert locked(mm).keys() == {0, 1, 2, 3}

    def test_over_it_comes_before_the_hole_and_the_wrap(self, mm: MmStruct) -> None:
        mm.rlimits.soft[Rlimit.MEMLOCK] = PAGE_SIZE
        wraps = (1 << 64) - BASE
        assert errno_of(lambda: do_mlock(mm, BASE, wraps, VM_LOCKED, privileged=False)) == errno.ENOMEM

    def test_for_what_is_mapped_later(self, mm: MmStruct) -> None:
        mm.rlimits.soft[Rlimit.MEMLOCK] = 2 * PAGE_SIZE
        assert mlock_future_ok(mm, 0, 1 << 40, False)
        assert mlock_future_ok(mm, VM_LOCKED, 2 * PAGE_SIZE, False)
        assert not mlock_future_ok(mm, VM_LOCKED, 3 * PAGE_SIZE, False)
        assert mlock_future_ok(mm, VM_LOCKED, 3 * PAGE_SIZE, True)
        mm.rlimits.soft[Rlimit.MEMLOCK] = RLIM_INFINITY
        assert mlock_future_ok(mm, VM_LOCKED, 1 << 46, False)


class TestLockAll:
    """Source: Linux v6.8 mm/mlock.c:SYSCALL_DEFINE1(mlockall), apply_mlockall_flags()."""

    @pytest.mark.parametrize("flags", [0, ONFAULT, 8, CURRENT | 8, 1 << 32 | CURRENT])
    def test_flags(self, mm: MmStruct, flags: int) -> None:
        mm.rlimits.soft[Rlimit.MEMLOCK] = 0
        assert errno_of(lambda: do_mlockall(mm, flags, privileged=False)) == errno.EINVAL

    @pytest.mark.parametrize(
        ("flags", "now", "later"),
        [
            (CURRENT, VM_LOCKED, 0),
            (FUTURE, 0, VM_LOCKED),
            (CURRENT | FUTURE, VM_LOCKED, VM_LOCKED),
            (CURRENT | ONFAULT, ON_FAULT, 0),
            (FUTURE | ONFAULT, 0, ON_FAULT),
            (CURRENT | FUTURE | ONFAULT, ON_FAULT, ON_FAULT),
        ],
    )
    def test_now_and_later(self, mm: MmStruct, flags: int, now: int, later: int) -> None:
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, NONE, at=page(2))
        do_mlockall(mm, flags, privileged=False)
        mmap(mm, 1, at=page(4))
        assert {number: locked(mm).get(number, 0) for number in (0, 2, 4)} == {0: now, 2: now, 4: later}
        assert mm.locked_vm == 2 * bool(now) + bool(later)

    def test_each_call_is_said_anew(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        do_mlockall(mm, CURRENT | FUTURE, privileged=False)
        do_mlockall(mm, CURRENT, privileged=False)
        mmap(mm, 1, READ, at=page(1))
        assert locked(mm) == {0: VM_LOCKED}
        do_mlockall(mm, FUTURE | ONFAULT, privileged=False)
        assert (mm.def_flags, locked(mm)) == (ON_FAULT, {0: VM_LOCKED})

    def test_unlock_all(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        mmap(mm, 1, READ, ANON | Map.LOCKED.value, at=page(2))
        do_mlockall(mm, FUTURE, privileged=False)
        run_at_once(mlockall_flags_in_pieces(mm, 0))
        assert (mm.def_flags, mm.locked_vm, locked(mm)) == (0, 0, {})

    def test_its_limit_is_the_size_of_all(self, mm: MmStruct) -> None:
        mmap(mm, 3, NONE, at=BASE)
        mm.rlimits.soft[Rlimit.MEMLOCK] = 2 * PAGE_SIZE
        assert errno_of(lambda: do_mlockall(mm, CURRENT | FUTURE, privileged=False)) == errno.ENOMEM
        assert mm.def_flags == 0
        do_mlockall(mm, FUTURE, privileged=False)
        assert errno_of(lambda: mmap(mm, 3)) == errno.EAGAIN
        do_mlockall(mm, CURRENT, privileged=True)
        assert mm.locked_vm == 3

    def test_neighbours_merge_under_it(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        lock(mm, 1, 1)
        do_mlockall(mm, CURRENT, privileged=False)
        assert layout(mm) == [(0, 3, RW)]

    def test_one_that_cannot_be_changed_is_passed_over(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        machine.sysctl.max_map_count = 0
        do_mlockall(mm, CURRENT, privileged=False)
        assert mm.locked_vm == 2
