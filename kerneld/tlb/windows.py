"""Windows: sixteen pages of a file that a native program may map by itself, as a read fault would map them.

A read fault of a file maps the cached pages around it, sixteen by their addresses (`mm/fault/around.py`). A program
that begins runs through hundreds of such windows of its libraries. So after a read fault kerneld gives the windows of
the same VMA in the same leaf table whose pages are all in the page cache. At the first access to one the stub maps what
the fault would map, and says that the window is taken. `kerneld.tlb.advances` says when something may be given, and
when it is recalled.

A window needs no frame of its own, and the stub writes to none. A page leaves the page cache only after a recall. If
the stub has taken a window before it can see the recall, the window is booked by then; if it sees the recall, it maps
nothing.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from kerneld.hw.paging import make_pte
from kerneld.mm.fault import advance as pages_ahead
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.vma import Vma
from kerneld.tlb.rights import PAGE_BITS, tlb_word
from kerneld.tlb.tlb import Tlb
from shared.uapi.native import (
    ADVANCE_PAGES,
    ADVANCE_RECALLED,
    ADVANCE_RIGHTS,
    ADVANCE_START,
    ADVANCE_TAKEN,
    ADVANCE_WORDS,
    NR_ADVANCES,
    NR_ROWS,
    ROW_OFFSETS,
    ROW_PAGES,
    SOURCE_OFFSETS,
    WINDOW_PAGES,
)
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, Vaddr

if TYPE_CHECKING:
    from kerneld.task.task import Process

_FEWEST_WINDOWS = 2
"""The fewest windows that are worth to be given."""
_ROW_BYTES = ROW_PAGES // WINDOW_PAGES // 8
_NO_OFFSETS = np.zeros((0, 0), dtype=np.uint64)
_lock = threading.Lock()


def fence() -> None:
    """Order this thread's earlier stores before its later loads: to take a lock is an atomic instruction."""
    with _lock:
        pass


def publish(words: memoryview, place: int, start: Vaddr, pages: int, rights: int) -> None:
    """Give an advance or a row: docs/abi.md, "Advances". `place`: of the advances, and behind them the rows."""
    at = place * ADVANCE_WORDS
    words[at + ADVANCE_TAKEN] = words[at + ADVANCE_RECALLED] = 0
    words[at + ADVANCE_PAGES] = pages
    words[at + ADVANCE_RIGHTS] = rights
    words[at + ADVANCE_START] = start


def free_place(used: Iterable[int]) -> int:
    """Return the first number from 0 on that is not used."""
    taken = set(used)
    return next(number for number in itertools.count() if number not in taken)


class _Row:
    """The windows of one VMA in one leaf table that are given, and not recalled."""

    __slots__ = ("booked", "number", "rights", "there", "windows")

    def __init__(self, number: int, there: pages_ahead.Windows, rights: int) -> None:
        self.number = number
        """Its place in the memory behind the ring."""
        self.there = there
        self.windows = there.given
        """A bit for each window from the start on that may be taken."""
        self.rights = rights
        """The bits of the TLB word of each page."""
        self.booked = 0
        """A bit for each window whose fault is booked."""

    def has(self, address: Vaddr) -> bool:
        """Return whether the address is in the VMA of these windows."""
        return self.there.first <= address < self.there.end


class Windows:
    """The windows of one thread, in the memory behind its ring."""

    def __init__(self, words: memoryview, tlb: Tlb, process: Process) -> None:
        """`words` is that memory, in words of 64 bits. The thread is one of `process` and uses the memory of `tlb`."""
        self._words = words
        self._offsets = np.frombuffer(words, dtype=np.uint64)[ROW_OFFSETS:SOURCE_OFFSETS].reshape(NR_ROWS, ROW_PAGES)
        """The offsets of the frames in the RAM's file, a row for each."""
        self._tlb = tlb
        self._process = process
        self.live: list[_Row] = []
        """Those that are not recalled, the oldest first."""
        self._tried: set[Vaddr] = set()
        """Where rows would begin that had too few windows: most of the pages are in no page cache yet."""

    def offer(self, mm: MmStruct, vma: Vma, address: Vaddr) -> bool:
        """Give the windows of a VMA around a page that a read fault has mapped. Return whether there are any."""
        first = max(vma.start, address & -PMD_SIZE)
        if first in self._tried or any(row.there.first == first for row in self.live):
            return False
        found = pages_ahead.find_windows(mm, vma, address)
        if found is None or found.given.bit_count() < _FEWEST_WINDOWS:
            self._tried.add(first)
            return False
        if len(self.live) == NR_ROWS:
            self._recall(self.live[:1])
        number = free_place(row.number for row in self.live)
        row = _Row(number, found, tlb_word(make_pte(1, vma_page_prot(vma))) & PAGE_BITS)
        self._offsets[number] = np.where(found.pfns < 0, -1, found.pfns << PAGE_SHIFT)
        publish(self._words, NR_ADVANCES + number, found.start, row.windows, row.rights)
        self.live.append(row)
        return True

    @staticmethod
    def _at(row: _Row) -> int:
        return (NR_ADVANCES + row.number) * ADVANCE_WORDS

    def on_fault(self, address: Vaddr) -> None:
        """Note that the thread asks about an address: so it has not mapped the window, and does not take it now."""
        for row in self.live:
            if row.has(address):
                at = address - row.there.start >> PAGE_SHIFT
                bit = 1 << at // WINDOW_PAGES
                if row.windows & ~row.booked & bit and row.there.pfns[at] >= 0:
                    self._book(row)
                    row.windows &= row.booked | ~bit
                    self._words[self._at(row) + ADVANCE_PAGES] = row.windows
                return

    def book(self) -> None:
        """Book the faults of the windows that the thread has taken."""
        for row in self.live:
            if self._words[self._at(row) + ADVANCE_TAKEN] != row.booked:
                self._book(row)

    def recall(self, start: Vaddr, end: Vaddr) -> None:
        """Take back the windows of the mappings that have pages in [start, end)."""
        if self._tried:
            self._tried = {first for first in self._tried if not start <= first < end}
        if self.live:
            self._recall([row for row in self.live if row.there.first < end and start < row.there.end])

    def check(self) -> Iterator[str]:
        """Yield a line for each page that is given, and not taken, and is not in the page cache."""
        for row in self.live:
            left = row.windows & ~self._words[self._at(row) + ADVANCE_TAKEN]
            vma = self._tlb.mm.vmas.lookup(row.there.first)
            pages = None if vma is None or vma.file is None else vma.file.mapping.pages
            for number in np.flatnonzero(row.there.pfns >= 0).tolist():
                vaddr, pfn = row.there.start + (number << PAGE_SHIFT), row.there.pfns[number]
                if left >> number // WINDOW_PAGES & 1 and (
                    vma is None or pages is None or pages.get(vma.page_index(vaddr)) != pfn
                ):
                    yield f"a window gives frame {pfn} at {vaddr:#x}, which is not in the page cache there"

    def end(self) -> None:
        """End the use of the memory: it can be unmapped now."""
        self._offsets = _NO_OFFSETS

    def _recall(self, rows: list[_Row]) -> None:
        for row in rows:
            self._words[self._at(row) + ADVANCE_RECALLED] = 1
        fence()
        for row in rows:
            self._book(row)
            self.live.remove(row)

    def _book(self, row: _Row) -> None:
        taken = self._words[self._at(row) + ADVANCE_TAKEN] & row.windows & ~row.booked
        if not taken:
            return
        row.booked |= taken
        self._process.min_flt += taken.bit_count()
        mm, there = self._tlb.mm, row.there
        vma = mm.vmas.lookup(there.first)
        assert vma is not None
        is_taken = np.unpackbits(np.frombuffer(taken.to_bytes(_ROW_BYTES, "little"), dtype=np.uint8), bitorder="little")
        numbers = (is_taken.repeat(WINDOW_PAGES).view(np.bool_) & (there.pfns >= 0)).nonzero()[0]
        is_as_given = pages_ahead.book_windows(mm, vma, there, numbers)
        self._tlb.note_windows(there.start, numbers, there.pfns[numbers], row.rights)
        if not is_as_given:
            mm.notifiers.invalidate_range(there.first, there.end)
