"""How far a walk over a long range goes before others may have their turn.

Linux walks on under mmap_lock for reading and makes way by itself; here who walks in pieces yields between two of them.
Of an address space it knows where there are page tables. A piece is some of them, as many as go in a millisecond: those
of zeros take microseconds each, those whose pages come from a file or from swap milliseconds. Where there is none a
step goes on to the next, as Linux's walks pass over an upper entry that is empty (mm/memory.c:zap_pgd_range()).
"""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import TypeVar

from kerneld.hw.paging import PGD_SHIFT
from kerneld.mm.space.pagewalk import PageWalk
from shared.uapi.page import PMD_SIZE, Vaddr

_PIECE_SECONDS = 0.001
_AT_ONCE = 64 * PMD_SIZE
_FEW_VMAS = 256
_LOOKED_THROUGH = 1 << PGD_SHIFT
_LATE_SECONDS = 0.004


Outcome = TypeVar("Outcome")
Steps = Generator[None, None, None]
"""A call on a range, in pieces: others are served where it yields, and may change the address space, or end it."""


def is_wide(map_count: int, length: int) -> bool:
    """Tell whether a call on so many bytes of an address space of so many VMAs may take long.

    A sixteenth of what is done at once of entries is a hundred times as long where pages are written to a file.
    """
    return length > _AT_ONCE // 8 or map_count > _FEW_VMAS


def run_at_once(steps: Steps) -> None:
    """Do all of a call that comes in pieces."""
    for _ in steps:
        pass


def drain(steps: Generator[None, None, Outcome]) -> Outcome:
    """Do all of a call that comes in pieces, and return what it comes to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


class Pace:
    """The time that one walk's piece has taken so far."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = monotonic() + _PIECE_SECONDS

    def stop(self, start: Vaddr, end: Vaddr) -> Vaddr:
        """Return the end of the page table's range that `start` lies in, or `end` where that comes first."""
        return min(end, (start & -PMD_SIZE) + PMD_SIZE)

    def far_stop(self, walk: PageWalk, start: Vaddr, end: Vaddr, size: int = 0) -> Vaddr:
        """Return the end of a step over the next page tables that are there: `end` or less.

        They are those of a range of `size` bytes, a power of two; 0 for as many as usually take a millisecond or so.
        """
        size = size or _AT_ONCE
        if end <= (start & -size) + size:
            return end
        # Upper tables may lead to none; a step looks through 512 of them at most.
        first = walk.first_leaf(start, min(end, (start & -_LOOKED_THROUGH) + _LOOKED_THROUGH))
        return min(end, (first & -size) + size)

    def is_over(self) -> bool:
        """Tell whether the piece has lasted long enough."""
        return monotonic() >= self._until

    def is_late(self) -> bool:
        """Tell whether the piece has lasted much too long."""
        return monotonic() >= self._until + _LATE_SECONDS

    def begin(self) -> None:
        """The next piece begins."""
        self._until = monotonic() + _PIECE_SECONDS
