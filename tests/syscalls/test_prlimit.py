"""prlimit64: errors in order, who may, and that AS, DATA, STACK and MEMLOCK hold from the next call on.

Source: Linux v6.8 kernel/sys.c:SYSCALL_DEFINE4(prlimit64), check_prlimit_permission(), do_prlimit().
"""

from __future__ import annotations

import errno
import os
import struct
from signal import SIGSEGV

import pytest

from shared.uapi.mman import Map, Mcl, Mremap
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import NR_OPEN, RLIM_INFINITY, RLIM_NLIMITS, RLIMIT_NOFILE, Rlimit
from shared.uapi.syscalls import Nr
from tests.support.programs import ANON, BASE, NOBODY_FROM, OTHER, READ, ROOT, SHARED_ANON, USER, Program, World, page

GONE = NOBODY_FROM + 999
MIB8 = 8 << 20
NEW = OLD = BASE
"""Pointers: all that counts is that they are not null."""


def limit(soft: int, hard: int = RLIM_INFINITY) -> bytes:
    return struct.pack("<QQ", soft, hard)


def set_limit(program: Program, resource: int, soft: int, hard: int = RLIM_INFINITY, pid: int = 0) -> int:
    return program.call(Nr.PRLIMIT64, pid, resource, NEW, 0, data=limit(soft, hard))


def get_limit(program: Program, resource: int, pid: int = 0) -> tuple[int, int]:
    answer = program.answer(Nr.PRLIMIT64, pid, resource, 0, OLD)
    assert answer.ret == 0
    soft, hard = struct.unpack("<QQ", answer.data)
    return soft, hard


class TestCall:
    """Old and new."""

    def test_what_a_program_starts_with(self, program: Program) -> None:
        assert get_limit(program, Rlimit.STACK) == (MIB8, RLIM_INFINITY)
        assert get_limit(program, Rlimit.MEMLOCK) == (MIB8, MIB8)
        assert get_limit(program, Rlimit.AS) == get_limit(program, Rlimit.DATA) == (RLIM_INFINITY, RLIM_INFINITY)

    def test_the_old_one_comes_with_setting_the_new(self, program: Program) -> None:
        answer = program.answer(Nr.PRLIMIT64, 0, Rlimit.AS, NEW, OLD, data=limit(5, 7))
        assert (answer.ret, answer.data) == (0, limit(RLIM_INFINITY))
        assert get_limit(program, Rlimit.AS) == (5, 7)

    def test_neither(self, program: Program) -> None:
        answer = program.answer(Nr.PRLIMIT64, 0, Rlimit.AS, 0, 0)
        assert (answer.ret, answer.data) == (0, b"")
        assert program.call(Nr.PRLIMIT64, 0, RLIM_NLIMITS, 0, 0) == -errno.EINVAL

    def test_of_another_process(self, world: World, program: Program) -> None:
        other = world.attach(USER)
        assert set_limit(program, Rlimit.AS, 1 << 30, pid=other.pid) == 0
        assert get_limit(other, Rlimit.AS) == get_limit(program, Rlimit.AS, other.pid) == (1 << 30, RLIM_INFINITY)
        assert get_limit(program, Rlimit.AS) == (RLIM_INFINITY, RLIM_INFINITY)

    def test_a_child_has_its_own_copy(self, world: World, real_child: int) -> None:
        parent = world.attach(USER, pid=os.getpid())
        assert set_limit(parent, Rlimit.DATA, 1 << 30) == 0
        child = world.attach(USER, pid=real_child, token=parent.call(Nr.CLONE))
        assert get_limit(child, Rlimit.DATA) == (1 << 30, RLIM_INFINITY)
        assert set_limit(child, Rlimit.DATA, 1 << 20) == 0
        assert get_limit(parent, Rlimit.DATA) == (1 << 30, RLIM_INFINITY)


class TestErrorsInOrder:
    """The new limit is read first, then the process, its owner, the resource, the limits themselves."""

    @pytest.fixture
    def stranger(self, world: World) -> Program:
        return world.attach(OTHER)

    def test_the_new_limit_cannot_be_read(self, program: Program) -> None:
        for data in (b"", bytes(15), bytes(17)):
            assert program.call(Nr.PRLIMIT64, GONE, 99, NEW, 0, data=data) == -errno.EFAULT

    def test_no_such_process(self, program: Program) -> None:
        assert set_limit(program, 99, 2, 1, pid=GONE) == -errno.ESRCH

    def test_another_users_process(self, program: Program, stranger: Program, root: Program) -> None:
        for target in (stranger, root):
            assert set_limit(program, 99, 2, 1, pid=target.pid) == -errno.EPERM
            assert program.call(Nr.PRLIMIT64, target.pid, Rlimit.AS, 0, OLD) == -errno.EPERM
        assert set_limit(root, Rlimit.AS, 1 << 30, pid=stranger.pid) == 0

    @pytest.mark.parametrize("resource", [RLIM_NLIMITS, 99, -1])
    def test_no_such_resource(self, program: Program, resource: int) -> None:
        assert set_limit(program, resource, 2, 1) == -errno.EINVAL

    def test_soft_over_hard(self, program: Program) -> None:
        assert set_limit(program, Rlimit.MEMLOCK, 2 * MIB8 + 1, 2 * MIB8) == -errno.EINVAL

    def test_a_hard_limit_goes_down_only(self, program: Program, root: Program) -> None:
        assert set_limit(program, Rlimit.MEMLOCK, 0, MIB8 + 1) == -errno.EPERM
        assert set_limit(program, Rlimit.MEMLOCK, 1, MIB8 - 1) == 0
        assert set_limit(program, Rlimit.MEMLOCK, 1, MIB8) == -errno.EPERM
        assert get_limit(program, Rlimit.MEMLOCK) == (1, MIB8 - 1)
        assert set_limit(root, Rlimit.MEMLOCK, 1, MIB8, pid=program.pid) == 0

    def test_no_more_open_files_than_the_machine_has(self, root: Program) -> None:
        assert set_limit(root, RLIMIT_NOFILE, 1, RLIM_INFINITY) == -errno.EPERM
        assert set_limit(root, RLIMIT_NOFILE, 2, 1) == -errno.EINVAL
        assert set_limit(root, RLIMIT_NOFILE, NR_OPEN, NR_OPEN) == 0

    def test_a_failed_one_returns_no_old_limit(self, program: Program) -> None:
        answer = program.answer(Nr.PRLIMIT64, 0, Rlimit.MEMLOCK, NEW, OLD, data=limit(2, 1))
        assert (answer.ret, answer.data) == (-errno.EINVAL, b"")


class TestEnforced:
    """From the next call on; what is there already stays."""

    def test_as(self, program: Program) -> None:
        size = program.mm.total_vm * PAGE_SIZE
        program.mmap(2, at=BASE)
        assert set_limit(program, Rlimit.AS, size + 3 * PAGE_SIZE + 5) == 0
        assert program.mmap(2) == -errno.ENOMEM
        assert program.mmap(2, READ, SHARED_ANON) == -errno.ENOMEM
        assert program.mmap(2, at=BASE) == BASE  # What it replaces makes room.
        assert program.call(Nr.MREMAP, BASE, 2 * PAGE_SIZE, 4 * PAGE_SIZE, Mremap.MAYMOVE) == -errno.ENOMEM
        start = program.call(Nr.BRK, 0)
        assert program.call(Nr.BRK, start + 2 * PAGE_SIZE) == start
        assert program.call(Nr.BRK, start + PAGE_SIZE) == start + PAGE_SIZE
        below = min(vma.start for vma in program.mm.vmas if vma.start > 1 << 46) - PAGE_SIZE
        assert program.answer(Nr.STORE, below, 1, data=b"x").signo == SIGSEGV

    def test_data(self, program: Program) -> None:
        """Private writable memory; neither what is shared, nor what is only readable, nor a stack."""
        assert set_limit(program, Rlimit.DATA, (program.mm.data_vm + 2) * PAGE_SIZE) == 0
        assert program.mmap(3, at=BASE) == -errno.ENOMEM
        assert program.mmap(3, READ, at=BASE) == BASE
        assert program.mmap(3, flags=SHARED_ANON, at=page(10)) == page(10)
        assert program.mmap(3, flags=ANON | Map.GROWSDOWN.value, at=page(2000)) == page(2000)
        assert program.call(Nr.MPROTECT, BASE, 3 * PAGE_SIZE, 3) == -errno.ENOMEM
        assert program.call(Nr.MPROTECT, BASE, 2 * PAGE_SIZE, 3) == 0
        start = program.call(Nr.BRK, 0)
        assert program.call(Nr.BRK, start + 1) == start

    def test_stack(self, program: Program) -> None:
        stack = next(reversed(program.mm.vmas))
        assert set_limit(program, Rlimit.STACK, stack.end - stack.start + PAGE_SIZE) == 0
        start = stack.start
        assert program.answer(Nr.STORE, start - 2 * PAGE_SIZE, 1, data=b"x").signo == SIGSEGV

    def test_stack_up_to_the_limit(self, program: Program) -> None:
        stack = next(reversed(program.mm.vmas))
        assert set_limit(program, Rlimit.STACK, stack.end - stack.start + PAGE_SIZE) == 0
        program.store(stack.start - PAGE_SIZE, b"x")
        assert stack.nr_pages * PAGE_SIZE == get_limit(program, Rlimit.STACK)[0]

    def test_memlock(self, program: Program) -> None:
        program.mmap(3, at=BASE)
        assert set_limit(program, Rlimit.MEMLOCK, 2 * PAGE_SIZE, MIB8) == 0
        assert program.call(Nr.MLOCK, BASE, 3 * PAGE_SIZE) == -errno.ENOMEM
        assert program.mmap(3, flags=ANON | Map.LOCKED.value) == -errno.EAGAIN
        assert program.call(Nr.MLOCKALL, Mcl.CURRENT) == -errno.ENOMEM
        assert program.call(Nr.MLOCK, BASE, 2 * PAGE_SIZE) == 0
        assert program.mmap(1, flags=ANON | Map.LOCKED.value) == -errno.EAGAIN

    def test_memlock_of_the_superuser(self, root: Program) -> None:
        assert set_limit(root, Rlimit.MEMLOCK, 0) == 0
        root.mmap(3, at=BASE)
        assert root.call(Nr.MLOCK, BASE, 3 * PAGE_SIZE) == 0

    def test_memlock_holds_for_locked_memory_that_grows_but_not_for_the_superusers(
        self, root: Program, program: Program
    ) -> None:
        """Source: Linux v6.8 mm/mmap.c:acct_stack_growth()."""
        for caller in (root, program):
            assert set_limit(caller, Rlimit.MEMLOCK, 4 * PAGE_SIZE, MIB8) == 0
            flags = ANON | Map.GROWSDOWN.value | Map.LOCKED.value
            assert caller.mmap(1, flags=flags, at=page(2000)) == page(2000)
            caller.store(page(1997), b"x")
        root.store(page(1996), b"x")
        assert root.mm.locked_vm == 5
        assert program.answer(Nr.STORE, page(1996), 1, data=b"x").signo == SIGSEGV
        assert root.call(Nr.SETUID, USER) == 0
        assert root.answer(Nr.STORE, page(1995), 1, data=b"x").signo == SIGSEGV

    def test_another_process_feels_it_at_once(self, root: Program, program: Program) -> None:
        assert set_limit(root, Rlimit.AS, 0, pid=program.pid) == 0
        assert program.mmap(1) == -errno.ENOMEM


def test_others_are_kept_and_mean_nothing(program: Program) -> None:
    """Of the sixteen limits four are memory's; the rest can be asked and set."""
    for resource in set(range(RLIM_NLIMITS)) - set(Rlimit):
        assert set_limit(program, resource, 3, 4) == 0
        assert get_limit(program, resource) == (3, 4)
    assert program.mmap(1) > 0


def test_root_is_anybodys_master(world: World) -> None:
    superuser, target = world.attach(ROOT), world.attach(OTHER)
    assert get_limit(superuser, Rlimit.STACK, target.pid) == (MIB8, RLIM_INFINITY)
