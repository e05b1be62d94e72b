"""One descriptor of each kind that a client may pass: those that make sense, and those that must not hurt."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import sys
from pathlib import Path

PAGE = 4096


class Descriptors:
    """An open descriptor of each kind, in a directory that the caller gives and removes."""

    def __init__(self, directory: Path, extra: tuple[int, ...] = ()) -> None:
        """`extra` are descriptors of the caller's own, a kind each."""
        self._own: list[int] = []
        self._directory = directory
        self._extra = extra
        path = directory / "file"
        path.write_bytes(os.urandom(5 * PAGE + 100))
        # Its size must stay below the RAM of a test's machine: what a hostile write-back reaches is this file alone.
        fifo = directory / "fifo"
        os.mkfifo(fifo)
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_PATH):
            self._own.append(os.open(path, flags | os.O_CLOEXEC))
        self._own.append(os.open(directory, os.O_RDONLY | os.O_CLOEXEC))
        self._own.append(os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        for device in ("/dev/null", "/dev/zero", "/proc/self/maps", sys.executable, "/bin/true"):
            self._own.append(os.open(device, os.O_RDONLY | os.O_CLOEXEC))
        self._epoll = select.epoll()
        self._memory = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory, 9 * PAGE)
        self._own += [self._memory, os.memfd_create("empty"), os.eventfd(0), self._epoll.fileno()]
        self._own += [os.pidfd_open(os.getpid()), *os.pipe2(os.O_NONBLOCK)]
        pair = socket.socketpair()
        self._own += [end.detach() for end in pair]

    def pick(self, source: random.Random, count: int) -> list[int]:
        """Return `count` descriptors, which stay ours; sizes and names of the files change now and then."""
        if source.random() < 0.05:
            os.ftruncate(self._memory, source.choice((0, 1, PAGE, 3 * PAGE + 5, 9 * PAGE)))
        if source.random() < 0.02:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory / "file")
        return source.choices([*self._own, *self._own[:6], *self._extra], k=count)

    def close(self) -> None:
        """Close every descriptor."""
        for fd in self._own:
            if fd != self._epoll.fileno():
                os.close(fd)
        self._epoll.close()
