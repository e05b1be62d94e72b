"""RLIMIT_AS and RLIMIT_DATA, vm.overcommit_memory, MAP_NORESERVE and vm.max_map_count, each at its edge."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.calls.mmap import may_expand_vm
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.limits import Rlimits
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.vm_flags import VM_ACCOUNT, VM_GROWSDOWN, VM_NORESERVE, VM_READ, VM_SHARED, VM_WRITE
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import RLIM_INFINITY, Rlimit
from tests.support.machine import ANON, BASE, NONE, PRIVATE, READ, RW, Machine, errno_of, layout, mmap, page, vma_at

NORESERVE = Map.NORESERVE.value
DATA = VM_READ | VM_WRITE


class TestMayExpand:
    """Source: Linux v6.8 mm/mmap.c:may_expand_vm()."""

    def test_as_in_whole_pages(self, mm: MmStruct) -> None:
        mmap(mm, 2, READ)
        mm.rlimits.soft[Rlimit.AS] = 5 * PAGE_SIZE - 1
        assert [may_expand_vm(mm, 0, pages) for pages in (0, 2, 3)] == [True, True, False]
        mm.rlimits.soft[Rlimit.AS] = RLIM_INFINITY
        assert may_expand_vm(mm, 0, 1 << 40)

    def test_data_is_private_and_writable(self, mm: MmStruct) -> None:
        mmap(mm, 2)
        mm.rlimits.soft[Rlimit.DATA] = 3 * PAGE_SIZE
        assert [may_expand_vm(mm, DATA, pages) for pages in (1, 2)] == [True, False]
        for vm_flags in (VM_READ, DATA | VM_SHARED, DATA | VM_GROWSDOWN):
            assert may_expand_vm(mm, vm_flags, 2)

    def test_a_data_limit_of_nothing_is_the_hard_one(self, mm: MmStruct) -> None:
        """Linux's workaround for valgrind: a soft limit of 0 counts as the hard limit."""
        mm.rlimits.soft[Rlimit.DATA], mm.rlimits.hard[Rlimit.DATA] = 0, 4 * PAGE_SIZE
        assert [may_expand_vm(mm, DATA, pages) for pages in (4, 5)] == [True, False]
        mm.rlimits.soft[Rlimit.DATA] = 1
        assert not may_expand_vm(mm, DATA, 1)

    def test_a_copy_of_the_limits_is_independent(self) -> None:
        limits = Rlimits()
        copy = limits.copy()
        copy.soft[Rlimit.AS] = copy.hard[Rlimit.AS] = 1
        assert (limits.soft[Rlimit.AS], limits.hard[Rlimit.AS]) == (RLIM_INFINITY, RLIM_INFINITY)
        assert limits.pages(Rlimit.STACK) == 2048


class TestOvercommit:
    """vm.overcommit_memory 0 and 1: one request alone may not be more than the machine has, or may."""

    def test_obvious_overcommits_are_refused(self, machine: Machine, mm: MmStruct) -> None:
        total = machine.frames.total_pages
        mmap(mm, total, at=BASE)
        mmap(mm, total, at=page(total))
        assert errno_of(lambda: mmap(mm, total + 1)) == errno.ENOMEM
        machine.sysctl.overcommit_memory = 1
        mmap(mm, total + 1)

    def test_memory_that_promises_nothing(self, machine: Machine, mm: MmStruct) -> None:
        pages = machine.frames.total_pages + 1
        for number, (prot, flags) in enumerate([(READ, ANON), (NONE, ANON), (RW, ANON | NORESERVE)]):
            assert not vma_at(mm, mmap(mm, pages, prot, flags, at=page(number << 20))).vm_flags & VM_ACCOUNT

    def test_making_it_writable_is_the_promise(self, machine: Machine, mm: MmStruct) -> None:
        pages = machine.frames.total_pages + 1
        mmap(mm, pages, READ, at=BASE)
        mmap(mm, pages, READ, ANON | NORESERVE, at=page(1 << 20))
        assert errno_of(lambda: do_mprotect(mm, BASE, pages * PAGE_SIZE, RW)) == errno.ENOMEM
        do_mprotect(mm, BASE, PAGE_SIZE, RW)
        assert vma_at(mm, BASE).vm_flags & VM_ACCOUNT
        do_mprotect(mm, page(1 << 20), pages * PAGE_SIZE, RW)

    def test_a_private_file_is_promised_when_writable(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, PRIVATE, at=page(0), file=file)
        mmap(mm, 1, READ, PRIVATE, at=page(2), file=file)
        assert [bool(vma.vm_flags & VM_ACCOUNT) for vma in mm.vmas] == [True, False]

    @pytest.mark.parametrize(("mode", "kept"), [(0, True), (1, True), (2, False)])
    def test_noreserve_means_nothing_when_promises_are_kept(
        self, machine: Machine, mm: MmStruct, mode: int, kept: bool
    ) -> None:
        machine.sysctl.overcommit_memory = mode
        mmap(mm, 1, RW, ANON | NORESERVE, at=BASE)
        assert bool(vma_at(mm, BASE).vm_flags & VM_NORESERVE) is kept
        assert bool(vma_at(mm, BASE).vm_flags & VM_ACCOUNT) is not kept


class TestMaxMapCount:
    """A mapping may be made at the limit, and none beyond; a split may not pass it."""

    def test_mmap(self, machine: Machine, mm: MmStruct) -> None:
        machine.sysctl.max_map_count = 2
        for number in (0, 2, 4):
            mmap(mm, 1, at=page(number))
        assert errno_of(lambda: mmap(mm, 1, at=page(6))) == errno.ENOMEM
        assert errno_of(lambda: mmap(mm, 1, at=page(1))) == errno.ENOMEM  # Although it would merge.
        do_munmap(mm, page(0), PAGE_SIZE)
        mmap(mm, 1, at=page(6))

    def test_munmap_of_a_middle(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        machine.sysctl.max_map_count = 1
        assert errno_of(lambda: do_munmap(mm, page(1), PAGE_SIZE)) == errno.ENOMEM
        do_munmap(mm, page(2), PAGE_SIZE)
        assert layout(mm) == [(0, 2, RW)]

    def test_mprotect_of_a_middle(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        machine.sysctl.max_map_count = 2
        assert errno_of(lambda: do_mprotect(mm, page(1), PAGE_SIZE, READ)) == errno.ENOMEM
        machine.sysctl.max_map_count = 3
        do_mprotect(mm, page(1), PAGE_SIZE, READ)
        assert layout(mm) == [(0, 1, RW), (1, 1, READ), (2, 1, RW)]
