"""One connection: sends a datagram and receives its answer. Owns the socket. Knows no request by name.

Invariant: the log shows the state of the last exchange, also after an interruption. Its length is 0 (nothing sent), 1
(sent, no answer yet) or 2 (answered). A Python signal handler may raise between any two bytecodes: `send` or `recv` may
have done its work, and its result is not stored yet. So both run inside `list.extend`, which appends the result without
a return to the interpreter. The next exchange first reads and drops the answer of an interrupted one.

Before it sleeps for an answer, a connection polls for a moment if that is likely to help (`shared.spin`).
"""

from __future__ import annotations

import array
import errno
import functools
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from shared import wire
from shared.client.errors import KerneldError, KerneldGone, KerneldLocked, KerneldUnavailable
from shared.client.path import may_be_planted
from shared.spin import Spin

_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN})
_UCRED = struct.Struct("=iII")
_FDS_SPACE = socket.CMSG_SPACE(wire.MAX_FDS * array.array("i").itemsize)


class Connection:
    """A connected socket with at most one datagram unanswered."""

    def __init__(self, path: str, on_late: Callable[[bytes], None]) -> None:
        """Connect to the socket at `path`. `on_late` gets the answer of an interrupted call.

        Raises KerneldUnavailable when there is no daemon to reach.
        """
        self.path = path
        self._on_late = on_late
        self._socket = connect(path)
        self._send = self._socket.send
        self._recv_into = self._socket.recv_into
        self.buffer = bytearray(wire.MAX_REPLY)
        """The last answer, from its start; valid until the next exchange."""
        self._buffers = (self.buffer,)
        self._view = memoryview(self.buffer)
        self._log: list[Any] = []
        self._busy = False
        self._is_gone = False
        self._spin = Spin()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        self._look = functools.partial(poll.poll, 0)

    def converse(self, datagram: bytes) -> int:
        """Send one datagram and return the length of its answer in bytes. The answer is in `buffer`.

        Every single call takes this path, so it allocates little. Raises KerneldGone when the connection has ended.
        """
        if self._busy:
            raise _busy()
        log = self._log
        try:
            self._busy = True
            if len(log) == 1:
                self._read_late_answer()
            log.clear()
            log.extend(map(self._send, (datagram,)))
            spin = self._spin
            if spin.skip:
                spin.skip -= 1
            else:
                spin.wait(self._look)
            log.extend(map(self._recv_into, self._buffers))
        except OSError as error:
            self._raise_gone(error)
        finally:
            self._busy = False
        length: int = log[1]
        if not length:
            self._raise_gone(None)
        return length

    def taken(self, start: int, end: int) -> bytes:
        """Return a part of the last answer."""
        return bytes(self._view[start:end])

    def exchange(self, datagram: bytes, fds: Sequence[int] = ()) -> bytes:
        """Send one datagram, with `fds` beside it, and return its answer.

        Raises KerneldGone when the connection has ended, OSError(EBADF) for a bad descriptor among `fds`.
        """
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sending = map(self._socket.sendmsg, ((datagram,),), (rights,))
        else:
            sending = map(self._send, (datagram,))
        return self._run(sending, map(self._recv_into, self._buffers))

    def exchange_for_fds(self, datagram: bytes) -> tuple[bytes, list[int]]:
        """Send one datagram and return its answer and the descriptors with it (CLOEXEC), which the caller owns.

        Raises KerneldGone when the connection has ended.
        """
        receiving = map(self._socket.recvmsg_into, (self._buffers,), (_FDS_SPACE,), (socket.MSG_CMSG_CLOEXEC,))
        answer = self._run(map(self._send, (datagram,)), receiving)
        fds = array.array("i")
        for level, kind, data in self._log[1][1]:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return answer, fds.tolist()

    @property
    def is_open(self) -> bool:
        """Whether the connection has not been closed here, and its end has not been noticed."""
        return self._socket.fileno() >= 0 and not self._is_gone

    def fileno(self) -> int:
        """Return the socket's descriptor, for poll.

        Between exchanges it is readable only if the connection has ended.
        """
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; any later exchange raises KerneldGone."""
        self._socket.close()

    def _run(self, sending: Iterator[int], receiving: Iterator[Any]) -> bytes:
        """Draw the one element of each iterator: the send, then the receive. Return the answer."""
        if self._busy:
            raise _busy()
        log = self._log
        try:
            self._busy = True
            if len(log) == 1:
                self._read_late_answer()
            log.clear()
            log.extend(sending)
            self._spin.wait(self._look)
            log.extend(receiving)
            received = log[1]
            answer = bytes(self._view[: received if isinstance(received, int) else received[0]])
        except OSError as error:
            self._raise_gone(error)
        finally:
            self._busy = False
        if not answer:
            self._raise_gone(None)
        return answer

    def _read_late_answer(self) -> None:
        """Read the answer to an interrupted exchange. The real kernel closes descriptors that come with it."""
        log = self._log
        log.extend(map(self._recv_into, self._buffers))
        if log[1]:
            self._on_late(bytes(self._view[: log[1]]))

    def _raise_gone(self, error: OSError | None) -> NoReturn:
        if error is not None and error.errno not in _GONE and self._socket.fileno() >= 0:
            raise error
        self._is_gone = True
        raise KerneldGone("kerneld is gone: it stopped, or it has released this process") from None


def _busy() -> KerneldError:
    return KerneldError("a call to kerneld is under way in this process: a signal handler may raise, not call")


def connect(path: str) -> socket.socket:
    """Return a socket that is connected to the daemon at `path`.

    Raises KerneldLocked when this user is not permitted to connect, and KerneldUnavailable when no daemon listens or
    the daemon belongs to another user.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
    except BaseException as error:
        sock.close()
        if not isinstance(error, OSError):
            raise
        raise _unavailable(path, error) from None
    if may_be_planted(path):
        _check_owner(sock, path)
    return sock


def find_daemon(path: str) -> int:
    """Return the pid of the daemon at `path`. This makes no request. Raises the exceptions of `connect`.

    Source: SO_PEERCRED, unix(7).
    """
    with connect(path) as sock:
        pid, _uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)


def _unavailable(path: str, error: OSError) -> KerneldUnavailable:
    """Return the exception for a failed connect: no daemon, or a daemon that this user may not reach."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
        return KerneldUnavailable(f"no kerneld at {path}: start one with 'kerneld start'")
    if error.errno in (errno.EACCES, errno.EPERM):
        return KerneldLocked(f"not permitted to use the kerneld at {path}")
    if len(os.fsencode(path)) > wire.MAX_SOCKET_PATH:
        return KerneldUnavailable(f"the socket path is longer than {wire.MAX_SOCKET_PATH} bytes: {path}")
    return KerneldUnavailable(f"no kerneld at {path}: {os.strerror(error.errno) if error.errno else error}")


def _check_owner(sock: socket.socket, path: str) -> None:
    """Accept only a daemon of this user or of root: the daemon gets this process's descriptors, and could lie.

    Raises KerneldUnavailable. Source: SO_PEERCRED, unix(7).
    """
    _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in (0, os.geteuid()):
        sock.close()
        raise KerneldUnavailable(
            f"refusing the kerneld at {path}: it is run by uid {uid}; to use it, name it in $KERNELD_SOCKET"
        )
