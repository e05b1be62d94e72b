"""What the host's page cache is taken to hold of a file on a disk.

Our page cache reads every page from the real file, and the host has most of them in its memory. Linux waits for a page
that is not there: the fault is a major one, and pages around it are mapped only where they have come. This class says
which pages Linux would not have. It knows no frames and reads nothing. Answers to Linux v6.8 mm/filemap.c
(filemap_fault(), next_uptodate_folio()) and mm/readahead.c.

A page is in the host's cache as long as nothing says otherwise. It is absent after `drop` (a program has paged it out)
and `add_hole` (the file has become longer there, or a hole was punched: nobody has read it yet).

Invariants: of the pages of a hole that was made, those are absent that nobody has read or written since; `unread` pages
are absent ones of holes; `in_flight` is empty but within a fault.

Differs from Linux: the host may drop a page by itself, which nobody notices here; the fault then is a minor one all the
same.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from kerneld.mm.files.index_ranges import MAX_INDEX, IndexRanges


class HostCache:
    """The pages of one file, by index."""

    __slots__ = ("_absent", "_holes", "_in_flight", "_reclaim", "_unread")

    def __init__(self) -> None:
        self._absent = IndexRanges()
        self._holes = IndexRanges()
        """Pages that nothing has been written to, as far as can be known: to read one needs no disk."""
        self._unread: set[int] = set()
        """Absent pages of holes that have a place in the cache which nobody has read: a fault of one is a minor one."""
        self._in_flight: set[int] = set()
        """Pages that the fault under way has asked the disk for, and that have not come."""
        self._reclaim: set[int] = set()
        """Pages that reclaim has tried to write out (Linux: PG_reclaim)."""

    def has(self, index: int) -> bool:
        """Tell whether a page is in the host's cache, so that nobody waits for it."""
        return index not in self._absent

    def absent(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return for each page of [first, first + count) whether it is not in the host's cache."""
        return self._absent.mask(first, count)

    def is_hole(self, index: int) -> bool:
        """Tell whether nothing has been written to a page since it became a part of the file."""
        return index in self._holes

    def is_uptodate(self, index: int) -> bool:
        """Tell whether fault-around may map a page: nothing has to be done or waited for first.

        Source: Linux v6.8 mm/filemap.c:next_uptodate_folio().
        """
        return index not in self._reclaim and index not in self._absent and index not in self._in_flight

    # What happens to the file.

    def write(self, first: int, last: int) -> None:
        """The pages of [first, last) have been written to: they are in the cache, and no hole."""
        self._absent.remove(first, last)
        self._holes.remove(first, last)

    def write_back(self, index: int) -> None:
        """A page goes to the disk: it is no hole."""
        self._holes.remove(index, index + 1)

    def add_hole(self, first: int, last: int) -> None:
        """The pages of [first, last) are a hole from now on, which nobody has read."""
        self._absent.add(first, last)
        self._holes.add(first, last)
        self._unread = {index for index in self._unread if not first <= index < last}

    def truncate(self, first: int) -> None:
        """The file ends before the page `first`."""
        self._absent.remove(first, MAX_INDEX)
        self._holes.remove(first, MAX_INDEX)
        self._unread = {index for index in self._unread if index < first}

    def drop(self, index: int) -> None:
        """A program has paged a page out."""
        self._absent.add(index, index + 1)

    # What faults and advice read.

    def read(self, first: int, last: int) -> None:
        """The pages of [first, last) are read, but for those that have a place in the cache already.

        Source: Linux v6.8 mm/readahead.c:page_cache_ra_unbounded().
        """
        self._absent.remove(first, last)
        for index in self._unread:
            self._absent.add(index, index + 1)

    def make_place(self, index: int, *, is_hole: bool) -> None:
        """The kernel itself brings a page into the cache; one of a hole has a place there then, and is not read."""
        if not is_hole:
            self._absent.remove(index, index + 1)
        elif index in self._absent:
            self._unread.add(index)

    def read_place(self, index: int) -> bool:
        """Read a page that has a place in the cache, and return whether it was such a page."""
        if index not in self._unread:
            return False
        self._unread.discard(index)
        self._absent.remove(index, index + 1)
        return True

    def ask_disk(self, index: int, first: int, last: int, near: int) -> None:
        """A fault of an absent page reads those of [first, last) with it.

        What lies on a disk has come when the page itself had to come from there too. Where the page is one of a hole,
        nobody waits, and what lies on a disk among the `near` pages on both sides is on its way until `fault_is_over`.
        """
        if index in self._holes:
            around = range(max(first, index - near), min(last, index + near))
            self._in_flight.update(i for i in around if i in self._absent and i not in self._holes)
        self.read(first, last)

    def fault_is_over(self) -> None:
        """What the fault has asked the disk for has come when the next one looks."""
        self._in_flight.clear()

    # Writing that reclaim has asked for.

    def set_reclaim(self, index: int) -> None:
        """Reclaim has tried to write a page out, which is the flusher's to do (Linux: folio_set_reclaim())."""
        self._reclaim.add(index)

    def has_reclaim(self, index: int) -> bool:
        """Tell whether reclaim has tried to write a page out."""
        return index in self._reclaim

    def clear_reclaim(self, index: int) -> bool:
        """The page was waited for, written or made dirty again; returns whether reclaim had tried to write it out."""
        if index not in self._reclaim:
            return False
        self._reclaim.discard(index)
        return True

    # What leaves our own cache.

    def forget_reclaim(self, indexes: Iterable[int]) -> None:
        """Pages have left the page cache, and their flags with them."""
        self._reclaim.difference_update(indexes)

    def clear(self) -> None:
        """Nothing maps the file any more: what is known of it is forgotten."""
        self._reclaim.clear()
        self._absent.clear()
        self._holes.clear()
        self._unread.clear()
