"""The memory calls as requests: how raw words become typed ones, what locking faults in, and what mmap refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from signal import SIGBUS, SIGSEGV

import pytest

from kerneld.errors import SysError
from kerneld.tlb.tlb import Tlb
from shared.uapi.mman import (
    MLOCK_ONFAULT,
    Madv,
    Map,
    Mcl,
    Mremap,
    Ms,
)
from shared.uapi.native import MMAP_SAME_FILE
from shared.uapi.page import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from shared.uapi.resource import Rlimit
from shared.uapi.signals import BusCode, SegvCode
from shared.uapi.syscalls import Nr
from shared.wire import MAX_REPLY
from tests.support.programs import (
    ANON,
    BASE,
    FIXED,
    NONE,
    PRIVATE,
    READ,
    ROOT,
    RW,
    SHARED,
    SHARED_ANON,
    WRITE,
    Program,
    World,
    page,
)

MFD_HUGETLB = 4
HUGETLB, NOREPLACE, VALIDATE = Map.HUGETLB.value, Map.FIXED_NOREPLACE.value, Map.SHARED_VALIDATE.value
HUGE_2MB, HUGE_4MB = 21 << 26, 22 << 26
WRAPS = (1 << 64) - 1


def mmap(
    program: Program, addr: int, length: int, prot: int, flags: int, offset: int = 0, fd: int | None = None
) -> int:
    return program.call(Nr.MMAP, addr, length, prot, flags, 0, offset, fds=[] if fd is None else [fd])


class TestMmap:
    """What the call adds to do_mmap()."""

    @pytest.mark.parametrize("length", [PAGE_SIZE, 2 * PMD_SIZE + PAGE_SIZE], ids=["at once", "in pieces"])
    def test_over_memory_that_is_no_data_at_the_limit_of_data(self, program: Program, length: int) -> None:
        """Each old page makes room, of any kind. Source: Linux v6.8 mm/mmap.c: mmap_region(), count_vma_pages_range().

        Once it is unmapped it makes no room for data: who asks again is refused, and has lost the old mapping.
        """
        assert mmap(program, BASE, length, NONE, ANON | FIXED) == BASE
        program.mmap(1)
        program.mm.rlimits.soft[Rlimit.DATA] = program.mm.data_vm * PAGE_SIZE
        assert mmap(program, 0, length, RW, ANON) == -errno.ENOMEM
        assert mmap(program, BASE, length, RW, ANON | FIXED) == BASE

    def test_an_offset_that_is_not_aligned_comes_first(self, program: Program, fd: int) -> None:
        assert mmap(program, 0, 0, RW, 0, offset=1) == -errno.EINVAL
        assert mmap(program, 0, PAGE_SIZE, RW, PRIVATE, offset=1) == -errno.EINVAL
        assert mmap(program, 0, PAGE_SIZE, RW, PRIVATE, offset=1, fd=fd) == -errno.EINVAL

    def test_a_file_that_is_not_there(self, program: Program) -> None:
        assert mmap(program, 0, 0, RW, PRIVATE) == -errno.EBADF

    def test_an_anonymous_mapping_leaves_the_descriptor(self, program: Program, fd: int) -> None:
        assert mmap(program, BASE, PAGE_SIZE, RW, ANON | FIXED, fd=fd) == BASE
        assert program.load(BASE) == b"\0"

    def test_a_file_at_an_offset(self, program: Program, fd: int) -> None:
        os.pwrite(fd, b"second", PAGE_SIZE)
        assert mmap(program, BASE, PAGE_SIZE, READ, SHARED | FIXED, offset=PAGE_SIZE, fd=fd) == BASE
        assert program.load(BASE, 6) == b"second"

    def test_flags_are_32_bits(self, program: Program) -> None:
        assert mmap(program, BASE, PAGE_SIZE, RW, 1 << 32 | ANON | FIXED) == BASE

    @pytest.mark.parametrize("flags", [0, VALIDATE, Map.SHARED.value | 0xC])
    def test_anonymous_memory_of_no_kind(self, program: Program, flags: int) -> None:
        assert mmap(program, 0, PAGE_SIZE, RW, flags | Map.ANONYMOUS.value) == -errno.EINVAL

    def test_the_lowest_address(self, program: Program, root: Program) -> None:
        """vm.mmap_min_addr: EPERM when it is asked for, rounded up when it is a hint; CAP_SYS_RAWIO may."""
        assert mmap(program, 0, PAGE_SIZE, RW, ANON | FIXED) == -errno.EPERM
        assert mmap(program, 0xF000, PAGE_SIZE, RW, ANON | NOREPLACE) == -errno.EPERM
        assert mmap(program, 0x1000, PAGE_SIZE, RW, ANON) == 0x1_0000
        assert mmap(program, 0x1_0000, PAGE_SIZE, RW, ANON | NOREPLACE) == -errno.EEXIST
        assert mmap(root, 0, PAGE_SIZE, RW, ANON | FIXED) == 0
        root.store(0, b"null")
        assert root.load(0, 4) == b"null"

    def test_noreplace(self, program: Program) -> None:
        assert mmap(program, BASE, 2 * PAGE_SIZE, RW, ANON | NOREPLACE) == BASE
        program.store(BASE, b"kept")
        for start, pages in ((0, 1), (-1, 2), (1, 5), (-1, 9)):
            assert mmap(program, page(start), pages * PAGE_SIZE, RW, ANON | NOREPLACE) == -errno.EEXIST
        assert program.load(BASE, 4) == b"kept"
        assert mmap(program, page(2), PAGE_SIZE, RW, ANON | NOREPLACE) == page(2)
        assert mmap(program, BASE + 1, PAGE_SIZE, RW, ANON | NOREPLACE) == -errno.EINVAL

    def test_shared_validate(self, program: Program, fd: int) -> None:
        assert mmap(program, BASE, PAGE_SIZE, RW, VALIDATE | FIXED, fd=fd) == BASE
        program.store(BASE, b"shared")
        assert program.call(Nr.MSYNC, BASE, PAGE_SIZE, Ms.SYNC) == 0
        assert os.pread(fd, 6, 0) == b"shared"
        assert mmap(program, 0, PAGE_SIZE, RW, VALIDATE | 0x200_0000, fd=fd) == -errno.EOPNOTSUPP
        assert mmap(program, 0, PAGE_SIZE, RW, SHARED | 0x200_0000, fd=fd) > 0

    def test_how_the_descriptor_was_opened(self, program: Program, fd: int) -> None:
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        writable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
        results = [
            mmap(program, 0, PAGE_SIZE, prot, flags, fd=opened)
            for opened in (readable, writable)
            for prot, flags in ((RW, SHARED), (WRITE, PRIVATE), (READ, SHARED))
        ]
        os.close(readable)
        os.close(writable)
        assert [min(result, 0) for result in results] == [-errno.EACCES, 0, 0, *[-errno.EACCES] * 3]

    def test_a_pipe_cannot_be_mapped(self, program: Program) -> None:
        ends = os.pipe()
        assert mmap(program, 0, PAGE_SIZE, READ, PRIVATE, fd=ends[0]) == -errno.ENODEV
        assert mmap(program, 0, PAGE_SIZE, READ, PRIVATE, fd=ends[1]) == -errno.EACCES
        for end in ends:
            os.close(end)


class TestSameFile:
    """A native program names its own descriptor, and sends none: MMAP_SAME_FILE."""

    @pytest.fixture
    def native(self, world: World) -> Iterator[Program]:
        """A native program whose real process is this one."""
        program = world.attach(ROOT, pid=os.getpid())
        program.thread.tlb = Tlb(program.mm, lambda tlb: None).enter(program.pid)
        yield program
        world.kernel.process_died(program.process)
        # It holds the RAM.
        program.thread.tlb = None

    def by_number(self, program: Program, fd: int) -> int:
        return program.call(Nr.MMAP, 0, PAGE_SIZE, READ, PRIVATE, MMAP_SAME_FILE | fd, 0)

    def test_the_file_that_was_mapped_last(self, native: Program, fd: int) -> None:
        assert self.by_number(native, fd) == -errno.ESTALE
        assert mmap(native, 0, PAGE_SIZE, READ, PRIVATE, fd=fd) > 0
        addr = self.by_number(native, fd)
        vma = native.mm.vmas.lookup(addr)
        assert vma is not None
        assert vma.file is native.thread.mapped_file
        assert self.by_number(native, 0) == -errno.ESTALE
        assert self.by_number(native, -1) == -errno.EBADF

    def test_only_for_native_programs(self, program: Program, fd: int) -> None:
        assert mmap(program, 0, PAGE_SIZE, READ, PRIVATE, fd=fd) > 0
        assert self.by_number(program, fd) == -errno.EBADF


class TestHugetlb:
    """Without a pool: Linux v6.8 mm/mmap.c:ksys_mmap_pgoff(), fs/hugetlbfs/inode.c:hugetlb_file_setup()."""

    @pytest.mark.parametrize("size", [0, HUGE_2MB])
    @pytest.mark.parametrize("kind", [ANON, SHARED_ANON])
    def test_an_empty_pool(self, program: Program, kind: int, size: int) -> None:
        assert mmap(program, 0, PMD_SIZE, RW, kind | HUGETLB | size) == -errno.ENOMEM
        assert mmap(program, 0, 1, RW, kind | HUGETLB | size) == -errno.ENOMEM

    def test_huge_pages_have_their_own_account(self, program: Program) -> None:
        """Too much to be promised, yet refused for the offset: Linux v6.8 mm/mmap.c:accountable_mapping()."""
        assert mmap(program, 0, 1 << 45, RW, ANON, offset=PAGE_SIZE) == -errno.ENOMEM
        assert mmap(program, 0, 1 << 45, RW, ANON | HUGETLB, offset=PAGE_SIZE) == -errno.EINVAL

    @pytest.mark.parametrize("size", [HUGE_4MB, 16 << 26])
    def test_a_size_that_there_is_none_of(self, program: Program, size: int) -> None:
        assert mmap(program, 0, PMD_SIZE, RW, ANON | HUGETLB | size) == -errno.EINVAL

    def test_a_memory_file_of_huge_pages(self, program: Program) -> None:
        """Source: Linux v6.8 fs/hugetlbfs/inode.c:hugetlb_get_unmapped_area(), hugetlbfs_file_mmap()."""
        try:
            huge = os.memfd_create("huge", MFD_HUGETLB)
        except OSError as error:
            pytest.skip(f"a memory file of huge pages: {error.strerror}")
        size = os.fstatvfs(huge).f_bsize
        for flags in (SHARED, PRIVATE, SHARED | HUGETLB):
            assert mmap(program, 0, 1, RW, flags, fd=huge) == -errno.ENOMEM
            assert mmap(program, 0, size, READ, flags, offset=PAGE_SIZE, fd=huge) == -errno.EINVAL
            program.mmap(1, at=page(1))
            assert mmap(program, page(1), 1, RW, flags | FIXED, fd=huge) == -errno.EINVAL
            program.store(page(1), b"still there")
        program.mmap(1, at=BASE)
        assert mmap(program, BASE & -size, size, RW, SHARED | FIXED, fd=huge) == -errno.ENOMEM
        assert program.answer(Nr.LOAD, BASE, 1).signo == SIGSEGV
        os.close(huge)

    def test_a_file_that_is_none_of_hugetlbfs(self, program: Program, fd: int) -> None:
        assert mmap(program, 0, PMD_SIZE, RW, PRIVATE | HUGETLB, fd=fd) == -errno.EINVAL
        assert mmap(program, 0, PMD_SIZE, RW, PRIVATE | HUGETLB) == -errno.EBADF

    def test_a_place_that_is_not_aligned(self, program: Program) -> None:
        assert mmap(program, page(1), PMD_SIZE, RW, ANON | HUGETLB | FIXED) == -errno.EINVAL
        assert mmap(program, page(512), PMD_SIZE, RW, ANON | HUGETLB | FIXED) == -errno.ENOMEM

    def test_no_length(self, program: Program) -> None:
        assert mmap(program, 0, 0, RW, ANON | HUGETLB) == -errno.EINVAL


class TestMlock:
    """Locked memory is there when the call returns."""

    @pytest.fixture
    def mapped(self, program: Program) -> Program:
        program.mmap(4, at=BASE)
        return program

    def test_mlock_faults_in_and_on_fault_does_not(self, mapped: Program) -> None:
        assert mapped.call(Nr.MLOCK, page(1), PAGE_SIZE) == 0
        assert mapped.call(Nr.MLOCK2, page(2), PAGE_SIZE, MLOCK_ONFAULT) == 0
        assert mapped.call(Nr.MLOCK2, page(3), PAGE_SIZE, 0) == 0
        assert mapped.in_memory(0, 4) == [0, 1, 0, 1]
        assert mapped.mm.locked_vm == 3

    def test_flags(self, mapped: Program) -> None:
        assert mapped.call(Nr.MLOCK2, BASE, PAGE_SIZE, 2) == -errno.EINVAL

    def test_memory_without_any_right_is_locked_and_is_an_error(self, mapped: Program) -> None:
        """__mlock_posix_error_return() makes ENOMEM of the fault's EFAULT; what lies before has come."""
        assert mapped.call(Nr.MPROTECT, page(2), PAGE_SIZE, NONE) == 0
        assert mapped.call(Nr.MLOCK, BASE, 4 * PAGE_SIZE) == -errno.ENOMEM
        assert mapped.in_memory(0, 4) == [1, 1, 0, 0]
        assert mapped.mm.locked_vm == 4

    def test_past_the_end_of_a_file(self, mapped: Program, fd: int) -> None:
        mapped.mmap(3, READ, SHARED, at=page(8), fd=fd)
        assert mapped.call(Nr.MLOCK, page(8), 3 * PAGE_SIZE) == -errno.ENOMEM
        assert mapped.mm.locked_vm == 3

    def test_without_frames(self, world: World, mapped: Program) -> None:
        mapped.touch(3, 1)
        frames = world.kernel.frames

        def hook(count: int) -> None:
            raise SysError(errno.ENOMEM)

        frames.alloc_hook = hook
        assert mapped.call(Nr.MLOCK, BASE, 4 * PAGE_SIZE) == -errno.EAGAIN
        frames.alloc_hook = None
        assert mapped.call(Nr.MLOCK, BASE, 4 * PAGE_SIZE) == 0

    def test_rights_and_limits(self, mapped: Program, root: Program) -> None:
        mapped.mm.rlimits.soft[Rlimit.MEMLOCK] = 2 * PAGE_SIZE
        assert mapped.call(Nr.MLOCK, BASE, 3 * PAGE_SIZE) == -errno.ENOMEM
        mapped.mm.rlimits.soft[Rlimit.MEMLOCK] = 0
        assert mapped.call(Nr.MLOCK, BASE, PAGE_SIZE) == -errno.EPERM
        root.mmap(3, at=BASE)
        root.mm.rlimits.soft[Rlimit.MEMLOCK] = 0
        assert root.call(Nr.MLOCK, BASE, 3 * PAGE_SIZE) == 0
        assert root.call(Nr.MLOCKALL, Mcl.CURRENT) == 0

    def test_munlock(self, mapped: Program) -> None:
        assert mapped.call(Nr.MLOCK, BASE, 4 * PAGE_SIZE) == 0
        assert mapped.call(Nr.MUNLOCK, page(1), 1) == 0
        assert mapped.mm.locked_vm == 3
        assert mapped.in_memory(0, 4) == [1, 1, 1, 1]
        assert mapped.call(Nr.MUNLOCK, page(9), 1) == -errno.ENOMEM

    def test_mlockall(self, mapped: Program) -> None:
        assert mapped.call(Nr.MLOCKALL, 0) == -errno.EINVAL
        assert mapped.call(Nr.MLOCKALL, Mcl.CURRENT | Mcl.ONFAULT) == 0
        assert mapped.in_memory(0, 4) == [0, 0, 0, 0]
        assert mapped.call(Nr.MLOCKALL, Mcl.CURRENT) == 0
        assert mapped.in_memory(0, 4) == [1, 1, 1, 1]
        assert mapped.mm.locked_vm == mapped.mm.total_vm

    def test_mlockall_for_later(self, mapped: Program) -> None:
        assert mapped.call(Nr.MLOCKALL, Mcl.FUTURE) == 0
        mapped.mmap(2, at=page(10))
        assert (mapped.in_memory(0, 4), mapped.in_memory(10, 2)) == ([0, 0, 0, 0], [1, 1])
        assert mapped.call(Nr.MUNLOCKALL) == 0
        mapped.mmap(1, at=page(20))
        assert (mapped.in_memory(20, 1), mapped.mm.locked_vm) == ([0], 0)

    def test_mlockall_passes_over_what_cannot_be_had(self, mapped: Program) -> None:
        mapped.mmap(1, NONE, at=page(6))
        assert mapped.call(Nr.MLOCKALL, Mcl.CURRENT) == 0

    def test_map_locked_does_not_fail_for_want_of_pages(self, mapped: Program, fd: int) -> None:
        mapped.mmap(4, READ, SHARED | Map.LOCKED.value, at=page(8), fd=fd)
        # Root's file: what of it is in memory is not a user's to know, unless he may write to it.
        os.fchmod(fd, 0o644)
        assert mapped.in_memory(8, 4) == [1, 1, 1, 1]
        os.fchmod(fd, 0o666)
        assert mapped.in_memory(8, 4) == [1, 1, 0, 0]


class TestOthers:
    """One row each of the thin ones; their tables are in tests/mm."""

    def test_munmap(self, program: Program) -> None:
        program.mmap(2, at=BASE)
        assert program.call(Nr.MUNMAP, BASE, 1) == 0
        assert program.call(Nr.MUNMAP, BASE, 0) == -errno.EINVAL
        assert program.call(Nr.MUNMAP, BASE, WRAPS) == -errno.EINVAL
        answer = program.answer(Nr.LOAD, BASE, 1)
        assert (answer.ret, answer.signo) == (0, SIGSEGV)

    def test_mprotect_takes_back_at_once(self, program: Program) -> None:
        program.mmap(1, at=BASE)
        program.store(BASE, b"x")
        assert program.call(Nr.MPROTECT, BASE, PAGE_SIZE, READ) == 0
        assert program.load(BASE) == b"x"
        answer = program.answer(Nr.STORE, BASE, 1, data=b"y")
        assert answer.siginfo is not None
        assert (answer.signo, answer.siginfo.si_code, answer.siginfo.si_addr) == (SIGSEGV, SegvCode.ACCERR, BASE)

    def test_brk(self, program: Program) -> None:
        start = program.call(Nr.BRK, 0)
        assert program.call(Nr.BRK, start + 1) == start + 1
        program.store(start, b"heap")
        assert program.call(Nr.BRK, WRAPS) == start + 1
        assert program.call(Nr.BRK, start) == start

    def test_mremap(self, program: Program) -> None:
        program.mmap(1, at=BASE)
        program.store(BASE, b"moved")
        flags = Mremap.MAYMOVE | Mremap.FIXED
        assert program.call(Nr.MREMAP, BASE, PAGE_SIZE, 2 * PAGE_SIZE, flags, page(7)) == page(7)
        assert program.load(page(7), 5) == b"moved"
        assert program.call(Nr.MREMAP, BASE, PAGE_SIZE, PAGE_SIZE) == -errno.EFAULT

    def test_madvise(self, program: Program) -> None:
        program.mmap(1, at=BASE)
        program.store(BASE, b"x")
        assert program.call(Nr.MADVISE, BASE, PAGE_SIZE, Madv.DONTNEED) == 0
        assert program.load(BASE) == b"\0"
        assert program.call(Nr.MADVISE, BASE, PAGE_SIZE, 77) == -errno.EINVAL

    def test_mincore_as_long_as_an_answer_can_be(self, program: Program) -> None:
        program.mmap(2, at=BASE)
        program.store(page(1), b"x")
        answer = program.answer(Nr.MINCORE, BASE, 2 * PAGE_SIZE, 0)
        assert (answer.ret, answer.data) == (0, b"\0\x01")
        assert program.call(Nr.MINCORE, BASE, (MAX_REPLY + 1) * PAGE_SIZE) == -errno.EMSGSIZE
        assert program.call(Nr.MINCORE, TASK_SIZE, PAGE_SIZE) == -errno.ENOMEM

    def test_msync(self, program: Program, fd: int) -> None:
        program.mmap(1, RW, SHARED, at=BASE, fd=fd)
        program.store(BASE, b"saved")
        assert program.call(Nr.MSYNC, BASE, PAGE_SIZE, Ms.ASYNC | Ms.SYNC) == -errno.EINVAL
        assert program.call(Nr.MSYNC, BASE, PAGE_SIZE, Ms.SYNC) == 0
        assert os.pread(fd, 5, 0) == b"saved"

    def test_a_file_that_has_become_shorter(self, program: Program, fd: int) -> None:
        program.mmap(2, READ, SHARED, at=BASE, fd=fd)
        os.ftruncate(fd, PAGE_SIZE)
        answer = program.answer(Nr.LOAD, page(1), 1)
        assert answer.siginfo is not None
        assert (answer.signo, answer.siginfo.si_code) == (SIGBUS, BusCode.ADRERR)
