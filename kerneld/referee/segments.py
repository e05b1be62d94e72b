"""System V shared memory in programs: a program names a segment by its number, in the order in which it made them.

The sides have other ids for the same segment. Knows neither kernel. Answers to Linux v6.8 ipc/shm.c.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from kerneld.referee.outcome import Outcome
from kerneld.referee.program import Arg, At, Base
from shared.uapi import shm
from shared.uapi.page import PAGE_MASK
from shared.uapi.syscalls import Nr

CALLS = frozenset({"shmget", "shmat", "shmdt", "shmctl"})
_RIGHTS = 0o600
_NUMBERS = 3
"""Programs name the first segments alone."""
_ATTACH_FLAGS = ((shm.SHM_RDONLY, 0.2), (shm.SHM_RND, 0.3), (shm.SHM_REMAP, 0.5), (shm.SHM_EXEC, 0.1), (1, 0.02))
"""Flags of shmat, the last one unknown, and how often each is given."""
_NONE = -1
"""The id of a segment that was never made: EINVAL."""
SystemCall = Callable[[Nr, tuple[int, ...]], Outcome]
"""Makes a call of one process."""


def random_shmget(rng: random.Random, length: int) -> tuple[Arg, ...]:
    """Return the arguments for a segment of about `length` bytes."""
    size = 0 if rng.random() < 0.03 else min(length, 1 << 24)
    return size, shm.SHM_NORESERVE if rng.random() < 0.15 else 0


def random_shmat(rng: random.Random, place: At) -> tuple[Arg, ...]:
    """Return the arguments that map a segment: where the kernel wants, or at a place, which it may have to replace."""
    flags = sum(flag for flag, probability in _ATTACH_FLAGS if rng.random() < probability)
    return rng.randrange(_NUMBERS), At(Base.ZERO) if rng.random() < 0.3 else place, flags


def random_shmctl(rng: random.Random) -> tuple[Arg, ...]:
    """Return the arguments that remove a segment, or ask about one."""
    return rng.randrange(_NUMBERS), rng.choice((shm.IPC_RMID, shm.IPC_STAT, shm.IPC_STAT, 99))


class _Segment(NamedTuple):
    id: int
    size_bytes: int


class Segments:
    """The segments of a running program on one side."""

    def __init__(self) -> None:
        self._made: list[_Segment] = []

    def shmget(self, call: SystemCall, size: int, flags: int) -> Outcome:
        """Make a segment of this many bytes. The outcome is 0, or an errno."""
        outcome = call(Nr.SHMGET, (shm.IPC_PRIVATE, size, flags | _RIGHTS))
        if outcome.ret < 0:
            return outcome
        self._made.append(_Segment(outcome.ret, size))
        return outcome._replace(ret=0)

    def shmat(self, call: SystemCall, number: int, addr: int, flags: int) -> Outcome:
        """Map a segment."""
        return call(Nr.SHMAT, (self._find(number).id, addr, flags))

    def shmctl(self, call: SystemCall, number: int, command: int) -> Outcome:
        """Remove a segment or ask about it. The data of the outcome are its size, its attaches and its mode."""
        outcome = call(Nr.SHMCTL, (self._find(number).id, command, 0))
        if len(outcome.data) < shm.SHMID_DS.size:
            return outcome
        fields = shm.SHMID_DS.unpack(outcome.data[: shm.SHMID_DS.size])
        return outcome._replace(data=repr((fields[_SIZE], fields[_ATTACHES], oct(fields[_MODE]))).encode())

    def place(self, number: int, addr: int) -> tuple[int, int]:
        """Return the start and the length of what an attach at an address maps, or replaces."""
        return addr & PAGE_MASK, self._find(number).size_bytes

    def remove_all(self, call: SystemCall) -> None:
        """Remove what is left, so that nothing outlives the program."""
        for segment in self._made:
            call(Nr.SHMCTL, (segment.id, shm.IPC_RMID, 0))
        self._made.clear()

    def _find(self, number: int) -> _Segment:
        return self._made[number] if number < len(self._made) else _Segment(_NONE, 0)


_MODE, _SIZE, _ATTACHES = 5, 11, 17
"""Fields of SHMID_DS."""
