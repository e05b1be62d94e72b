"""Checks the descriptors that clients pass in, before any other code uses or closes them.

Closing a descriptor may block as long as reading from it: a FUSE file system has to flush, a socket lingers, a terminal
drains. A thread of its own closes the descriptors that `Mounts.may_wait` names. This thread touches no other object of
the kernel. A harmless descriptor takes the place of each of them. It cannot be mapped or executed either, so the
request fails with the same errno: an unconnected socket replaces a socket, and /dev/null replaces any other file.

Owns the descriptors that wait to be closed, with their clients. A client with too many of them is disconnected, and may
connect again when they are closed. Invariant: `_waiting` counts the descriptors that no thread has closed yet, without
those in `_closed`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter
from queue import Empty, SimpleQueue

import structlog

from kerneld.fs.mounts import Mounts
from kerneld.syscalls.kernel import Sender

MOST_WAITING = 512
"""The most descriptors of one client that wait to be closed. One datagram may bring 253."""

log = structlog.get_logger("kerneld.server")

Client = tuple[str, int]


def client_of(peer: Sender) -> Client:
    """Return the account of a connection: its user; for root and the daemon's user, its process."""
    return ("pid", peer.pid) if peer.uid in (0, os.getuid()) else ("uid", peer.uid)


class Airlock:
    """The descriptors of one daemon that wait to be closed."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._closed: SimpleQueue[Client] = SimpleQueue()
        self._waiting: Counter[Client] = Counter()
        self._unbegun: list[tuple[list[int], Client]] = []
        """Descriptors for which no thread could be started (RLIMIT_NPROC). The next descriptors cause a new attempt."""

    def admit(self, fds: list[int], peer: Sender) -> None:
        """Replace each descriptor whose close may block by a harmless one."""
        self._mounts.look()
        if self._unbegun:
            self._begin_again()
        slow = [at for at, fd in enumerate(fds) if self._mounts.may_wait(fd, peer.pid)]
        if not slow:
            return
        client, waiting = client_of(peer), [fds[at] for at in slow]
        for at in slow:
            # If no descriptor can be opened, the number names no file, and its user gets EBADF.
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
            with contextlib.suppress(OSError):
                os.close(fd)
            self._closed.put(client)

    def is_barred(self, peer: Sender) -> bool:
        """Return whether too many descriptors of a client wait to be closed, so that it may pass no more."""
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
    """Return whether a descriptor is a socket, without a question to its file system."""
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
