"""One connection: receives datagrams and sends answers, and never blocks.

It owns the socket and at most one answer that does not fit into the socket yet. It does not look into the bytes of
records.

Invariant: while an answer waits (`unsent`), the server reads nothing from the connection. So a client that does not
read costs the memory of one answer, and no more.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
import termios
from collections.abc import Iterable
from typing import NamedTuple

import structlog

from kerneld.fs.fput import fput
from kerneld.syscalls.kernel import Sender
from shared import wire

CREDENTIALS = struct.Struct("=iII")
"""struct ucred: pid, uid, gid. unix(7)."""
FD_BYTES = 4
ANCILLARY_BYTES = socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_SPACE(FD_BYTES * wire.MAX_FDS)
SKB_OVERHEAD = 32
"""The part of its send buffer that a Unix datagram socket does not use: Linux v6.8
net/unix/af_unix.c:unix_dgram_sendmsg()."""
SEND_BUFFER = 212_992
"""The host's kernel doubles this size. It is within the usual net.core.wmem_max, and has room for MAX_REPLY."""
_log = structlog.get_logger("kerneld.server")
NOBODY = Sender(0, 0, 0)

# Plain ints: an operation on the enums of the socket module costs a microsecond, and a request takes only a few.
RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
MSG_TRUNC = int(socket.MSG_TRUNC)
MSG_CTRUNC = int(socket.MSG_CTRUNC)
MSG_CUT = MSG_TRUNC | MSG_CTRUNC


class Datagram(NamedTuple):
    """The result of one recvmsg. `data` is valid until the next one. The holder of `fds` must close them."""

    data: memoryview
    sender: Sender
    fds: list[int]
    is_cut: bool
    """The datagram was longer than MAX_DATAGRAM."""
    lost_fds: bool
    """Some fds of the datagram are lost, because the daemon's fd table is full."""


class Inbox:
    """The buffer into which the datagrams of all connections are received, one at a time."""

    __slots__ = ("buffers", "view")

    def __init__(self) -> None:
        self.view = memoryview(bytearray(wire.MAX_DATAGRAM))
        """The last datagram, from its start."""
        self.buffers = [self.view]

    def datagram(self, length: int, ancillary: list[tuple[int, int, bytes]], flags: int) -> Datagram | None:
        """Return the datagram that recvmsg_into has put into `buffers`, or None at the end of the connection."""
        # An empty datagram has the credentials of its sender; the end of the connection has none.
        if length == 0 and not ancillary:
            return None
        sender = NOBODY
        fds: list[int] = []
        for _level, kind, data in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                sender = Sender._make(CREDENTIALS.unpack(data))
            elif kind == socket.SCM_RIGHTS:
                fds.extend(array.array("i", data[: len(data) - len(data) % FD_BYTES]))
        return Datagram(self.view[:length], sender, fds, flags & MSG_TRUNC != 0, flags & MSG_CTRUNC != 0)


def usual_ancillary(sender: Sender) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data of a datagram of this sender without fds: its credentials, as the host packs them."""
    return [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, CREDENTIALS.pack(*sender))]


class Connection:
    """A client's connection. The thread that the client has attached belongs to `kerneld.server.session`."""

    __slots__ = (
        "_send",
        "_unsent_fds",
        "fd",
        "is_closed",
        "line",
        "peer",
        "receive",
        "reply_limit",
        "socket",
        "unsent",
    )

    def __init__(self, accepted: socket.socket, peer: Sender) -> None:
        """`peer` has the credentials of the process that connected."""
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.socket = accepted
        self.peer = peer
        self.receive = accepted.recvmsg_into
        self._send = accepted.send
        self.fd = accepted.fileno()
        self.is_closed = False
        self.line = 0
        """The number of a line that the kernel has lent to a native program, until a process attaches by it; else 0."""
        self.reply_limit = min(wire.MAX_REPLY, accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - SKB_OVERHEAD)
        self.unsent = b""
        """The answer that waits until the client has read the earlier ones."""
        self._unsent_fds: list[int] = []

    @property
    def has_unread(self) -> bool:
        """Whether the client has not read all answers yet. Source: Linux v6.8 net/unix/af_unix.c:unix_outq_len()."""
        return fcntl.ioctl(self.fd, termios.TIOCOUTQ, bytes(4)) != bytes(4)

    def send(self, answer: bytes, fds: list[int] | None = None) -> bool:
        """Send one answer, or keep it if the socket has no room for it. The `fds` are closed after the answer is sent.

        Returns whether the answer is sent.
        Raises OSError when the connection is broken; then the fds are closed too.
        """
        try:
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                self.socket.sendmsg([answer], [rights], SEND_FLAGS)
            else:
                self._send(answer, SEND_FLAGS)
        except BlockingIOError:
            self.unsent, self._unsent_fds = answer, fds or []
            return False
        except OSError:
            close_fds(fds or ())
            raise
        if fds:
            close_fds(fds)
        return True

    def send_again(self) -> bool:
        """Try again to send the answer that waits. Returns and raises as `send` does."""
        answer, fds = self.unsent, self._unsent_fds
        self.unsent, self._unsent_fds = b"", []
        return self.send(answer, fds)

    def close(self) -> None:
        """Close the socket, and drop the answer that waits with its fds."""
        self.is_closed = True
        self.unsent = b""
        close_fds(self._unsent_fds)
        self._unsent_fds = []
        self.socket.close()


def close_fds(fds: Iterable[int]) -> None:
    """Close fds from a client or for a client. Errors of the close (a full disk, say) are ignored."""
    for fd in fds:
        fput(fd)


def note_broken(pid: int, error: OSError) -> None:
    """Log a broken connection, unless the client has just left without waiting for its answer."""
    if error.errno not in (errno.EPIPE, errno.ECONNRESET):
        _log.warning("answer cannot be sent: connection closed", pid=pid, error=error.strerror)
