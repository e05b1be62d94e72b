"""The raw calls of one thread: sends requests, receives replies, delivers signals. The rest of the library uses it.

Owns the connection and the signal actions. Knows the meaning of no call. A connection belongs to the process that
attached. The library refuses its use by another process (after a plain os.fork) before it sends anything.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from shared import wire
from shared.client.connection import Connection
from shared.client.errors import KerneldError, KerneldGone
from shared.client.signals import Action, SignalActions, disposition_of
from shared.uapi.syscalls import Nr
from shared.wire import Reply

_PACK = wire.REQUEST.pack
_UNPACK = wire.REPLY.unpack_from
_REQUEST_BYTES = wire.REQUEST.size
_REPLY_BYTES = wire.REPLY.size
_PADDING = tuple((0,) * (6 - count) for count in range(7))
"""By number of arguments, the zeros that follow them."""


_forks = 0
"""The number of forks since the import. Comparing it costs less than getpid()."""


def _count_fork() -> None:
    global _forks  # noqa: PLW0603  (of the process, as the pid is)
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class SystemCalls:
    """One thread's way into the kernel."""

    def __init__(self, socket_path: str) -> None:
        """Connect. The first call must be attach. Raises KerneldUnavailable."""
        self._actions = SignalActions()
        self._connect(socket_path)

    def syscall(self, nr: int, *args: int, data: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Make one raw request and return `ret`: what Linux returns, or -errno.

        At most six `args`; `data` travels inline, `fds` beside. A signal is delivered as for any request.
        """
        return self.trap(nr, args, data, fds)[0]

    def call(self, nr: int, *args: int, data: bytes = b"", fds: Sequence[int] = ()) -> Reply:
        """Make one request and return its reply. Raises OSError(errno) when it fails."""
        ret, signo, inline = self.trap(nr, args, data, fds)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))
        return Reply(ret, signo, inline, wire.unpack_siginfo(inline) if signo else None)

    def call_for_fds(self, nr: int, *args: int, data: bytes = b"") -> tuple[Reply, list[int]]:
        """Make one request whose reply brings descriptors, for the caller to own. Raises OSError when it fails."""
        self._check_owner()
        answer, fds = self._connection.exchange_for_fds(_pack(nr, args, data))
        try:
            (reply,) = self._unpack(answer, 1)
            self.deliver(reply)
            if reply.ret < 0:
                raise OSError(-reply.ret, os.strerror(-reply.ret))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return reply, fds

    def trap(
        self, nr: int, args: tuple[int, ...], data: bytes = b"", fds: Sequence[int] = ()
    ) -> tuple[int, int, bytes]:
        """Make one request; return ret, signo and the reply's inline data. A signal has been delivered by then."""
        if _forks != self._forks:
            self._check_owner()
        connection = self._connection
        if fds:
            length = len(connection.exchange(_pack(nr, args, data), fds))
        elif data:
            length = connection.converse(_pack(nr, args, data))
        else:
            try:
                datagram = _PACK(_REQUEST_BYTES, nr, *args, *_PADDING[len(args)])
            except (struct.error, IndexError):
                # An argument is negative or over 64 bits. That is rare, so only this case pays for masking.
                datagram = _pack(nr, args, data)
            length = connection.converse(datagram)
        if length < _REPLY_BYTES:
            raise _malformed()
        size, signo, ret = _UNPACK(connection.buffer)
        inline = connection.taken(_REPLY_BYTES, length) if length > _REPLY_BYTES else b""
        if signo or size != length:
            (reply,) = self._unpack(connection.taken(0, length), 1)
            self.deliver(reply)
        return ret, signo, inline

    def exchange(self, datagram: bytes, count: int, fds: Sequence[int] = ()) -> list[Reply]:
        """Send a datagram of `count` packed requests and return the replies. After a signal or an exit there are fewer.

        The last reply has the signal, and the caller must `deliver` it. Raises KerneldGone.
        """
        self._check_owner()
        return self._unpack(self._connection.exchange(datagram, fds), count)

    def deliver(self, reply: Reply) -> None:
        """Act on the signal in `reply`, if it has one. Raises the exception of the handler."""
        if reply.signo:
            self._actions.deliver(reply)
            info = reply.siginfo
            if info is not None and info.pkru is not None:
                # This is sigreturn's part. A handler that raised has left by a jump, and keeps its PKRU.
                self.syscall(Nr.WRPKRU, info.pkru)

    def fileno(self) -> int:
        """Return the connection's descriptor, for poll. Between calls it is readable only if kerneld has closed it."""
        return self._connection.fileno()

    def sigaction(self, signo: int, action: Action) -> Action:
        """Set the action of a signal: SIG_DFL, SIG_IGN or a callable(signo, SigInfo). Return the earlier action.

        The callable may raise, as a C handler may siglongjmp. When it returns, the access is tried again.
        Raises OSError(EINVAL) for a number that is no signal or cannot be caught. Source: sigaction(2).
        """
        self.call(Nr.RT_SIGACTION, signo, disposition_of(action))
        before = self._actions.get(signo)
        self._actions.set(signo, action)
        return before

    @property
    def says_where(self) -> bool:
        """Whether the library reports a fatal signal on stderr, with the address and the line of the program."""
        return self._actions.says_where

    @says_where.setter
    def says_where(self, value: bool) -> None:
        self._actions.says_where = value

    def _connect(self, socket_path: str) -> None:
        self._owner = os.getpid()
        self._forks = _forks
        self._connection = Connection(socket_path, self._take_late_answer)

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise KerneldError(
                f"this connection belongs to process {self._owner}: fork with Process.fork(), or attach in the child"
            )

    def _unpack(self, answer: bytes, count: int) -> list[Reply]:
        """Return the replies to `count` requests. Raises KerneldGone when kerneld refused the datagram."""
        try:
            replies = wire.unpack_replies(answer)
        except wire.WireError:
            raise _malformed() from None
        if not replies or len(replies) > count or any(reply.signo for reply in replies[:-1]):
            raise _malformed()
        # An exit also ends a batch early.
        if len(replies) < count and not replies[-1].signo and replies[-1].ret < 0:
            raise KerneldGone(f"kerneld refused a datagram: {os.strerror(-replies[-1].ret)}")
        return replies

    def _take_late_answer(self, answer: bytes) -> None:
        """Take the answer of an interrupted call. Only the end of this process by the kernel still matters."""
        try:
            replies = wire.unpack_replies(answer)
        except wire.WireError:
            raise _malformed() from None
        for reply in replies:
            if reply.siginfo is not None and reply.siginfo.fatal:
                self.deliver(reply)


def _pack(nr: int, args: tuple[int, ...], data: bytes) -> bytes:
    size = _REQUEST_BYTES + len(data)
    if size > wire.MAX_DATAGRAM:
        raise ValueError(f"a request of {size} bytes: a datagram holds {wire.MAX_DATAGRAM}")
    if len(args) > 6:
        raise TypeError("a system call takes at most six arguments")
    try:
        head = _PACK(size, nr, *args, *_PADDING[len(args)])
    except struct.error:
        # An argument is negative or over 64 bits. That is rare, so only this case pays for masking.
        return wire.pack_request(nr, args, data)
    return head + data if data else head


def _malformed() -> KerneldError:
    return KerneldError("kerneld sent an answer that does not follow the ABI")
