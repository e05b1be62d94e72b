"""The input and the result of a handler.

Knows no byte of the wire. `Call` is the context of one request. `Answer` is its result before it is packed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple

from kerneld.errors import SysError
from kerneld.fs.fput import fput
from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import WaitingSteps
from kerneld.mm.space.wait import Wait
from kerneld.task.task import Process, Thread
from shared.uapi.page import Pid
from shared.wire import SigInfo

if TYPE_CHECKING:
    from kerneld.syscalls.kernel import Kernel


class Answer(NamedTuple):
    """The result of one request: ret as Linux returns it, inline data or a signal, and descriptors to send with it."""

    ret: int
    data: bytes = b""
    signo: int = 0
    siginfo: SigInfo | None = None
    fds: tuple[int, ...] = ()


Pieces = Generator[Wait | None, None, "int | Answer"]
"""A long request, as a generator. It yields between two pieces, when the machine is consistent; other clients may then
be served. Its return value is the result of the whole request. If it yields a Wait, the next piece has to wait until
that is over."""


class Work:
    """A request that has begun and continues later."""

    __slots__ = ("_pieces", "gives_way", "is_interruptible", "is_refreshed", "waits_for")

    def __init__(self, pieces: Pieces, *, is_refreshed: bool = False, is_interruptible: bool = False) -> None:
        """`is_refreshed`: the request itself is finished, and only the shadow table has to be brought up to date.

        `is_interruptible`: while it waits for a userfaultfd, the client may give it up by its next request.
        """
        self._pieces = pieces
        self.is_refreshed = is_refreshed
        self.is_interruptible = is_interruptible
        self.gives_way = False
        """Whether the last piece has reclaimed memory: others are served before the next, however long the slice is."""
        self.waits_for: Wait | None = None
        """The event that the next piece waits for, or None."""

    def go_on(self) -> int | Answer | Work:
        """Run one piece. Return the result if it was the last piece. Raises the exceptions of the piece."""
        self.gives_way = False
        try:
            self.waits_for = next(self._pieces)
        except StopIteration as end:
            outcome: int | Answer = end.value
            return outcome
        return self

    def close(self) -> None:
        """Give up the remaining pieces."""
        self._pieces.close()


def in_pieces(steps: WaitingSteps) -> int | Answer | Work:
    """Begin a call that is its steps and returns 0."""

    def pieces() -> Pieces:
        yield from steps
        return 0

    return Work(pieces()).go_on()


def to_its_end(result: int | Answer | Work) -> Pieces:
    """Continue what a handler has returned, piece by piece, and return the result."""
    while isinstance(result, Work):
        if result.waits_for is None or not result.waits_for.is_over:
            yield result.waits_for
        result = result.go_on()
    return result


class Call:
    """One request on its way through a handler."""

    __slots__ = ("args", "data", "fds", "kernel", "nr", "nr_taken", "process", "thread", "work")

    def __init__(
        self, kernel: Kernel, thread: Thread, args: tuple[int, int, int, int, int, int], data: bytes, fds: list[int]
    ) -> None:
        self.kernel = kernel
        self.thread = thread
        self.process: Process = thread.process
        self.args = args
        """Six unsigned 64-bit words."""
        self.data = data
        self.fds = fds
        """Descriptors of the datagram that no earlier request has consumed."""
        self.nr_taken = 0
        """How many of them, from the first on, are this request's: they are closed when it has its answer."""
        self.nr = 0
        """The number of the request."""
        self.work: Work | None = None
        """The rest of a request that has begun."""

    @property
    def mm(self) -> MmStruct:
        """The caller's address space."""
        mm = self.process.mm
        assert mm is not None
        return mm

    def int_arg(self, index: int) -> int:
        """Return the lower 32 bits of an argument, unsigned: it is an int, a pid_t or a uid_t in C."""
        return self.args[index] & 0xFFFF_FFFF

    def signed_int_arg(self, index: int) -> int:
        """Return the lower 32 bits of an argument, signed: it is an int in C."""
        value = self.args[index] & 0xFFFF_FFFF
        return value - (1 << 32) if value >> 31 else value

    def get_process(self, pid: Pid) -> Process:
        """Return the living process of a pid. Raises SysError(ESRCH)."""
        process = self.kernel.find_process(pid)
        if process is None:
            raise SysError(errno.ESRCH)
        return process

    def wait_for(self, mm: MmStruct) -> Iterator[Wait | None]:
        """Yield as long as the caller may not use an address space: another thread, or the change of a file, holds it,
        or its agent is late.

        The process of the address space may have ended or changed its program then.
        """
        locks, changes = self.kernel.table.mmap_locks, self.kernel.files.changes
        while locks.is_held(mm, self.thread) or changes.holds(mm):
            yield self.kernel.tlbs.debts.wait_for(mm) if mm in locks.unsettled else None

    def may_write(self, file: File) -> bool:
        """Return whether the caller owns a file or may write to it. The mode in which it is open does not matter."""
        return self.kernel.files.may_write(file, self.process.cred)

    def take_fd(self) -> int:
        """Return the next descriptor of the datagram: this request's, which may begin again and take it once more.

        It is open until the request has its answer, or gives way between two pieces. Raises SysError(EBADF) if none is
        left.
        """
        if not self.has_fd:
            raise SysError(errno.EBADF)
        self.nr_taken += 1
        return self.fds[self.nr_taken - 1]

    @property
    def has_fd(self) -> bool:
        """Whether the datagram has a descriptor that no request has taken."""
        return self.nr_taken < len(self.fds)

    def take_own_fd(self) -> int:
        """Do the same for a descriptor that is to stay open: the caller owns the one that is returned.

        Raises SysError(EBADF), also for a number that is no descriptor, and SysError(EMFILE).
        """
        try:
            return os.dup(self.take_fd())
        except OSError as error:
            raise SysError(error.errno or errno.EBADF) from None

    def close_taken(self) -> None:
        """Close the descriptors that this request has taken: they are consumed."""
        taken = self.fds[: self.nr_taken]
        del self.fds[: self.nr_taken]
        self.nr_taken = 0
        for fd in taken:
            fput(fd)

    def rewind(self, args: tuple[int, int, int, int, int, int], data: bytes) -> None:
        """Give the request what it had at its start, because it begins again: arguments, inline data, descriptors."""
        self.args, self.data, self.nr_taken = args, data, 0
