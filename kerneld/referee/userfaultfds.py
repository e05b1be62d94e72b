"""userfaultfd in programs: each process has one, with UFFD_FEATURE_SIGBUS, from its first ioctl of these on.

So no access waits: one that meets a missing page of watched memory ends in SIGBUS, and one of the kernel's fails. Knows
neither kernel. Answers to Linux v6.8 fs/userfaultfd.c.
"""

from __future__ import annotations

import os
import random
from typing import Protocol

from kerneld.referee.outcome import Outcome
from kerneld.referee.program import Arg, At
from shared.uapi.userfaultfd import (
    API,
    COPY,
    DONTWAKE,
    RANGE,
    REGISTER,
    UFFD_API,
    UFFD_USER_MODE_ONLY,
    ZEROPAGE,
    Feature,
    RegisterMode,
    Uffdio,
)

CALLS = frozenset({"uffdio_register", "uffdio_unregister", "uffdio_copy", "uffdio_zeropage"})
_TOLD_BYTES = 8
"""The last word of the records of UFFDIO_COPY and UFFDIO_ZEROPAGE: the bytes given, or -errno."""


class Ioctls(Protocol):
    """The calls of one side."""

    def userfaultfd(self, who: int, flags: int) -> Outcome:
        """Make a userfaultfd; the outcome is its descriptor."""

    def ioctl(self, who: int, fd: int, command: int, record: bytes) -> Outcome:
        """Make an ioctl of it; the data of the outcome are the record as it is then."""


def random_register(rng: random.Random, place: At, length: int) -> tuple[Arg, ...]:
    """Return the arguments that let memory be watched; the mode may be one that no kernel knows."""
    return place, length, 0 if rng.random() < 0.03 else RegisterMode.MISSING.value


def random_copy(rng: random.Random, place: At, length: int, source: At) -> tuple[Arg, ...]:
    """Return the arguments that give pages; the mode may be an unknown one."""
    return place, length, source, random_mode(rng)


def random_mode(rng: random.Random) -> int:
    """Return the mode of UFFDIO_COPY or UFFDIO_ZEROPAGE."""
    return 1 << 40 if rng.random() < 0.02 else rng.choice((0, 0, DONTWAKE))


class Userfaultfds:
    """The userfaultfds of a running program on one side."""

    def __init__(self, side: Ioctls) -> None:
        self._side = side
        self._fds: dict[int, int] = {}

    def forget(self, who: int) -> None:
        """Forget a process that has ended. A child's is its own."""
        self._fds.pop(who, None)

    def uffdio_register(self, who: int, start: int, length: int, mode: int) -> Outcome:
        """Watch memory."""
        return self._ioctl(who, Uffdio.REGISTER, REGISTER.pack(start, length, mode, 0))

    def uffdio_unregister(self, who: int, start: int, length: int) -> Outcome:
        """Watch memory no more."""
        return self._ioctl(who, Uffdio.UNREGISTER, RANGE.pack(start, length))

    def uffdio_copy(self, who: int, start: int, length: int, source: int, mode: int) -> Outcome:
        """Give pages that are copies. The data of the outcome are what is told of their number."""
        return self._ioctl(who, Uffdio.COPY, COPY.pack(start, source, length, mode, 0), _TOLD_BYTES)

    def uffdio_zeropage(self, who: int, start: int, length: int, mode: int) -> Outcome:
        """Give pages of zeros. The data of the outcome are what is told of their number."""
        return self._ioctl(who, Uffdio.ZEROPAGE, ZEROPAGE.pack(start, length, mode, 0), _TOLD_BYTES)

    def _ioctl(self, who: int, command: int, record: bytes, told_bytes: int = 0) -> Outcome:
        if who not in self._fds:
            made = self._side.userfaultfd(who, UFFD_USER_MODE_ONLY | os.O_NONBLOCK)
            if made.ret < 0:
                return made
            self._fds[who] = made.ret
            api = self._side.ioctl(who, made.ret, Uffdio.API, API.pack(UFFD_API, Feature.SIGBUS, 0))
            if api.ret < 0:
                return api._replace(data=b"")
        outcome = self._side.ioctl(who, self._fds[who], command, record)
        return outcome._replace(data=outcome.data[-told_bytes:] if told_bytes else b"")
