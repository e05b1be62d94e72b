"""mmap: the table of errors in its order, where mappings go, and what they are."""

from __future__ import annotations

import errno
from functools import partial

import pytest

from kerneld.mm.calls.mmap import do_mmap
from kerneld.mm.space.mm import MMAP_BASE, MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES
from kerneld.mm.vm_flags import VM_ACCOUNT, VM_LOCKED, VM_MAYEXEC, VM_MAYWRITE, VM_NORESERVE, VM_SHARED
from shared.uapi.fcntl import F_SEAL_WRITE
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from shared.uapi.resource import Rlimit
from tests.support.machine import (
    ANON,
    BASE,
    EXEC,
    FIXED,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    WRITE,
    Machine,
    entry,
    errno_of,
    grows_down,
    layout,
    mmap,
    page,
    store,
    vma_at,
)

NOREPLACE, LOCKED, GROWSDOWN = Map.FIXED_NOREPLACE.value, Map.LOCKED.value, Map.GROWSDOWN.value
HUGE = (1 << 64) - 1


class TestErrorsInOrder:
    """Each call has the fault of its row and those of rows below it; the row's own errno must win."""

    def call(self, mm: MmStruct, addr: int, length: int, flags: int, prot: int = RW, **options: object) -> int:
        file, pgoff = options.get("file"), options.get("pgoff", 0)
        return errno_of(partial(do_mmap, mm, addr, length, prot, flags, file, pgoff, privileged=False))  # type: ignore[arg-type]

    def test_no_length(self, mm: MmStruct) -> None:
        assert self.call(mm, 1, 0, ANON | FIXED, pgoff=HUGE) == errno.EINVAL

    def test_a_length_that_rounds_up_to_nothing(self, mm: MmStruct) -> None:
        assert self.call(mm, 1, HUGE, ANON | FIXED, pgoff=HUGE) == errno.ENOMEM

    def test_an_offset_that_wraps(self, machine: Machine, mm: MmStruct) -> None:
        machine.sysctl.max_map_count = -1
        assert self.call(mm, 1, PAGE_SIZE, ANON | FIXED, pgoff=HUGE) == errno.EOVERFLOW

    def test_too_many_mappings(self, machine: Machine, mm: MmStruct) -> None:
        machine.sysctl.max_map_count = -1
        assert self.call(mm, 1, PAGE_SIZE, ANON | FIXED) == errno.ENOMEM

    def test_no_room(self, mm: MmStruct) -> None:
        assert self.call(mm, 1, TASK_SIZE + PAGE_SIZE, ANON | FIXED) == errno.ENOMEM
        assert self.call(mm, TASK_SIZE + 1, PAGE_SIZE, ANON | FIXED) == errno.ENOMEM
        assert self.call(mm, TASK_SIZE - PAGE_SIZE, 2 * PAGE_SIZE, ANON | FIXED) == errno.ENOMEM
        assert self.call(mm, 0, TASK_SIZE, ANON) == errno.ENOMEM

    def test_an_address_that_is_not_aligned(self, mm: MmStruct) -> None:
        assert self.call(mm, 1, PAGE_SIZE, ANON | FIXED) == errno.EINVAL

    def test_too_low_an_address(self, mm: MmStruct) -> None:
        assert self.call(mm, 0, PAGE_SIZE, ANON | FIXED) == errno.EPERM
        assert self.call(mm, 0xF000, PAGE_SIZE, FIXED) == errno.EPERM
        assert do_mmap(mm, 0, PAGE_SIZE, RW, ANON | FIXED, None, 0, privileged=True) == 0

    def test_over_a_mapping(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mm.rlimits.soft[Rlimit.MEMLOCK] = 0
        assert self.call(mm, page(1), 2 * PAGE_SIZE, ANON | NOREPLACE | LOCKED) == errno.EEXIST
        assert do_mmap(mm, page(2), PAGE_SIZE, RW, ANON | NOREPLACE, None, 0, privileged=False) == page(2)

    def test_locked_without_the_right(self, mm: MmStruct) -> None:
        mm.rlimits.soft[Rlimit.MEMLOCK] = 0
        assert self.call(mm, 0, PAGE_SIZE, LOCKED) == errno.EPERM

    def test_locked_over_the_limit(self, mm: MmStruct) -> None:
        mm.rlimits.soft[Rlimit.MEMLOCK] = 3 * PAGE_SIZE
        mmap(mm, 2, RW, ANON | LOCKED)
        assert self.call(mm, 0, 2 * PAGE_SIZE, LOCKED) == errno.EAGAIN
        mmap(mm, 1, RW, ANON | LOCKED)
        mmap(mm, 1, RW, ANON | LOCKED, privileged=True)

    @pytest.mark.parametrize("flags", [0, Map.ANONYMOUS.value, Map.SHARED_VALIDATE.value | Map.ANONYMOUS.value])
    def test_neither_shared_nor_private(self, mm: MmStruct, flags: int) -> None:
        assert self.call(mm, 0, PAGE_SIZE, flags) == errno.EINVAL

    def test_a_shared_stack(self, mm: MmStruct) -> None:
        assert self.call(mm, 0, PAGE_SIZE, SHARED_ANON | GROWSDOWN) == errno.EINVAL

    def test_past_the_largest_file(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"", readable=False)
        pgoff = (1 << 63 >> 12) - 1
        assert self.call(mm, 0, PAGE_SIZE, 0, file=file, pgoff=pgoff) == errno.EOVERFLOW
        assert self.call(mm, 0, PAGE_SIZE, 0, file=file, pgoff=pgoff - 1) == errno.EINVAL

    def test_a_flag_that_the_file_does_not_know(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"", readable=False, writable=False)
        validate = Map.SHARED_VALIDATE.value
        assert self.call(mm, 0, PAGE_SIZE, validate | 0x200_0000, file=file) == errno.EOPNOTSUPP
        assert self.call(mm, 0, PAGE_SIZE, validate, file=file) == errno.EACCES
        # A disk's file system knows MAP_SYNC, and refuses it last of all where the disk is no persistent memory.
        assert self.call(mm, 0, PAGE_SIZE, validate | Map.SYNC.value, file=file) == errno.EACCES
        file.mapping.is_shmem = True
        assert self.call(mm, 0, PAGE_SIZE, validate | Map.SYNC.value, file=file) == errno.EOPNOTSUPP
        good, _ = machine.new_file(b"")
        assert self.call(mm, 0, PAGE_SIZE, validate | Map.SYNC.value, file=good) == errno.EOPNOTSUPP
        mmap(mm, 1, RW, validate, file=good)
        mmap(mm, 1, RW, SHARED | 0x200_0000, file=good)  # MAP_SHARED asks nobody about its flags.

    def test_a_disk_refuses_map_sync_last(self, machine: Machine, mm: MmStruct) -> None:
        unreadable, _ = machine.new_file(b"", readable=False, writable=False)
        readable, _ = machine.new_file(b"x")
        sync = Map.SHARED_VALIDATE.value | Map.SYNC.value
        assert self.call(mm, 0, PAGE_SIZE, sync, file=unreadable) == errno.EACCES
        assert self.call(mm, 0, PAGE_SIZE, sync, file=readable) == errno.EOPNOTSUPP

    @pytest.mark.parametrize(
        ("readable", "writable", "prot", "flags", "expected"),
        [
            (True, False, RW, SHARED, errno.EACCES),
            (True, False, READ, SHARED, 0),
            (True, False, RW, PRIVATE, 0),
            (False, True, RW, SHARED, errno.EACCES),
            (False, True, WRITE, PRIVATE, errno.EACCES),
            (True, True, RW, SHARED, 0),
        ],
    )
    def test_how_the_file_is_open(
        self, machine: Machine, mm: MmStruct, readable: bool, writable: bool, prot: int, flags: int, expected: int
    ) -> None:
        file, _ = machine.new_file(b"", readable=readable, writable=writable)
        if expected:
            assert self.call(mm, 0, PAGE_SIZE, flags, prot, file=file) == expected
        else:
            mmap(mm, 1, prot, flags, file=file)

    def test_a_stack_of_a_file(self, machine: Machine, mm: MmStruct) -> None:
        unreadable, _ = machine.new_file(b"", readable=False)
        assert self.call(mm, 0, PAGE_SIZE, PRIVATE | GROWSDOWN, file=unreadable) == errno.EACCES
        file, _ = machine.new_file(b"")
        assert self.call(mm, 0, PAGE_SIZE, PRIVATE | GROWSDOWN, file=file) == errno.EINVAL

    def test_files_that_forbid(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGE_SIZE))
        file.noexec = True
        assert self.call(mm, 0, PAGE_SIZE, PRIVATE, READ | EXEC, file=file) == errno.EPERM
        assert not vma_at(mm, mmap(mm, 1, READ, PRIVATE, file=file)).vm_flags & VM_MAYEXEC
        file.mappable = False
        assert self.call(mm, 0, PAGE_SIZE, PRIVATE, READ, file=file) == errno.ENODEV

    def test_a_file_sealed_against_writing(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGE_SIZE))
        file.seals = F_SEAL_WRITE
        assert self.call(mm, 0, PAGE_SIZE, SHARED, RW, file=file) == errno.EPERM
        assert not vma_at(mm, mmap(mm, 1, READ, SHARED, file=file)).vm_flags & VM_MAYWRITE
        mmap(mm, 1, RW, PRIVATE, file=file)

    def test_over_a_limit_and_nothing_is_unmapped(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mm.rlimits.soft[Rlimit.AS] = 4 * PAGE_SIZE
        assert self.call(mm, page(0), 5 * PAGE_SIZE, ANON | FIXED) == errno.ENOMEM
        assert layout(mm) == [(0, 2, RW)]
        mmap(mm, 4, at=page(0))
        mm.rlimits.soft[Rlimit.DATA] = 4 * PAGE_SIZE
        mm.rlimits.soft[Rlimit.AS] = 100 * PAGE_SIZE
        assert self.call(mm, 0, PAGE_SIZE, ANON) == errno.ENOMEM
        mmap(mm, 1, READ)
        mmap(mm, 1, RW, SHARED_ANON)

    def test_more_than_the_machine_has(self, machine: Machine, mm: MmStruct) -> None:
        pages = machine.frames.total_pages + 1
        assert self.call(mm, 0, pages * PAGE_SIZE, ANON) == errno.ENOMEM
        mmap(mm, pages, RW, ANON | Map.NORESERVE.value)
        mmap(mm, pages, NONE)


class TestPlaces:
    """The choice of an address."""

    def test_from_the_top_downwards(self, mm: MmStruct) -> None:
        assert mmap(mm, 3) == MMAP_BASE - 3 * PAGE_SIZE
        assert mmap(mm, 1, READ) == MMAP_BASE - 4 * PAGE_SIZE

    def test_into_the_highest_gap_that_fits(self, mm: MmStruct) -> None:
        first = mmap(mm, 1, READ)
        hole = mmap(mm, 2)
        mmap(mm, 1, READ)
        do_munmap(mm, hole, 2 * PAGE_SIZE)
        assert mmap(mm, 3, RW) < hole
        assert mmap(mm, 2, RW) == hole == first - 2 * PAGE_SIZE

    def test_a_hint_is_taken_where_it_is_free(self, mm: MmStruct) -> None:
        assert do_mmap(mm, BASE + 5, PAGE_SIZE, RW, ANON, None, 0, privileged=False) == BASE
        assert do_mmap(mm, BASE, PAGE_SIZE, READ, ANON, None, 0, privileged=False) == MMAP_BASE - PAGE_SIZE
        assert do_mmap(mm, 1, PAGE_SIZE, NONE, ANON, None, 0, privileged=False) == MMAP_BASE - 2 * PAGE_SIZE
        assert do_mmap(mm, PAGE_SIZE, PAGE_SIZE, NONE, ANON, None, 0, privileged=False) == 0x10000
        assert do_mmap(mm, TASK_SIZE, PAGE_SIZE, EXEC, ANON, None, 0, privileged=False) == MMAP_BASE - 3 * PAGE_SIZE

    def test_a_hint_keeps_off_a_stack(self, mm: MmStruct) -> None:
        grows_down(mm, BASE + STACK_GUARD_GAP_BYTES, 1)
        assert do_mmap(mm, BASE, PAGE_SIZE, RW, ANON, None, 0, privileged=False) == MMAP_BASE - PAGE_SIZE
        below = BASE - PAGE_SIZE
        assert do_mmap(mm, below, PAGE_SIZE, RW, ANON, None, 0, privileged=False) == below

    def test_two_mebibytes_are_aligned_to_it(self, mm: MmStruct) -> None:
        mmap(mm, 1, READ)
        huge = mmap(mm, PMD_SIZE // PAGE_SIZE)
        assert huge % PMD_SIZE == 0
        small = mmap(mm, PMD_SIZE // PAGE_SIZE - 1)
        assert small % PMD_SIZE != 0

    def test_below_four_gibibytes(self, mm: MmStruct) -> None:
        assert mmap(mm, 4, RW, ANON | Map.BIT32.value) == 0x4000_0000
        assert mmap(mm, 4, READ, ANON | Map.BIT32.value) == 0x4000_4000

    def test_above_mmap_base_when_all_below_is_taken(self, mm: MmStruct) -> None:
        mmap(mm, MMAP_BASE // PAGE_SIZE - 1, NONE, at=PAGE_SIZE, privileged=True)
        assert mmap(mm, 2, RW) == MMAP_BASE

    def test_fixed_replaces_what_is_there(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=page(0))
        for number in range(4):
            store(mm, page(number), b"x")
        mmap(mm, 2, READ, at=page(1))
        assert layout(mm) == [(0, 1, RW), (1, 2, READ), (3, 1, RW)]
        assert [entry(mm, page(number)) != 0 for number in range(4)] == [True, False, False, True]


class TestFlags:
    """What a VMA is marked with."""

    def test_accounted_where_private_and_writable(self, mm: MmStruct) -> None:
        assert vma_at(mm, mmap(mm, 1)).vm_flags & VM_ACCOUNT
        assert not vma_at(mm, mmap(mm, 1, READ)).vm_flags & VM_ACCOUNT
        assert not vma_at(mm, mmap(mm, 1, RW, SHARED_ANON)).vm_flags & VM_ACCOUNT
        lazy = vma_at(mm, mmap(mm, 1, RW, ANON | Map.NORESERVE.value)).vm_flags
        assert lazy & VM_NORESERVE
        assert not lazy & VM_ACCOUNT

    def test_shared_of_a_file_that_is_not_writable_can_never_be(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGE_SIZE), writable=False)
        flags = vma_at(mm, mmap(mm, 1, READ, SHARED, file=file)).vm_flags
        assert not flags & (VM_SHARED | VM_MAYWRITE)

    def test_populated_at_once(self, mm: MmStruct) -> None:
        start = mmap(mm, 3, RW, ANON | Map.POPULATE.value)
        assert all(entry(mm, start + at * PAGE_SIZE) for at in range(3))
        assert mm.rss.counts[1] == 3
        start = mmap(mm, 3, RW, ANON | Map.POPULATE.value | Map.NONBLOCK.value, at=page(0))
        assert not entry(mm, start)

    def test_locked_is_populated_and_counted(self, mm: MmStruct) -> None:
        start = mmap(mm, 3, RW, ANON | LOCKED)
        assert vma_at(mm, start).vm_flags & VM_LOCKED
        assert (mm.locked_vm, mm.rss.counts[1]) == (3, 3)

    def test_counters_by_kind(self, mm: MmStruct) -> None:
        mmap(mm, 1)
        mmap(mm, 2, READ | EXEC)
        mmap(mm, 4, READ)
        mmap(mm, 8, RW, SHARED_ANON)
        mmap(mm, 16, RW, ANON | GROWSDOWN)
        assert (mm.total_vm, mm.data_vm, mm.exec_vm, mm.stack_vm) == (31, 1, 2, 16)
