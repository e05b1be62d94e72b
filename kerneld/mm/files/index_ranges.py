"""A set of page indexes that lie together: ranges, so that a hole of a terabyte takes no more room than one of a page.

It is for what is good to know and need not be: whoever makes a hole of every other page must not fill our memory. With
MOST_RANGES of them a range more is forgotten, and of one that is cut in two the smaller part.

Knows nothing of pages. Invariant: `_bounds` is sorted, and its members are, in turn, the start and the end of ranges
that are neither empty nor touch each other, MOST_RANGES at most.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt

MOST_RANGES = 1024
MAX_INDEX = 1 << 52
"""No page of a file has this index, nor one behind it."""


class IndexRanges:
    """Indexes from 0 on."""

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds = array("q")

    def __bool__(self) -> bool:
        return bool(self._bounds)

    def __contains__(self, index: int) -> bool:
        return bisect_right(self._bounds, index) % 2 == 1

    @property
    def is_full(self) -> bool:
        """Whether there is no room for a range more."""
        return len(self._bounds) >= 2 * MOST_RANGES

    def add(self, first: int, last: int) -> None:
        """Add the indexes of [first, last); none of them where that would be a range too many."""
        if first < last:
            low, high = bisect_left(self._bounds, first), bisect_right(self._bounds, last)
            if low == high and low % 2 == 0 and self.is_full:
                return
            self._bounds[low:high] = array("q", [first] * (low % 2 == 0) + [last] * (high % 2 == 0))

    def remove(self, first: int, last: int) -> None:
        """Remove the indexes of [first, last), whether they are there or not; others too where no range has room."""
        if first < last:
            low, high = bisect_left(self._bounds, first), bisect_right(self._bounds, last)
            if low == high and low % 2 and self.is_full:
                self._cut(low, first, last)
            else:
                self._bounds[low:high] = array("q", [first] * (low % 2) + [last] * (high % 2))

    def _cut(self, at: int, first: int, last: int) -> None:
        """Remove [first, last) and the smaller of the parts that are left of the range that ends at `_bounds[at]`."""
        if first - self._bounds[at - 1] >= self._bounds[at] - last:
            self._bounds[at] = first
        else:
            self._bounds[at - 1] = last

    def clear(self) -> None:
        """Remove all."""
        del self._bounds[:]

    def mask(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return for each index of [first, first + count) whether it is there."""
        there = np.zeros(count, dtype=np.bool_)
        for i in range(0, len(self._bounds), 2):
            there[max(self._bounds[i] - first, 0) : max(self._bounds[i + 1] - first, 0)] = True
        return there
