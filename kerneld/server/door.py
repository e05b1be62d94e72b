"""Who comes in: the listening socket, and how many connections a process, a user and all together may have.

Owns the counts, and one spare descriptor with which a caller can be turned away when there is no other. Knows no
request. Who connects is known from SO_PEERCRED before a word is said, so that limits hold for those that never say one.

Invariant: the counts are those of the connections that have been let in and have not left.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from kerneld.server.connection import CREDENTIALS, Connection, close_fds
from kerneld.syscalls.kernel import Sender

ACCEPTS_A_TURN = 64

log = structlog.get_logger("kerneld.server")


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Most connections at once."""

    total: int = 1024
    of_a_process: int = 256
    of_a_user: int = 256
    """Of each user but root and the daemon's own, who could end the daemon anyway."""


class Door:
    """The listener and its doorkeeper."""

    def __init__(
        self, listener: socket.socket, limits: ClientLimits, is_barred: Callable[[Sender], bool] = lambda peer: False
    ) -> None:
        """`is_barred` tells of a caller whether it must stay outside whatever the limits say."""
        self._is_barred = is_barred
        self._listener = listener
        self._limits = limits
        self._of_process: Counter[int] = Counter()
        self._of_user: Counter[int] = Counter()
        self._nr_inside = 0
        self._spare_fd = _open_spare()

    def admit(self, make_room: Callable[[], None]) -> Iterator[Connection]:
        """Let in those that wait outside, as far as limits allow, each as a connection counted from now on.

        `make_room` is called where all places are taken: it makes one leave that has none to lose, if there is one.
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

    @property
    def _is_full(self) -> bool:
        return self._nr_inside >= self._limits.total

    def _accept(self) -> tuple[socket.socket, Sender] | None:
        """Return the next that waits outside, and who it is; None where nobody does, or can be taken."""
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
        """Return which limit lets this caller in no more, or an empty string."""
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
        """A connection of this peer's is over."""
        self._count(peer, -1)

    def _count(self, peer: Sender, change: int) -> None:
        self._nr_inside += change
        for counter, key in ((self._of_process, peer.pid), (self._of_user, peer.uid)):
            counter[key] += change
            if not counter[key]:
                del counter[key]

    def _turn_one_away(self) -> None:
        """Out of fds: accept with the spare one and close, or the loop would spin on a listener that stays ready."""
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
        """Close the spare descriptor; the listener stays its owner's."""
        close_fds([self._spare_fd])


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
