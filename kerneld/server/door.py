"""Accepts connections, within the limits for one process, for one user and for all together.

Owns the counts, and one spare descriptor: with it the daemon can accept and close a connection when it has no other
descriptor. Knows no request. SO_PEERCRED names the peer before it sends anything, so the limits also hold for clients
that never send.

Invariant: the counts are those of the connections that were admitted and have not left.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from kerneld.errors import SysError
from kerneld.server.connection import CREDENTIALS, Connection, close_fds
from kerneld.syscalls.kernel import Sender
from shared.uapi.page import Pid

ACCEPTS_A_TURN = 64

log = structlog.get_logger("kerneld.server")


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The most connections at once."""

    total: int = 4096
    of_a_process: int = 1024
    of_a_user: int = 256
    """For each user, except root and the daemon's user: these could end the daemon anyway."""


class Door:
    """The listener, with its limits."""

    def __init__(
        self, listener: socket.socket, limits: ClientLimits, is_barred: Callable[[Sender], bool] = lambda peer: False
    ) -> None:
        """`is_barred` says whether a client is refused although the limits would admit it."""
        self._is_barred = is_barred
        self._listener = listener
        self._limits = limits
        self._of_process: Counter[int] = Counter()
        self._of_user: Counter[int] = Counter()
        self._nr_inside = 0
        self._spare_fd = _open_spare()
        self._last_line = 0

    def admit(self, make_room: Callable[[], None]) -> Iterator[Connection]:
        """Accept the waiting connections, within the limits, and count each of them.

        When all places are taken, `make_room` is called. It closes a connection that has never attached, if there is
        one.
        """
        for _ in range(ACCEPTS_A_TURN):
            caller = self._accept()
            if caller is None:
                return
            accepted, peer = caller
            if self._is_full:
                make_room()
            objection = self._find_objection(peer)
            if objection:
                log.warning(f"connection refused: {objection}", pid=peer.pid, uid=peer.uid)
                accepted.close()
                continue
            try:
                connection = Connection(accepted, peer)
            except OSError as error:
                log.warning("connection refused", error=error.strerror)
                accepted.close()
                continue
            self._count(peer, 1)
            yield connection

    def lend(self, pid: Pid) -> tuple[Connection, int]:
        """Return a new connection of a process that is connected already, and the client's end of it.

        Raises SysError(EAGAIN) over a limit, and without a descriptor.
        """
        peer = Sender(pid, os.getuid(), os.getgid())
        if self._is_full or self._of_process[pid] >= self._limits.of_a_process:
            raise SysError(errno.EAGAIN)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            raise SysError(errno.EAGAIN) from None
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ours.setblocking(False)
            connection = Connection(ours, peer)
            self._last_line += 1
            connection.line = self._last_line
            self._count(peer, 1)
            return connection, theirs.detach()

    def claim(self, connection: Connection, sender: Sender) -> None:
        """Count a lent connection to the process that attaches by it."""
        connection.line = 0
        self._count(connection.peer, -1)
        connection.peer = sender
        self._count(sender, 1)

    @property
    def _is_full(self) -> bool:
        return self._nr_inside >= self._limits.total

    def _accept(self) -> tuple[socket.socket, Sender] | None:
        """Return the next waiting connection and its peer; None if no connection waits, or none can be accepted."""
        try:
            accepted, _address = self._listener.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_one_away()
            else:
                log.warning("accept failed", error=error.strerror)
            return None
        credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        return accepted, Sender._make(CREDENTIALS.unpack(credentials))

    def _find_objection(self, peer: Sender) -> str:
        """Return the limit that refuses this client, in words; empty if it may connect."""
        limits = self._limits
        if self._is_barred(peer):
            return "descriptors that it has passed in cannot be closed"
        if self._of_process[peer.pid] >= limits.of_a_process:
            return "too many of this process"
        if not self._is_privileged(peer.uid) and self._of_user[peer.uid] >= limits.of_a_user:
            return "too many of this user"
        return "too many" if self._is_full else ""

    def _is_privileged(self, uid: int) -> bool:
        return uid in (0, os.getuid())

    def left(self, peer: Sender) -> None:
        """Uncount a connection of this peer, which has ended."""
        self._count(peer, -1)

    def _count(self, peer: Sender, change: int) -> None:
        self._nr_inside += change
        for counter, key in ((self._of_process, peer.pid), (self._of_user, peer.uid)):
            counter[key] += change
            if not counter[key]:
                del counter[key]

    def _turn_one_away(self) -> None:
        """Accept with the spare descriptor, and close.

        Without this the listener would stay ready, and the loop spin.
        """
        close_fds([self._spare_fd])
        try:
            accepted, _address = self._listener.accept()
            accepted.close()
            log.warning("connection refused: no file descriptor left")
        except OSError:
            pass
        finally:
            self._spare_fd = _open_spare()

    def close(self) -> None:
        """Close the spare descriptor. The owner of the listener closes the listener."""
        close_fds([self._spare_fd])


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
