"""How far a walk over a long range goes before other clients may be served.

Linux walks under mmap_lock for reading, and its scheduler lets other tasks run. Here a walk is done in pieces and
yields between two of them. This module knows only where an address space has page tables. A piece takes as many tables
as fit into a millisecond: a table of zero pages takes microseconds, a table with pages from a file or from swap takes
milliseconds. A step skips ranges without tables, as Linux's walks skip an empty upper entry
(mm/memory.c:zap_pgd_range()).
"""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import TypeVar

from kerneld.hw.paging import PGD_SHIFT
from kerneld.mm.space.pagewalk import PageWalk
from kerneld.mm.space.wait import Wait
from shared.uapi.page import PMD_SIZE, Vaddr

_PIECE_SECONDS = 0.001
_AT_ONCE = 64 * PMD_SIZE
CROWD = 32
"""With more threads than this, a piece takes a quarter of the time."""
_FEW_VMAS = 256
_LOOKED_THROUGH = 1 << PGD_SHIFT
_LATE_SECONDS = 0.004


Outcome = TypeVar("Outcome")
Steps = Generator[None, None, None]
"""A call on a range, in pieces: when it yields, other clients are served; they may change or end the address space."""
WaitingSteps = Generator[Wait | None, None, None]
"""Steps that may meet a page which a userfaultfd has to give: if they yield a wait, they go on when that is over."""


def is_wide(map_count: int, length: int) -> bool:
    """Return whether a call on `length` bytes of an address space with `map_count` VMAs may take long.

    The limit is low: entries whose pages are written to a file take a hundred times as long as others.
    """
    return length > _AT_ONCE // 32 or map_count > _FEW_VMAS


def run_at_once(steps: WaitingSteps) -> None:
    """Run all pieces of a call at once."""
    for _ in steps:
        pass


def drain(steps: Generator[Wait | None, None, Outcome]) -> Outcome:
    """Run all pieces of a call at once, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


class Pace:
    """The time that the present piece of a walk has taken."""

    __slots__ = ("_until",)
    _parts = 1
    """The time of a usual piece is that of so many pieces now."""
    _listeners = 1
    """The work of a step takes as long as that of so many steps."""

    def __init__(self) -> None:
        self._until = monotonic() + _PIECE_SECONDS / self._parts

    @classmethod
    def share_among(cls, nr_threads: int) -> None:
        """Let the pieces from now on be as short as it takes for so many threads that want the processor at once."""
        cls._parts = 4 if nr_threads > CROWD else 1

    @classmethod
    def slow_down(cls, nr_traces: int) -> None:
        """Let steps from now on be smaller, as each function that is called is told to so many traces."""
        cls._listeners = 1 << max(nr_traces, 1).bit_length() - 1

    @classmethod
    def shortened(cls, seconds: float) -> float:
        """Return how long what usually lasts so long may last: less while functions are told to several traces."""
        return seconds / cls._listeners

    def stop(self, start: Vaddr, end: Vaddr) -> Vaddr:
        """Return the end of the range of `start`'s leaf table, or `end` if that comes first."""
        return min(end, (start & -PMD_SIZE) + PMD_SIZE)

    def far_stop(self, walk: PageWalk, start: Vaddr, end: Vaddr, size: int = 0) -> Vaddr:
        """Return the end of a step over the next existing page tables: at most `end`.

        The step covers a range of `size` bytes, a power of two; with 0, the tables that usually take a millisecond.
        """
        size = max((size or _AT_ONCE // self._parts) // self._listeners, PMD_SIZE)
        if end <= (start & -size) + size:
            return end
        # Upper tables may lead to no leaf table; a step searches at most 512 upper tables.
        first = walk.first_leaf(start, min(end, (start & -_LOOKED_THROUGH) + _LOOKED_THROUGH))
        return min(end, (first & -size) + size)

    def is_over(self) -> bool:
        """Return whether the piece has lasted long enough."""
        return monotonic() >= self._until

    def is_late(self) -> bool:
        """Return whether the piece has lasted much too long."""
        return monotonic() >= self._until + _LATE_SECONDS

    def begin(self) -> None:
        """Begin the next piece."""
        self._until = monotonic() + _PIECE_SECONDS / self._parts
