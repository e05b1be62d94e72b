"""The pages of a file on a disk that the host's page cache is assumed to hold.

kerneld's page cache reads every page from the real file, and the host has most of them in its memory. On Linux a
fault of a page that is not in memory waits for it: the fault is major, and pages around it are mapped only if they
have come. This class knows the pages that Linux would not have in memory. It knows no frames and reads nothing.
Answers to Linux v6.8 mm/filemap.c (filemap_fault(), next_uptodate_folio()) and mm/readahead.c.

The host is asked once for each window of the file, when the first of its pages is asked for: what it does not have in
memory then is absent. A page is also absent after `drop` (a program has paged it out), and after `add_hole` (the file
has become longer there, or a hole was punched, and nobody has read the page yet).

Invariants: the absent pages of a new hole are those that nobody has read or written since; `unread` pages are absent
pages of holes; `in_flight` is empty except during a fault; `lacking` are absent pages, or were; only the host has said
that it lacks them, so it is asked again before such a page counts as absent.

Differs from Linux: the host may drop a page by itself later. kerneld does not notice that, and the fault is still
minor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from kerneld.mm.files.index_ranges import MAX_INDEX, IndexRanges
from kerneld.mm.files.page_indexes import IndexSet

WINDOW_PAGES = 512
"""The pages for which the host is asked at once: this takes it some 20 microseconds."""
AskHost = Callable[[int, int], npt.NDArray[np.bool_]]
"""Returns for each of a number of pages from an index on whether the host lacks it, and no frame has it."""


def _lacks_none(first: int, count: int) -> npt.NDArray[np.bool_]:
    return np.zeros(count, dtype=np.bool_)


class HostCache:
    """The pages of one file, by index."""

    __slots__ = ("_absent", "_ask", "_asked", "_holes", "_in_flight", "_lacking", "_reclaim", "_unread")

    def __init__(self, ask: AskHost = _lacks_none) -> None:
        self._ask = ask
        self._asked = IndexRanges()
        """The numbers of the windows for which the host was asked."""
        self._lacking = IndexRanges()
        self._absent = IndexRanges()
        self._holes = IndexRanges()
        """Pages without data, as far as is known. Reading such a page needs no disk."""
        self._unread: set[int] = set()
        """Absent pages of holes that have a place in the cache but were never read. Their faults are minor."""
        self._in_flight: set[int] = set()
        """Pages that the current fault has requested from the disk, and that have not come yet."""
        self._reclaim = IndexSet()
        """Pages that reclaim has tried to write out (Linux: PG_reclaim)."""

    def has(self, index: int) -> bool:
        """Return whether a page is in the host's cache, so that no fault waits for it."""
        self._learn(index, index + 1)
        return index not in self._absent or not self.absent(index, 1)[0]

    def present(self, indexes: list[int]) -> list[int]:
        """Return those of these pages, in order, that are in the host's cache."""
        if not indexes:
            return indexes
        first, last = indexes[0], indexes[-1] + 1
        self._learn(first, last)
        is_whole = not self._absent.meets(first, last)
        return indexes if is_whole else [index for index in indexes if index not in self._absent]

    def absent(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return for each page of [first, first + count) whether it is missing in the host's cache."""
        self._learn(first, first + count)
        absent = self._absent.mask(first, count)
        lacking = absent & self._lacking.mask(first, count)
        if lacking.any():
            for start, end in _runs(lacking & ~self._ask(first, count)):
                self._absent.remove(first + start, first + end)
            absent = self._absent.mask(first, count)
        return absent

    def _learn(self, first: int, last: int) -> None:
        """Ask the host for those windows of [first, last) for which it has not been asked."""
        for window in range(first // WINDOW_PAGES, (last - 1) // WINDOW_PAGES + 1):
            if window not in self._asked:
                self._asked.add(window, window + 1)
                at = window * WINDOW_PAGES
                for start, end in _runs(self._ask(at, WINDOW_PAGES) & ~self._absent.mask(at, WINDOW_PAGES)):
                    self._absent.add(at + start, at + end)
                    self._lacking.add(at + start, at + end)

    def is_hole(self, index: int) -> bool:
        """Return whether a page has no data: nothing was written to it since it became a part of the file."""
        return index in self._holes

    def is_uptodate(self, index: int) -> bool:
        """Return whether fault-around may map a page: it needs no work and no wait first.

        Source: Linux v6.8 mm/filemap.c:next_uptodate_folio().
        """
        return index not in self._reclaim and index not in self._absent and index not in self._in_flight

    def are_uptodate(self, first: int, last: int) -> bool:
        """Return whether `is_uptodate` holds for all of the pages [first, last), as it usually does.

        It may be False where it holds: then each page has to be asked about.
        """
        return not (self._reclaim or self._in_flight or self._absent.meets(first, last))

    @property
    def is_reading(self) -> bool:
        """Whether pages that a fault has requested have not come yet."""
        return bool(self._in_flight)

    def uptodate_mask(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Return for each page of [first, last) what `is_uptodate` returns."""
        if self._reclaim or self._in_flight:
            return np.array([self.is_uptodate(index) for index in range(first, last)], dtype=np.bool_)
        return ~self._absent.mask(first, last - first)

    # What happens to the file.

    def write(self, first: int, last: int) -> None:
        """Note a write to the pages of [first, last): they are in the cache, and not in a hole."""
        self._absent.remove(first, last)
        self._holes.remove(first, last)

    def write_back(self, index: int) -> None:
        """Note that a page goes to the disk: it is not in a hole."""
        self._holes.remove(index, index + 1)

    def add_hole(self, first: int, last: int) -> None:
        """Note that the pages of [first, last) become a hole that nobody has read."""
        self._absent.add(first, last)
        self._lacking.remove(first, last)
        self._holes.add(first, last)
        self._unread = {index for index in self._unread if not first <= index < last}

    def truncate(self, first: int) -> None:
        """Note that the file ends before the page `first`."""
        self._absent.remove(first, MAX_INDEX)
        self._holes.remove(first, MAX_INDEX)
        self._unread = {index for index in self._unread if index < first}

    def drop(self, index: int) -> None:
        """Note that a program has paged a page out."""
        self._absent.add(index, index + 1)
        self._lacking.remove(index, index + 1)

    # What faults and advice read.

    def read(self, first: int, last: int) -> None:
        """Note that the pages of [first, last) are read, except those that have a place in the cache already.

        Source: Linux v6.8 mm/readahead.c:page_cache_ra_unbounded().
        """
        if first < last:
            self._learn(first, first + 1)
            self._learn(last - 1, last)
        self._asked.add(first // WINDOW_PAGES, last // WINDOW_PAGES)
        self._absent.remove(first, last)
        for index in self._unread:
            self._absent.add(index, index + 1)

    def make_place(self, index: int, *, is_hole: bool) -> None:
        """Note that the kernel itself puts a page into the cache.

        A page of a hole gets a place there, but is not read.
        """
        if not is_hole:
            self._absent.remove(index, index + 1)
        elif index in self._absent:
            self._unread.add(index)

    def read_place(self, index: int) -> bool:
        """Read a page if it is one with a place in the cache that was never read. Return whether it was."""
        if index not in self._unread:
            return False
        self._unread.discard(index)
        self._absent.remove(index, index + 1)
        return True

    def ask_disk(self, index: int, first: int, last: int, near: int) -> None:
        """Note that the fault of an absent page reads the pages of [first, last).

        If the page itself comes from the disk, the fault waits, and the other pages have come too. If the page is in a
        hole, the fault does not wait: pages on the disk among the `near` pages on both sides are in flight until
        `fault_is_over`.
        """
        if index in self._holes:
            around = range(max(first, index - near), min(last, index + near))
            self._in_flight.update(i for i in around if i in self._absent and i not in self._holes)
        self.read(first, last)

    def fault_is_over(self) -> None:
        """Note the end of a fault: the pages that it has requested have come for the next fault."""
        self._in_flight.clear()

    # Writing that reclaim has asked for.

    def set_reclaim(self, index: int) -> None:
        """Note that reclaim wanted to write a page, which the flusher has to do (Linux: folio_set_reclaim())."""
        self._reclaim.add(index)

    def has_reclaim(self, index: int) -> bool:
        """Return whether reclaim wanted to write a page."""
        return index in self._reclaim

    def clear_reclaim(self, index: int) -> bool:
        """Clear the note of `set_reclaim`: the page was awaited, written or made dirty. Return whether it was set."""
        if index not in self._reclaim:
            return False
        self._reclaim.discard(index)
        return True

    # What leaves our own cache.

    def forget_reclaim(self, indexes: Iterable[int]) -> None:
        """Clear the notes of pages that have left the page cache."""
        self._reclaim.difference_update(indexes)

    def clear(self) -> None:
        """Forget everything about a file that nothing maps any more."""
        self._reclaim.clear()
        self._asked.clear()
        self._lacking.clear()
        self._absent.clear()
        self._holes.clear()
        self._unread.clear()


def _runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the runs of what is true in a mask, each with its end."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
