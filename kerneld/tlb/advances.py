"""Advances: pages that a native program may take by itself, with the frames for them.

A program that begins takes hundreds of faults in pages that lie side by side, and the way to kerneld and back costs
more than what kerneld does for one. So after a write fault kerneld gives the next pages in advance: their addresses and
frames are in memory that the stub reads (docs/abi.md, "Advances"). At the first write to such a page the stub maps it
and says that the page is taken. kerneld books the fault before it does anything else: each turn of the loop begins with
that (`AllAdvances.book`). So nobody can ask for a state in which the fault is missing.

Nothing is given while somebody could see the difference: with a shadow page table, while anything is traced, to a
process of several threads, or where memory is short. An advance is *recalled* before anything else may change its
pages: by its own program's next call that is no fault, and by every request that looks at another process or changes
it. A recall needs nobody's answer. The stub says that it is busy with an advance, then looks whether that is recalled;
kerneld says that it is recalled, then looks whether the stub is busy. So one of them sees the other. If the stub is
busy, its page is not taken, or it is taken and the stub asks kerneld about it; the frame stays given until the
program's next request.

Owns the advances of each thread. Knows no socket. Linux has nothing equal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kerneld.hw.paging import PTE_MKDIRTY, PTE_RW, make_pte
from kerneld.mm.fault import advance as pages_ahead
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.vma import Vma
from kerneld.tlb.rights import PAGE_BITS, tlb_word
from kerneld.tlb.tlb import Tlb
from shared.uapi.native import (
    ADVANCE_BUSY,
    ADVANCE_COPY,
    ADVANCE_OFFSETS,
    ADVANCE_PAGES,
    ADVANCE_PAGES_MOST,
    ADVANCE_RECALLED,
    ADVANCE_RIGHTS,
    ADVANCE_START,
    ADVANCE_TAKEN,
    ADVANCE_WORDS,
    ADVANCES_COUNT,
    NR_ADVANCES,
)
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.frames.frames import Frames
    from kerneld.task.task import Process

FEW_PAGES = 16
"""The number of pages in the first advance of a row; the next of the same row have twice as many, up to 64."""
FEWEST_PAGES = 2
"""The fewest pages of an advance: one alone would cost as much as its fault."""
_MOST_KEPT = 128
"""The most frames that a thread keeps for its next advances."""
_MOST_THREADS = 32
"""The most threads that have advances: each turn of the loop reads a word of each."""
_BIT = [1 << number for number in range(ADVANCE_PAGES_MOST)]
_NO_OFFSETS = np.zeros((0, 0), dtype=np.uint64)
_fence = threading.Lock()
"""To take it orders this thread's earlier stores before its later loads: an atomic instruction does both."""


class _Advance:
    """One advance that is not recalled: pages of one VMA and one leaf table."""

    __slots__ = ("booked", "end", "is_copy", "number", "pages", "pfns", "rights", "start")

    def __init__(self, number: int, start: Vaddr, pages: int, rights: int, *, is_copy: bool) -> None:
        self.number = number
        """Its place in the memory behind the ring."""
        self.start, self.end = start, start + (pages.bit_length() << PAGE_SHIFT)
        self.pages, self.is_copy = pages, is_copy
        """`pages`: a bit for each page from `start` on that may be taken. `is_copy`: each becomes a copy of a file's
        page."""
        self.pfns: dict[int, Pfn] = {}
        """The frame of each page that is not booked, by its number from `start` on."""
        self.rights = rights
        """The bits of the TLB word of each page."""
        self.booked = 0
        """A bit for each page whose fault is booked."""


class Advances:
    """The advances of one thread, in the memory behind its ring."""

    def __init__(self, words: memoryview, tlb: Tlb, process: Process, all_of_them: AllAdvances) -> None:
        """`words` is that memory, in words of 64 bits. The thread is one of `process` and uses the memory of `tlb`."""
        self._words = words
        self._offsets = np.frombuffer(words, dtype=np.uint64)[ADVANCE_OFFSETS:].reshape(NR_ADVANCES, ADVANCE_PAGES_MOST)
        """The offsets of the frames in the RAM's file, a row for each advance."""
        self._tlb = tlb
        self._process = process
        self._all = all_of_them
        self._given = all_of_them.frames.given
        self._live: list[_Advance] = []
        """Those that are not recalled, the oldest first."""
        self._counted = 0
        self._kept: list[Pfn] = []
        """Frames for the next advances. What the program may have written to them harms nobody but itself."""
        self._in_doubt: list[Pfn] = []
        """Frames that the stub may still write to: it was busy when their advance was recalled."""
        self._rights: dict[int, int] = {}
        self._is_over = False
        tlb.advances.add(self)

    # What the thread's own requests do

    def begin_request(self) -> None:
        """Note that the thread makes a request: so its stub is busy with no advance."""
        if self._in_doubt:
            self._given.put_back(self._in_doubt)
            self._in_doubt = []

    def on_fault(self, address: Vaddr) -> None:
        """Note that the thread asks about an address: an advance that gives this page is of no use, and is recalled."""
        self.begin_request()
        for advance in self._live:
            if advance.start <= address < advance.end:
                if (advance.pages & ~advance.booked) >> (address - advance.start >> PAGE_SHIFT) & 1:
                    self._recall([advance])
                return

    def offer(self, mm: MmStruct, address: Vaddr, *, is_present: bool) -> None:
        """Give pages in advance, after a write fault at an address; `is_present`: at a page that could be read."""
        if self._is_over or len(self._tlb.views) != 1 or not self._all.may_give(mm, self._process):
            return
        vma = mm.vmas.lookup(address)
        if vma is None or not pages_ahead.may_be_given(vma):
            return
        start, numbers = (self._find_shared if is_present else self._find_empty)(mm, vma, address)
        if len(numbers) < FEWEST_PAGES:
            return
        if len(self._kept) < len(numbers):
            self._kept += self._given.take()
        if len(self._kept) >= len(numbers):
            self._give(start, numbers, self._rights_of(vma), is_copy=is_present)

    def _find_empty(self, mm: MmStruct, vma: Vma, address: Vaddr) -> tuple[Vaddr, Sequence[int]]:
        """Return the empty pages behind the page that a fault has filled: where they begin, and their numbers."""
        start, count = (address >> PAGE_SHIFT) + 1 << PAGE_SHIFT, FEW_PAGES
        for advance in self._live:
            if advance.end == start - PAGE_SIZE:
                count = min(2 * advance.pages.bit_length(), ADVANCE_PAGES_MOST)
                self._recall([advance])
                break
        for advance in self._live:
            if start < advance.end and advance.start < start + (count << PAGE_SHIFT):
                count = max(advance.start - start >> PAGE_SHIFT, 0)
        return start, range(pages_ahead.find_empty(mm, vma, start, count) if count else 0)

    def _find_shared(self, mm: MmStruct, vma: Vma, address: Vaddr) -> tuple[Vaddr, Sequence[int]]:
        """Return the pages of the file around an address that the program can read; what of them is given is recalled.

        Since then more of them may have come, by reads.
        """
        start, end = pages_ahead.window_of(vma, address)
        self._recall([advance for advance in self._live if advance.start < end and start < advance.end])
        is_shared = pages_ahead.find_shared(mm, vma, start, end)
        if len(is_shared):
            is_shared &= self._tlb.granted(start, len(is_shared))
        return start, is_shared.nonzero()[0].tolist()

    def _rights_of(self, vma: Vma) -> int:
        """Return the bits of the TLB word of a page that a write has brought."""
        prot = vma_page_prot(vma)
        if prot not in self._rights:
            self._rights[prot] = tlb_word(make_pte(1, prot | PTE_RW | PTE_MKDIRTY)) & PAGE_BITS
        return self._rights[prot]

    def _number(self) -> int:
        """Return a free place for an advance; the oldest makes room."""
        if len(self._live) == NR_ADVANCES:
            self._recall(self._live[:1])
        used = {advance.number for advance in self._live}
        return next(number for number in range(NR_ADVANCES) if number not in used)

    def _give(self, start: Vaddr, numbers: Sequence[int], rights: int, *, is_copy: bool) -> None:
        count = len(numbers)
        pages = (1 << count) - 1 if isinstance(numbers, range) else sum(map(_BIT.__getitem__, numbers))
        advance = _Advance(self._number(), start, pages, rights, is_copy=is_copy)
        frames, self._kept = self._kept[:count], self._kept[count:]
        advance.pfns = dict(zip(numbers, frames, strict=True))
        words, at = self._words, advance.number * ADVANCE_WORDS
        self._offsets[advance.number, numbers] = np.array(frames) << PAGE_SHIFT
        words[at + ADVANCE_TAKEN] = words[at + ADVANCE_RECALLED] = 0
        words[at + ADVANCE_PAGES] = pages
        words[at + ADVANCE_RIGHTS] = rights | (ADVANCE_COPY if is_copy else 0)
        words[at + ADVANCE_START] = start
        self._live.append(advance)
        self._all.note_live(self)

    # What the kernel does

    @property
    def has_taken(self) -> bool:
        """Whether the thread has taken pages that are not booked."""
        return bool(self._words[ADVANCES_COUNT] != self._counted)

    def book(self) -> None:
        """Book the faults of the pages that the thread has taken."""
        words = self._words
        self._counted = words[ADVANCES_COUNT]
        for advance in self._live:
            if words[advance.number * ADVANCE_WORDS + ADVANCE_TAKEN] != advance.booked:
                self._book(advance)

    def recall(self) -> None:
        """Take everything back that is not taken yet."""
        if self._live:
            self._recall(list(self._live))

    def give_up(self) -> None:
        """Take everything back, and free the frames."""
        self.recall()
        self._given.put_back(self._kept)
        self._kept = []
        self._all.note_empty(self)

    def end(self) -> None:
        """End the use of the memory, or of the ring: the thread takes no page any more."""
        self._is_over = True
        self.give_up()
        self._tlb.in_doubt += self._in_doubt
        self._in_doubt = []
        self._tlb.advances.discard(self)
        # The ring's memory can be unmapped now.
        self._offsets = _NO_OFFSETS

    def _recall(self, advances: list[_Advance]) -> None:
        words = self._words
        for advance in advances:
            words[advance.number * ADVANCE_WORDS + ADVANCE_RECALLED] = 1
        with _fence:
            pass
        for advance in advances:
            is_busy = words[advance.number * ADVANCE_WORDS + ADVANCE_BUSY]
            self._book(advance)
            self._live.remove(advance)
            left = self._in_doubt if is_busy else self._kept
            left += advance.pfns.values()
        if len(self._kept) > _MOST_KEPT:
            self._given.put_back(self._kept[_MOST_KEPT:])
            del self._kept[_MOST_KEPT:]

    def _book(self, advance: _Advance) -> None:
        taken = self._words[advance.number * ADVANCE_WORDS + ADVANCE_TAKEN] & advance.pages & ~advance.booked
        if not taken:
            return
        advance.booked |= taken
        mm = self._tlb.mm
        vma = mm.vmas.lookup(advance.start)
        assert vma is not None
        numbers = [number for number in advance.pfns if taken >> number & 1]
        pfns = [advance.pfns.pop(number) for number in numbers]
        # The stub has mapped them, or will: so they are granted before the entries say so.
        self._tlb.note_taken(advance.start, numbers, pfns, advance.rights)
        self._process.min_flt += len(numbers)
        if not advance.is_copy:
            pages_ahead.book_empty(mm, vma, advance.start, numbers, pfns)
            return
        for pfn, vaddr in pages_ahead.book_copies(mm, vma, advance.start, numbers, pfns):
            mm.notifiers.invalidate_range(vaddr, vaddr + PAGE_SIZE)
            self._given.put_back([pfn])


class AllAdvances:
    """The advances of one machine."""

    def __init__(self, frames: Frames, is_traced: Callable[[], bool]) -> None:
        self.frames = frames
        self._is_traced = is_traced
        self.live: list[Advances] = []
        """Of the threads that may take pages, or keep frames for that."""

    def may_give(self, mm: MmStruct, process: Process) -> bool:
        """Whether nobody could see that a fault is booked later: no listener but the TLB, and no trace."""
        return len(mm.notifiers) == mm.notifiers.nr_tlbs and process.on_page_fault is None and not self._is_traced()

    def note_live(self, advances: Advances) -> None:
        """Note that a thread may take pages."""
        if advances not in self.live:
            if len(self.live) == _MOST_THREADS:
                self.live[0].give_up()
            self.live.append(advances)

    def note_empty(self, advances: Advances) -> None:
        """Note that a thread has no frame of the machine's any more."""
        if advances in self.live:
            self.live.remove(advances)

    def book(self) -> None:
        """Book what has been taken."""
        for advances in list(self.live):
            if advances.has_taken:
                advances.book()

    def recall(self) -> None:
        """Take everything back."""
        for advances in list(self.live):
            advances.give_up()

    def recalling(self, reclaim: Callable[[int], None]) -> Callable[[int], None]:
        """Return direct reclaim as one that takes back first what has been given."""

        def reclaiming(count: int) -> None:
            self.recall()
            reclaim(count)

        return reclaiming
