"""How far a walk over a long range goes before others may have their turn.

Linux walks on under mmap_lock for reading and makes way by itself; here who walks in pieces yields between two of them.
Knows no address space. A piece is some page tables, as many as go in a millisecond: those of zeros take microseconds
each, those whose pages come from a file or from swap milliseconds.
"""

from __future__ import annotations

from time import monotonic

from shared.uapi.page import PMD_SIZE, Vaddr

_PIECE_SECONDS = 0.001
_LATE_SECONDS = 0.004


class Pace:
    """The time that one walk's piece has taken so far."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = monotonic() + _PIECE_SECONDS

    def stop(self, start: Vaddr, end: Vaddr) -> Vaddr:
        """Return the end of the page table's range that `start` lies in, or `end` where that comes first."""
        return min(end, (start & -PMD_SIZE) + PMD_SIZE)

    def is_over(self) -> bool:
        """Tell whether the piece has lasted long enough."""
        return monotonic() >= self._until

    def is_late(self) -> bool:
        """Tell whether the piece has lasted much too long."""
        return monotonic() >= self._until + _LATE_SECONDS

    def begin(self) -> None:
        """The next piece begins."""
        self._until = monotonic() + _PIECE_SECONDS
