"""A set of page indexes that lie together: ranges, so that a hole of a terabyte takes no more room than one of a page.

Knows nothing of pages. Invariant: `_bounds` is sorted, and its members are, in turn, the start and the end of ranges
that are neither empty nor touch each other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt


class IndexRanges:
    """Indexes from 0 on."""

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._bounds)

    def __contains__(self, index: int) -> bool:
        return bisect_right(self._bounds, index) % 2 == 1

    def add(self, first: int, last: int) -> None:
        """Add the indexes of [first, last)."""
        if first < last:
            low, high = bisect_left(self._bounds, first), bisect_right(self._bounds, last)
            self._bounds[low:high] = [first] * (low % 2 == 0) + [last] * (high % 2 == 0)

    def remove(self, first: int, last: int) -> None:
        """Remove the indexes of [first, last), whether they are there or not."""
        if first < last:
            low, high = bisect_left(self._bounds, first), bisect_right(self._bounds, last)
            self._bounds[low:high] = [first] * (low % 2) + [last] * (high % 2)

    def clear(self) -> None:
        """Remove all."""
        self._bounds.clear()

    def mask(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return for each index of [first, first + count) whether it is there."""
        there = np.zeros(count, dtype=np.bool_)
        for i in range(0, len(self._bounds), 2):
            there[max(self._bounds[i] - first, 0) : max(self._bounds[i + 1] - first, 0)] = True
        return there
