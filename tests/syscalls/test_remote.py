"""process_vm_readv, process_vm_writev and process_madvise: between programs, with every errno in its order.

Source: Linux v6.8 mm/process_vm_access.c, mm/madvise.c:SYSCALL_DEFINE5(process_madvise), lib/iov_iter.c.
"""

from __future__ import annotations

import errno
import os

import pytest

from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import (
    ANON,
    BASE,
    NOBODY_FROM,
    NONE,
    OTHER,
    READ,
    ROOT,
    USER,
    WRITE,
    Program,
    World,
    iovecs,
    page,
)

Pieces = list[tuple[int, int]]
READV, WRITEV, MADVISE = Nr.PROCESS_VM_READV, Nr.PROCESS_VM_WRITEV, Nr.PROCESS_MADVISE
GONE = NOBODY_FROM + 999
HOLE = page(500)


def transfer(nr: Nr, caller: Program, pid: int, local: Pieces, remote: Pieces, flags: int = 0) -> int:
    data = iovecs(*local, *remote)
    return caller.call(nr, pid, BASE, len(local), BASE, len(remote), flags, data=data)


@pytest.fixture
def other(world: World) -> Program:
    """Another process of the same user, with four pages, each full of its number."""
    made = world.attach(USER)
    made.mmap(4, at=BASE)
    for number in range(4):
        made.store(page(number), bytes([number + 1]) * PAGE_SIZE)
    return made


@pytest.fixture
def me(program: Program) -> Program:
    """The caller, with four pages of its own."""
    program.mmap(4, at=BASE)
    return program


class TestCopies:
    """Pieces of either side need not match."""

    def test_read(self, me: Program, other: Program) -> None:
        assert transfer(READV, me, other.pid, [(page(1) - 2, 6)], [(page(2) - 3, 6)]) == 6
        assert me.load(page(1) - 2, 6) == b"\x02\x02\x02\x03\x03\x03"

    def test_write(self, me: Program, other: Program) -> None:
        me.store(BASE, b"hello")
        assert transfer(WRITEV, me, other.pid, [(BASE, 5)], [(page(2) - 2, 5)]) == 5
        assert other.load(page(2) - 3, 7) == b"\x02hello\x03"

    def test_pieces_of_other_sizes(self, me: Program, other: Program) -> None:
        local = [(BASE, 1), (page(1), 0), (page(2), 7)]
        assert transfer(READV, me, other.pid, local, [(page(1) - 1, 3), (page(3), 5)]) == 8
        assert (me.load(BASE), me.load(page(2), 7)) == (b"\x01", b"\x02\x02" + b"\x04" * 5)

    @pytest.mark.parametrize(("here", "there"), [(3, 9), (9, 3)])
    def test_the_shorter_side_ends_it(self, me: Program, other: Program, here: int, there: int) -> None:
        assert transfer(READV, me, other.pid, [(BASE, here)], [(BASE, there)]) == 3
        assert me.load(BASE, 4) == b"\x01\x01\x01\0"

    def test_all_at_once(self, me: Program, other: Program) -> None:
        assert transfer(READV, me, other.pid, [(BASE, 4 * PAGE_SIZE)], [(BASE, 4 * PAGE_SIZE)]) == 4 * PAGE_SIZE
        assert [me.load(page(number)) for number in range(4)] == [b"\x01", b"\x02", b"\x03", b"\x04"]

    def test_of_itself(self, me: Program) -> None:
        me.store(BASE, b"self")
        assert transfer(WRITEV, me, me.pid, [(BASE, 4)], [(page(3), 4)]) == 4
        assert me.load(page(3), 4) == b"self"

    def test_writing_into_what_a_fork_shares(self, world: World, me: Program, real_child: int) -> None:
        parent = world.attach(USER, pid=os.getpid())
        parent.mmap(1, at=BASE)
        parent.store(BASE, b"before")
        child = world.attach(USER, pid=real_child, token=parent.call(Nr.CLONE))
        me.store(BASE, b"after!")
        assert transfer(WRITEV, me, child.pid, [(BASE, 6)], [(BASE, 6)]) == 6
        assert (child.load(BASE, 6), parent.load(BASE, 6)) == (b"after!", b"before")

    def test_pages_that_were_not_there_come(self, me: Program, other: Program) -> None:
        other.mmap(2, at=page(10))
        assert transfer(READV, me, other.pid, [(BASE, 2)], [(page(10), 2)]) == 2
        assert transfer(WRITEV, me, other.pid, [(BASE, 2)], [(page(11), 2)]) == 2
        assert other.in_memory(10, 2) == [1, 1]


class TestPartialCopies:
    """What was copied before a page that cannot be had is the result; only where that is nothing it is EFAULT."""

    def test_a_hole_in_the_remote_process(self, me: Program, other: Program) -> None:
        assert transfer(READV, me, other.pid, [(BASE, 64)], [(page(4) - 10, 64)]) == 10
        assert transfer(WRITEV, me, other.pid, [(BASE, 64)], [(page(4) - 10, 64)]) == 10
        assert transfer(READV, me, other.pid, [(BASE, 64)], [(HOLE, 64)]) == -errno.EFAULT
        assert transfer(READV, me, other.pid, [(BASE, 64)], [(BASE, 5), (HOLE, 5), (BASE, 5)]) == 5
        assert transfer(READV, me, other.pid, [(BASE, 64)], [(HOLE, 5), (BASE, 5)]) == -errno.EFAULT

    def test_a_hole_in_the_caller(self, me: Program, other: Program) -> None:
        assert transfer(READV, me, other.pid, [(page(4) - 6, 64)], [(BASE, 64)]) == 6
        assert transfer(WRITEV, me, other.pid, [(page(4) - 6, 64)], [(BASE, 64)]) == 6
        assert transfer(READV, me, other.pid, [(HOLE, 4)], [(BASE, 4)]) == -errno.EFAULT
        assert transfer(WRITEV, me, other.pid, [(HOLE, 4)], [(BASE, 4)]) == -errno.EFAULT
        assert transfer(READV, me, other.pid, [(BASE, 3), (HOLE, 3)], [(BASE, 6)]) == 3

    @pytest.mark.parametrize(
        ("prot", "reads", "writes"), [(NONE, False, False), (READ, True, False), (WRITE, False, True)]
    )
    def test_the_remote_rights_are_what_counts(
        self, me: Program, other: Program, prot: int, reads: bool, writes: bool
    ) -> None:
        """Of the VMA, not of the entry: memory that is only writable cannot be read."""
        assert other.call(Nr.MPROTECT, BASE, PAGE_SIZE, prot) == 0
        there = [(BASE, 4)]
        assert transfer(READV, me, other.pid, [(BASE, 4)], there) == (4 if reads else -errno.EFAULT)
        assert transfer(WRITEV, me, other.pid, [(BASE, 4)], there) == (4 if writes else -errno.EFAULT)

    def test_the_callers_rights_count_too(self, me: Program, other: Program) -> None:
        assert me.call(Nr.MPROTECT, BASE, PAGE_SIZE, READ) == 0
        assert transfer(READV, me, other.pid, [(BASE, 4)], [(BASE, 4)]) == -errno.EFAULT
        assert transfer(WRITEV, me, other.pid, [(BASE, 4)], [(BASE, 4)]) == 4

    def test_past_the_end_of_a_file(self, me: Program, other: Program, fd: int) -> None:
        other.mmap(3, READ, Map.PRIVATE.value, at=page(20), fd=fd)
        assert transfer(READV, me, other.pid, [(BASE, 3 * PAGE_SIZE)], [(page(21), 2 * PAGE_SIZE)]) == PAGE_SIZE
        assert transfer(READV, me, other.pid, [(BASE, 4)], [(page(22), 4)]) == -errno.EFAULT

    def test_a_remote_stack_does_not_grow_and_the_callers_does(self, me: Program, other: Program) -> None:
        below = next(vma.start for vma in reversed(other.mm.vmas)) - 2 * PAGE_SIZE
        assert transfer(READV, me, other.pid, [(BASE, 4)], [(below, 4)]) == -errno.EFAULT
        assert transfer(READV, me, other.pid, [(below, 4)], [(BASE, 4)]) == 4
        assert me.load(below, 4) == b"\x01\x01\x01\x01"


class TestErrorsInOrder:
    """Flags and counts, the local pieces, the remote ones, the process, the right."""

    def test_flags_and_counts(self, me: Program) -> None:
        bad = [(1 << 63, 1 << 63)]
        assert transfer(READV, me, GONE, bad, bad, flags=1) == -errno.EINVAL
        assert me.call(READV, GONE, BASE, 1025, BASE, 0, 0) == -errno.EINVAL
        assert me.call(READV, GONE, BASE, 1, BASE, 1025, 0, data=iovecs((BASE, 4))) == -errno.EINVAL
        # The local pieces are looked at first: without one, nobody asks how many remote ones there are.
        assert me.call(READV, GONE, BASE, 0, BASE, 1025, 0) == 0

    @pytest.mark.parametrize(
        ("local", "expected"),
        [
            pytest.param([(BASE, -1)], errno.EINVAL, id="negative length"),
            pytest.param([(1 << 63, 1), (BASE, -1)], errno.EINVAL, id="negative length, before a bad address"),
            pytest.param([(1 << 63, 1)], errno.EFAULT, id="a kernel address"),
            pytest.param([(-PAGE_SIZE, 1 << 40)], errno.EFAULT, id="wraps"),
        ],
    )
    def test_local_pieces(self, me: Program, local: Pieces, expected: int) -> None:
        assert transfer(READV, me, GONE, local, [(BASE, -1)]) == -expected

    def test_nothing_local_is_nothing_whoever_it_is(self, me: Program) -> None:
        assert transfer(READV, me, GONE, [], [(BASE, -1)]) == 0
        assert transfer(READV, me, GONE, [(BASE, 0)], [(BASE, 4)]) == 0

    def test_remote_pieces(self, me: Program) -> None:
        assert transfer(READV, me, GONE, [(BASE, 4)], [(BASE, -1)]) == -errno.EINVAL
        assert transfer(READV, me, GONE, [(BASE, 4)], []) == 0
        assert transfer(READV, me, GONE, [(BASE, 4)], [(BASE, 0), (HOLE, 0)]) == 0

    def test_no_such_process(self, me: Program) -> None:
        assert transfer(READV, me, GONE, [(BASE, 4)], [(BASE, 4)]) == -errno.ESRCH
        assert transfer(READV, me, 0, [(BASE, 4)], [(BASE, 4)]) == -errno.ESRCH

    def test_pieces_that_are_not_all_there(self, me: Program, other: Program) -> None:
        assert me.call(READV, other.pid, BASE, 1, BASE, 1, 0, data=iovecs((BASE, 4))) == -errno.EFAULT
        assert me.call(READV, other.pid, BASE, 1, BASE, 1, 0, data=iovecs((BASE, 4)) + bytes(15)) == -errno.EFAULT
        assert me.call(READV, other.pid, BASE, 1, BASE, 1, 0, data=bytes(15)) == -errno.EFAULT

    @pytest.mark.parametrize("nr", [READV, WRITEV])
    def test_whose_process_it_is(self, world: World, other: Program, nr: Nr) -> None:
        callers = {uid: world.attach(uid) for uid in (ROOT, USER, OTHER)}
        for caller in callers.values():
            caller.mmap(1, at=BASE)
        there = [(BASE, 4)]
        assert transfer(nr, callers[ROOT], other.pid, there, there) == 4
        assert transfer(nr, callers[USER], other.pid, there, there) == 4
        assert transfer(nr, callers[OTHER], other.pid, there, there) == -errno.EPERM
        assert transfer(nr, callers[OTHER], other.pid, there, [(HOLE, 4)]) == -errno.EPERM
        assert transfer(nr, callers[USER], callers[ROOT].pid, there, there) == -errno.EPERM


class TestProcessMadvise:
    """Advice that does no harm, to others, by the superuser."""

    def advise(self, caller: Program, pid: int, ranges: Pieces, advice: int = Madv.COLD, flags: int = 0) -> int:
        return caller.call(MADVISE, pid, BASE, len(ranges), advice, flags, data=iovecs(*ranges))

    def test_it_returns_the_bytes_advised(self, root: Program, other: Program) -> None:
        assert self.advise(root, other.pid, [(page(0), PAGE_SIZE), (page(2), 2 * PAGE_SIZE)]) == 3 * PAGE_SIZE
        assert self.advise(root, other.pid, []) == 0
        assert self.advise(root, other.pid, [(1, 0)]) == 0

    def test_up_to_the_first_that_fails(self, root: Program, other: Program) -> None:
        assert self.advise(root, other.pid, [(BASE, PAGE_SIZE), (HOLE, 9), (BASE, PAGE_SIZE)]) == PAGE_SIZE
        assert self.advise(root, other.pid, [(HOLE, PAGE_SIZE), (BASE, PAGE_SIZE)]) == -errno.ENOMEM
        assert self.advise(root, other.pid, [(BASE + 1, PAGE_SIZE)]) == -errno.EINVAL

    def test_by_pidfd(self, world: World, root: Program, real_child: int) -> None:
        target = world.attach(USER, pid=real_child)
        target.mmap(1, at=BASE)
        pidfd = os.pidfd_open(real_child)
        data = iovecs((BASE, PAGE_SIZE))
        assert root.call(MADVISE, 0, BASE, 1, Madv.COLD, 0, data=data, fds=[pidfd]) == PAGE_SIZE
        os.close(pidfd)

    def test_a_descriptor_that_is_no_pidfd(self, root: Program, fd: int) -> None:
        data = iovecs((BASE, PAGE_SIZE))
        assert root.call(MADVISE, root.pid, BASE, 1, 77, 0, data=data, fds=[fd]) == -errno.EBADF
        assert root.call(MADVISE, root.pid, BASE, 1, 77, 1, data=data, fds=[fd]) == -errno.EINVAL

    @pytest.mark.parametrize("advice", [Madv.DONTNEED, Madv.FREE, Madv.NORMAL, Madv.REMOVE, Madv.POPULATE_WRITE, 77])
    def test_advice_that_is_for_oneself(self, root: Program, other: Program, advice: int) -> None:
        assert self.advise(root, other.pid, [(BASE, PAGE_SIZE)], advice) == -errno.EINVAL
        assert other.load(BASE) == b"\x01"

    def test_order_of_errors(self, world: World, me: Program, root: Program, other: Program) -> None:
        """Flags, pieces, the process, the advice, whose it is, and last the capability, which even oneself needs."""
        stranger = world.attach(OTHER)
        ranges = [(BASE, PAGE_SIZE)]
        assert self.advise(stranger, GONE, [(BASE, -1)], 77, flags=1) == -errno.EINVAL
        assert me.call(MADVISE, GONE, BASE, 1025, Madv.COLD) == -errno.EINVAL
        assert self.advise(stranger, GONE, [(BASE, -1)], 77) == -errno.EINVAL
        assert self.advise(stranger, GONE, [(1 << 63, 1)], 77) == -errno.EFAULT
        assert me.call(MADVISE, other.pid, BASE, 2, Madv.COLD, 0, data=iovecs((BASE, 1))) == -errno.EFAULT
        assert self.advise(stranger, GONE, ranges, 77) == -errno.ESRCH
        assert self.advise(stranger, other.pid, ranges, 77) == -errno.EINVAL
        assert self.advise(stranger, other.pid, ranges) == -errno.EACCES
        assert self.advise(me, root.pid, ranges) == -errno.EACCES
        assert self.advise(me, other.pid, ranges) == -errno.EPERM
        assert self.advise(me, me.pid, ranges) == -errno.EPERM

    def test_locked_memory_of_another(self, root: Program, other: Program) -> None:
        other.mmap(1, flags=ANON | Map.LOCKED.value, at=page(9))
        assert self.advise(root, other.pid, [(page(9), PAGE_SIZE)]) == -errno.EINVAL


def test_the_end_of_user_space(me: Program, other: Program) -> None:
    """An address that could be a user's and is none: a fault, not a refusal of the pieces."""
    assert transfer(READV, me, other.pid, [(TASK_SIZE, 4)], [(BASE, 4)]) == -errno.EFAULT
    assert transfer(READV, me, other.pid, [(BASE, 4)], [(TASK_SIZE, 4)]) == -errno.EFAULT
