"""A set of page indexes, kept as ranges: a hole of a terabyte takes no more memory than a hole of one page.

It is for information that may be lost: a program that makes a hole of every second page must not fill the daemon's
memory. With MOST_RANGES ranges, a further range is forgotten; if a range is cut in two, the smaller part is forgotten.

Knows nothing about pages. Invariant: `_bounds` is sorted, and has in turn the start and the end of at most MOST_RANGES
ranges that are not empty and do not touch each other.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt

MOST_RANGES = 1024
MAX_INDEX = 1 << 52
"""The end of all page indexes of a file."""


class IndexRanges:
    """Indexes from 0 on."""

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds = array("q")

    def __bool__(self) -> bool:
        return bool(self._bounds)

    def __contains__(self, index: int) -> bool:
        return bisect_right(self._bounds, index) % 2 == 1

    def meets(self, first: int, last: int) -> bool:
        """Return whether an index of [first, last), which is not empty, is in the set."""
        at = bisect_right(self._bounds, first)
        return at % 2 == 1 or (at < len(self._bounds) and self._bounds[at] < last)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another range."""
        return len(self._bounds) >= 2 * MOST_RANGES

    def add(self, first: int, last: int) -> None:
        """Add the indexes of [first, last). If that would be one range too many, none is added."""
        if first < last:
            low, high = bisect_left(self._bounds, first), bisect_right(self._bounds, last)
            if low == high and low % 2 == 0 and self.is_full:
                return
            self._bounds[low:high] = array("q", [first] * (low % 2 == 0) + [last] * (high % 2 == 0))

    def remove(self, first: int, last: int) -> None:
        """Remove the indexes of [first, last) that are in the set. Without room for another range, more are removed."""
        if first < last:
            low, high = bisect_left(self._bounds, first), bisect_right(self._bounds, last)
            if low == high and low % 2 and self.is_full:
                self._cut(low, first, last)
            else:
                self._bounds[low:high] = array("q", [first] * (low % 2) + [last] * (high % 2))

    def _cut(self, at: int, first: int, last: int) -> None:
        """Remove [first, last) from the range that ends at `_bounds[at]`, and also the smaller of the remaining
        parts."""
        if first - self._bounds[at - 1] >= self._bounds[at] - last:
            self._bounds[at] = first
        else:
            self._bounds[at - 1] = last

    def clear(self) -> None:
        """Remove all."""
        del self._bounds[:]

    def mask(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return for each index of [first, first + count) whether it is in the set."""
        there = np.zeros(count, dtype=np.bool_)
        low, high = bisect_right(self._bounds, first), bisect_left(self._bounds, first + count)
        for i in range(low - low % 2, high, 2):
            there[max(self._bounds[i] - first, 0) : max(self._bounds[i + 1] - first, 0)] = True
        return there
