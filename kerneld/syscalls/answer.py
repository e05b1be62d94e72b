"""What goes into a handler and what comes out of it.

Knows no byte of the wire. `Call` is the context of one request, `Answer` its outcome before it is packed.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from kerneld.errors import SysError
from kerneld.mm.files.filemap import File
from kerneld.mm.space.mm import MmStruct
from kerneld.task.task import Process, Thread
from shared.wire import SigInfo

if TYPE_CHECKING:
    from kerneld.shadowpt.asking import Pending
    from kerneld.syscalls.kernel import Kernel


class Answer(NamedTuple):
    """The outcome of one request: ret as Linux would return it, inline data, or a signal; descriptors to send along."""

    ret: int
    data: bytes = b""
    signo: int = 0
    siginfo: SigInfo | None = None
    fds: tuple[int, ...] = ()


Pieces = Generator["Pending | None", None, "int | Answer"]
"""A long request: it yields where the machine is whole, so that others can be served before the next piece; what it
returns at last is the outcome of all. Where it yields something that is pending there is nothing to be done before that
is over."""


class Work:
    """A request that has begun and goes on later."""

    __slots__ = ("_pieces", "is_refreshed", "waits_for")

    def __init__(self, pieces: Pieces, *, is_refreshed: bool = False) -> None:
        """`is_refreshed`: all that is left is to see that the shadow table is up to date."""
        self._pieces = pieces
        self.is_refreshed = is_refreshed
        self.waits_for: Pending | None = None
        """What the next piece waits for."""

    def go_on(self) -> int | Answer | Work:
        """Run one piece; returns the outcome where it was the last. Raises what the piece raises."""
        try:
            self.waits_for = next(self._pieces)
        except StopIteration as end:
            outcome: int | Answer = end.value
            return outcome
        return self

    def close(self) -> None:
        """Give up what is left."""
        self._pieces.close()


class Call:
    """One request on its way through a handler."""

    __slots__ = ("args", "data", "fds", "kernel", "process", "thread", "work")

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
        self.work: Work | None = None
        """What is left of a request that goes on."""

    @property
    def mm(self) -> MmStruct:
        """The caller's address space."""
        return self.process.live_mm

    def int_arg(self, index: int) -> int:
        """Return an argument that is an int, a pid_t or a uid_t in C, as its unsigned 32 bits: the rest is ignored."""
        return self.args[index] & 0xFFFF_FFFF

    def signed_int_arg(self, index: int) -> int:
        """Return an argument that is an int in C, with its sign."""
        value = self.args[index] & 0xFFFF_FFFF
        return value - (1 << 32) if value >> 31 else value

    def may_write(self, file: File) -> bool:
        """Tell whether the caller owns a file or may write to it, in whatever way it is open."""
        return self.kernel.files.may_write(file, self.process.cred)

    def take_fd(self) -> int:
        """Consume the next descriptor of the datagram. Raises SysError(EBADF) where none is left."""
        if not self.fds:
            raise SysError(errno.EBADF)
        return self.fds.pop(0)
