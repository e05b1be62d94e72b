"""One connection: a datagram out, its answer in. Owns the socket; knows no request by name.

Invariant: the log says how far the last exchange came, whatever interrupted it. Its length is 0 (nothing sent), 1
(sent, the answer still to come) or 2 (answered). A Python signal handler may raise between any two bytecodes, after
`send` or `recv` has done its work but before its result is stored; so both run inside `list.extend`, which appends
the result without returning to the interpreter in between. The next exchange reads away an answer that nobody waits
for any more.

Between the two a connection waits awake for a moment where that pays (`shared.spin`).
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
        """Connect to the socket at `path`; `on_late` gets an answer whose caller was interrupted.

        Raises KerneldUnavailable where nobody can be reached there.
        """
        self.path = path
        self._on_late = on_late
        self._socket = connect(path)
        self._send = self._socket.send
        self._recv_into = self._socket.recv_into
        self.buffer = bytearray(wire.MAX_REPLY)
        """The last answer, from its start; good until the next exchange."""
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
        """Send one datagram and return its answer's length in bytes; the answer lies in `buffer`.

        The one path of every single call, so it allocates little. Raises KerneldGone when the connection has ended.
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
        """Whether it has not been closed here, and has not been found ended."""
        return self._socket.fileno() >= 0 and not self._is_gone

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait on: between exchanges it is readable only at the connection's end."""
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
        """Read the answer to an interrupted exchange; descriptors that come with it are closed by the real kernel."""
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

    Raises KerneldLocked where this user is not permitted to, KerneldUnavailable where nobody listens or the daemon is a
    stranger's.
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
    """Return the pid of the daemon at `path`, which serves nothing for that. Raises as `connect` does.

    Source: SO_PEERCRED, unix(7).
    """
    with connect(path) as sock:
        pid, _uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)


def _unavailable(path: str, error: OSError) -> KerneldUnavailable:
    """Tell a locked door from an empty house."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
        return KerneldUnavailable(f"no kerneld at {path}: start one with 'kerneld start'")
    if error.errno in (errno.EACCES, errno.EPERM):
        return KerneldLocked(f"not permitted to use the kerneld at {path}")
    if len(os.fsencode(path)) > wire.MAX_SOCKET_PATH:
        return KerneldUnavailable(f"the socket path is longer than {wire.MAX_SOCKET_PATH} bytes: {path}")
    return KerneldUnavailable(f"no kerneld at {path}: {os.strerror(error.errno) if error.errno else error}")


def _check_owner(sock: socket.socket, path: str) -> None:
    """Trust a daemon of this user or of root alone: another's would be handed descriptors, and could lie.

    Raises KerneldUnavailable. Source: SO_PEERCRED, unix(7).
    """
    _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in (0, os.geteuid()):
        sock.close()
        raise KerneldUnavailable(
            f"refusing the kerneld at {path}: it is run by uid {uid}; to use it, name it in $KERNELD_SOCKET"
        )
