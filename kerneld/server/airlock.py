"""Descriptors that clients pass in, looked at before anybody uses or closes them.

To close a descriptor may take as long as to read from it: a FUSE file system is asked to flush, a socket lingers, a
terminal drains. Those that `Mounts.may_wait` names are closed by a thread that does nothing else and touches nothing of
the kernel's. Another takes each one's place, which can be mapped and executed as little, and is refused as it would be:
a socket that was never connected a socket's, one of /dev/null any other's.

Owns what waits to be closed, and for whom: a client for which too much waits is turned out, and let in again when that
has been closed. Invariant: `_waiting` counts the descriptors that no thread has closed yet, but for those in `_closed`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from queue import Empty, SimpleQueue

import structlog

from kerneld.fs.mounts import Mounts
from kerneld.server.connection import close_fds
from kerneld.syscalls.kernel import Sender

MOST_WAITING = 512
"""Descriptors of one client that have not been closed yet. One datagram may bring 253."""

log = structlog.get_logger("kerneld.server")

Client = tuple[str, int]


def client_of(peer: Sender) -> Client:
    """Return whom a connection is accounted to: its user, or its process where that is root or the daemon's user."""
    return ("pid", peer.pid) if peer.uid in (0, os.getuid()) else ("uid", peer.uid)


class Airlock:
    """The descriptors of one daemon that wait to be closed."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._closed: SimpleQueue[Client] = SimpleQueue()
        self._waiting: Counter[Client] = Counter()
        self._unbegun: list[tuple[list[int], Client]] = []
        """What no thread could be had for (RLIMIT_NPROC): tried again whenever descriptors come."""

    def admit(self, fds: list[int], peer: Sender) -> None:
        """Put a harmless descriptor in the place of each one that might make us wait."""
        self._mounts.look()
        if self._unbegun:
            self._begin_again()
        slow = [at for at, fd in enumerate(fds) if self._mounts.may_wait(fd)]
        if not slow:
            return
        client, waiting = client_of(peer), [fds[at] for at in slow]
        for at in slow:
            # Where not even one is left the number stands for none, and whoever uses it is told EBADF.
            fds[at] = _open_socket() if _is_socket(fds[at]) else _open_null()
        self._waiting[client] += len(waiting)
        log.info("descriptors of files that may not answer, of sockets or devices", pid=peer.pid, count=len(waiting))
        self._begin(waiting, client)

    def _begin(self, waiting: list[int], client: Client) -> None:
        try:
            threading.Thread(target=self._close, args=(waiting, client), daemon=True).start()
        except RuntimeError:
            self._unbegun.append((waiting, client))

    def _begin_again(self) -> None:
        unbegun, self._unbegun = self._unbegun, []
        for waiting, client in unbegun:
            self._begin(waiting, client)

    def _close(self, fds: list[int], client: Client) -> None:
        for fd in fds:
            close_fds([fd])
            self._closed.put(client)

    def is_barred(self, peer: Sender) -> bool:
        """Tell whether so many of a client's descriptors wait to be closed that it may bring no more."""
        while self._waiting:
            try:
                client = self._closed.get_nowait()
            except Empty:
                break
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]
        return self._waiting[client_of(peer)] > MOST_WAITING


def _is_socket(fd: int) -> bool:
    """Tell whether a descriptor is a socket's, without asking what it is of."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def _open_socket() -> int:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).detach()
    except OSError:
        return -1


def _open_null() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
