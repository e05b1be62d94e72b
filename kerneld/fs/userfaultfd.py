"""The descriptors of userfaultfds: reading ends of pipes, so that read(2), poll(2) and epoll are the host's.

Owns the writing end of each pipe. A descriptor that a process passes in is found by its inode: a copy of it, by dup,
fork or a socket, is the same userfaultfd. When no reader is left the userfaultfd is released: the server watches the
writing ends. Answers to Linux v6.8 fs/userfaultfd.c: userfaultfd_ctx_read(), new_userfaultfd().

Differs from Linux: poll(2) of a descriptor without O_NONBLOCK, and before UFFDIO_API, says nothing (Linux: POLLERR).
A read of fewer than 32 bytes takes a part of a message (Linux: EINVAL). 2,048 messages fit; further ones come with the
next change of the waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from kerneld.errors import SysError
from kerneld.mm.calls.userfaultfd import release
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Steps
from kerneld.mm.space.userfaultfd import UserfaultfdCtx, UserfaultWait
from kerneld.task.mmap_lock import MmapLocks
from kerneld.task.task import Process
from shared.uapi.userfaultfd import UFFD_MSG_BYTES

if TYPE_CHECKING:
    from kerneld.fs.file_limits import FileAccounts, Payer

_PIPE_BYTES = 1 << 16
_INT = struct.Struct("i")


class PipeWatch(Protocol):
    """The interface to the server: it calls `Kernel.reader_gone` when a pipe has no reader any more."""

    def add(self, pipe: int) -> None:
        """Watch the writing end of a pipe. Raises OSError."""

    def remove(self, pipe: int) -> None:
        """Stop watching a pipe."""


class MessagePipe:
    """The writing end of one userfaultfd's pipe, and what has been put into it."""

    def __init__(self, fd: int) -> None:
        """`fd` is a writing end that does not block; it is closed by `close`."""
        self.fd = fd
        self._written: list[UserfaultWait] = []
        """The waits whose messages are in the pipe, in order; before them, some whose messages have been read."""
        self._left: list[UserfaultWait] = []
        """Those for whose messages the pipe has had no room."""

    def send(self, wait: UserfaultWait) -> None:
        """Put the message of a wait into the pipe."""
        self._left.append(wait)
        self._write()

    def take_back(self) -> None:
        """Take the messages of ended waits out of the pipe, unless they have been read."""
        unread = self._count_unread()
        self._written = self._written[len(self._written) - unread :]
        self._left = [wait for wait in self._left if not wait.is_over]
        if any(wait.is_over for wait in self._written):
            unread = self._empty()
            unread_waits = self._written[len(self._written) - unread :]
            self._left = [wait for wait in unread_waits if not wait.is_over] + self._left
            self._written = []
        self._write()

    def _write(self) -> None:
        # Without a reader (EPIPE) the server tells soon that the userfaultfd is to be released.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._left:
                os.write(self.fd, self._left[0].message)
                self._written.append(self._left.pop(0))

    def _count_unread(self) -> int:
        (unread,) = _INT.unpack(fcntl.ioctl(self.fd, termios.FIONREAD, bytes(_INT.size)))
        return min(int(unread) // UFFD_MSG_BYTES, len(self._written))

    def _empty(self) -> int:
        """Read all that nobody has read; return the number of messages."""
        reader = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return len(os.read(reader, _PIPE_BYTES)) // UFFD_MSG_BYTES
        except BlockingIOError:
            return 0
        finally:
            os.close(reader)

    def close(self) -> None:
        """Close the pipe's writing end."""
        os.close(self.fd)


class _Open:
    """A userfaultfd with an open descriptor somewhere."""

    def __init__(self, ctx: UserfaultfdCtx, pipe: MessagePipe, payer: Payer) -> None:
        self.ctx = ctx
        self.pipe = pipe
        self.payer = payer


class Userfaultfds:
    """The userfaultfds of one machine, by the inode of their pipe."""

    def __init__(self, accounts: FileAccounts, locks: MmapLocks, find_watch: Callable[[], PipeWatch | None]) -> None:
        """A userfaultfd counts as one open file in `accounts` until it is released, and holds a lock meanwhile.

        `find_watch` returns the server's watch, which is there while a server runs.
        """
        self._accounts = accounts
        self._open: dict[tuple[int, int], _Open] = {}
        self._locks = locks
        self.releasing: deque[Steps] = deque()
        """The unfinished work of those whose last descriptor is closed."""
        self._find_watch = find_watch

    def make(self, process: Process, mm: MmStruct, flags: int) -> int:
        """Make a userfaultfd for an address space, and return its descriptor, which the caller closes.

        `flags` are those of userfaultfd(2), all known. Raises SysError(EMFILE) over a limit.
        """
        payer = self._accounts.charge(process)
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._accounts.uncharge(payer)
            raise SysError(errno.EMFILE) from None
        try:
            watch = self._find_watch()
            if watch is not None:
                watch.add(writer)
        except OSError:
            self._accounts.uncharge(payer)
            os.close(reader)
            os.close(writer)
            raise SysError(errno.EMFILE) from None
        os.set_blocking(reader, not flags & os.O_NONBLOCK)
        ctx = UserfaultfdCtx(mm, flags)
        ctx.messages = pipe = MessagePipe(writer)
        self._open[_inode(writer)] = _Open(ctx, pipe, payer)
        return reader

    def find(self, fd: int) -> UserfaultfdCtx | None:
        """Return the userfaultfd of a descriptor, or None if it is something else."""
        found = self._open.get(_inode(fd))
        return found.ctx if found is not None else None

    def reader_gone(self, pipe: int) -> bool:
        """Release the userfaultfd of a pipe, given by its writing end, that has no reader any more.

        Return False if it is another's pipe. Accesses go on at once. That its VMAs are not watched any more may be left
        to `release_some`; until then the threads of the process wait, as for mmap_lock.
        """
        for inode, each in self._open.items():
            if each.pipe.fd == pipe:
                del self._open[inode]
                self._close(each)
                each.ctx.released = True
                each.ctx.wake(0, 0)
                self.releasing.append(self._release(each.ctx))
                self.release_some()
                return True
        return False

    def _release(self, ctx: UserfaultfdCtx) -> Steps:
        """Source: Linux v6.8 fs/userfaultfd.c:userfaultfd_release()."""
        while ctx.mm in self._locks.holders:
            yield
        with self._locks.write(None, ctx.mm):
            yield from release(ctx)

    def release_some(self) -> None:
        """Go on for one piece with the oldest userfaultfd that is being released."""
        if next(self.releasing[0], self) is self:
            self.releasing.popleft()

    def _close(self, each: _Open) -> None:
        watch = self._find_watch()
        if watch is not None:
            watch.remove(each.pipe.fd)
        # After that nothing can be sent any more: the waits end without messages.
        each.ctx.messages = _Nowhere()
        each.pipe.close()
        self._accounts.uncharge(each.payer)

    def shutdown(self) -> None:
        """Close every pipe; who waits goes with the machine."""
        for each in self._open.values():
            self._close(each)
        self._open.clear()
        self.releasing.clear()


class _Nowhere:
    """Where messages go that nobody can read."""

    def send(self, wait: UserfaultWait) -> None:
        """Do nothing."""

    def take_back(self) -> None:
        """Do nothing."""


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
