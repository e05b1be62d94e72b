"""One connection: sends a datagram and receives its answer. Owns the socket. Knows no request by name.

Invariant: the log shows the state of the last exchange, also after an interruption. Its length is 0 (nothing sent), 1
(sent, no answer yet) or 2 (answered). A Python signal handler may raise between any two bytecodes: `send` or `recv` may
have done its work, and its result is not stored yet. So both run inside `list.extend`, which appends the result without
a return to the interpreter. The next exchange first reads and drops the answer of an interrupted one.

Before it sleeps for an answer, a connection polls for a moment if that is likely to help (`shared.spin`).

A connection that is used much asks for a ring (docs/abi.md, "Ring"): memory in which its datagrams travel while kerneld
looks at it. Their state needs no log: the ring has the number of the last datagram, and the connection the number of
the last one whose answer it has taken.
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
from shared.client.ring import Ring
from shared.spin import Spin
from shared.uapi.ring import (
    ANSWER_BYTES,
    ANSWER_NUMBER,
    MOST_REQUEST_BYTES,
    REQUEST_BYTES,
    REQUEST_NUMBER,
    RING_BYTES,
    WATCHED,
)
from shared.uapi.syscalls import Nr

_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN})
_UCRED = struct.Struct("=iII")
_RING = wire.pack_request(Nr.RING)
_RING_BELL = wire.pack_request(Nr.RING_BELL)
_RING_AFTER = 16
"""The number of exchanges by the socket before a connection asks for a ring: a short program does not need one."""
_LOOKS = (None,) * 1000
"""How often the client looks for an answer in the ring: for some 30 µs."""
_MOST_SKIPPED = 64
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
        self._ring: Ring | None = None
        self._until_ring = _RING_AFTER
        self._answered = 0
        """The number of the last datagram in the ring whose answer has been taken."""
        self._misses = 0
        self._skip = 0
        """The number of next datagrams that go by the socket, because answers in the ring came too late to wait for."""
        self._bells: list[int] = []
        """Of the datagram in the ring: whether its bell has been sent."""
        self._heard: list[int] = []
        """Of the datagram in the ring: the lengths of what has come by the socket."""

    def converse(self, datagram: bytes) -> int:
        """Send one datagram and return the length of its answer in bytes. The answer is in `buffer`.

        Every single call takes this path, so it allocates little. Raises KerneldGone when the connection has ended.
        """
        if self._busy:
            raise _busy()
        ring = self._ring
        if ring is None:
            self._until_ring -= 1
            if not self._until_ring:
                ring = self._open_ring()
        log = self._log
        try:
            self._busy = True
            if len(log) == 1:
                self._read_late_answer()
            if ring is not None:
                words = ring.words
                if words[REQUEST_NUMBER] != self._answered:
                    self._take_late_answer(ring)
                if not words[WATCHED] or len(datagram) > MOST_REQUEST_BYTES:
                    pass
                elif self._skip:
                    self._skip -= 1
                else:
                    return self._converse_in(ring, datagram)
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
        if not fds:
            return bytes(self._view[: self.converse(datagram)])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sending = map(self._socket.sendmsg, ((datagram,),), (rights,))
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
        self._ring = None
        self._until_ring = 0
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
            ring = self._ring
            if ring is not None and ring.words[REQUEST_NUMBER] != self._answered:
                self._take_late_answer(ring)
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

    def _open_ring(self) -> Ring | None:
        """Ask for a ring. A kerneld that has none, or a process that cannot map it, stays with the socket."""
        answer, fds = self.exchange_for_fds(_RING)
        try:
            if len(fds) == 1 and wire.unpack_replies(answer)[0].ret == RING_BYTES:
                self._ring = Ring(fds[0])
        except (OSError, wire.WireError):
            pass
        finally:
            for fd in fds:
                os.close(fd)
        return self._ring

    def _converse_in(self, ring: Ring, datagram: bytes) -> int:
        """Put one datagram into the ring, take the answer, and return its length."""
        words = ring.words
        if self._heard:
            # The last exchange was interrupted after its answer had been taken.
            self._bells.clear()
            self._heard.clear()
        length = len(datagram)
        number = self._answered + 1
        ring.requests[:length] = datagram
        words[REQUEST_BYTES] = length
        words[REQUEST_NUMBER] = number
        for _ in _LOOKS:
            if words[ANSWER_NUMBER] == number:
                self._misses = 0
                break
        else:
            self._misses += 1
            self._skip = min(1 << self._misses, _MOST_SKIPPED)
        length = words[ANSWER_BYTES]
        if words[ANSWER_NUMBER] != number or not length:
            return self._hear(ring, number)
        self._view[:length] = ring.answers[:length]
        self._answered = number
        return length

    def _hear(self, ring: Ring, number: int) -> int:
        """Sleep until a datagram in the ring has its answer, take it, and return its length.

        It may be called again after an interruption. What comes by the socket is the answer, if the ring says so, and
        the reply to the bell, if it was rung.
        """
        words, bells, heard = ring.words, self._bells, self._heard
        if words[ANSWER_NUMBER] != number and not bells:
            bells.extend(map(self._send, (_RING_BELL,)))
        if not heard and (bells or not words[ANSWER_BYTES]):
            heard.extend(map(self._recv_into, self._buffers))
        length = words[ANSWER_BYTES] if words[ANSWER_NUMBER] == number else 0
        if length:
            self._view[:length] = ring.answers[:length]
        elif heard[0]:
            length = heard[0]
            if bells and len(heard) == 1:
                heard.extend(map(self._recv_into, (bytearray(len(_RING_BELL)),)))
        self._answered = number
        # In this order: what has been heard tells that there is something to clear.
        bells.clear()
        heard.clear()
        if not length:
            self._raise_gone(None)
        return length

    def _take_late_answer(self, ring: Ring) -> None:
        """Take the answer to an interrupted exchange in the ring."""
        length = self._hear(ring, ring.words[REQUEST_NUMBER])
        self._on_late(bytes(self._view[:length]))

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
