"""Advances: pages that a native program may take by itself, with the frames for them.

A program that begins takes hundreds of faults in pages that lie side by side, and the way to kerneld and back costs
more than what kerneld does for one. So after a write fault kerneld gives the pages around it in advance: their
addresses and frames are in memory that the stub reads (docs/abi.md, "Advances"). At the first write to such a page the
stub maps it and says that the page is taken. kerneld books the fault later, but before any request that is no fault is
served (`kerneld/syscalls/advance.py`), and at the end of each turn of the loop. So nobody can ask for a state in which
the fault is missing. Another fault needs nothing of what this one leaves: it has its answer first, unless it may map
pages of the same file. Read faults of files have windows in the place of frames: see `kerneld.tlb.windows`.

Where there are two processors the thread goes on while it is given pages; the word ADVANCES_COMING tells its stub to
wait for them at its next fault.

Nothing is given while somebody could see the difference: with a shadow page table, while anything is traced, to a
process of several threads, or where memory is short. An advance is *recalled* before anything else may change its
pages: by its own program's calls that change the mapping, and by every request that looks at another process or changes
it. A recall needs nobody's answer. The stub says that it is busy with an advance, then looks whether that is recalled;
kerneld says that it is recalled, then looks whether the stub is busy. So one of them sees the other. If the stub is
busy, its page is not taken, or it is taken and the stub asks kerneld about it; the frame stays given until the
program's next request.

Owns the advances of each thread. Knows no socket. Linux has nothing equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PTE_MKDIRTY, PTE_RW, make_pte
from kerneld.mm.fault import advance as pages_ahead
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.vma import Vma
from kerneld.tlb.rights import PAGE_BITS, tlb_word
from kerneld.tlb.tlb import Tlb
from kerneld.tlb.windows import Windows, fence, free_place, publish
from shared.uapi.native import (
    ADVANCE_BUSY,
    ADVANCE_COPY,
    ADVANCE_FROM,
    ADVANCE_OFFSETS,
    ADVANCE_PAGES,
    ADVANCE_PAGES_MOST,
    ADVANCE_RECALLED,
    ADVANCE_TAKEN,
    ADVANCE_WORDS,
    ADVANCES_COMING,
    ADVANCES_COUNT,
    NR_ADVANCES,
    ROW_OFFSETS,
    SOURCE_OFFSETS,
)
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Pfn, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.frames.frames import Frames
    from kerneld.task.task import Process

_MOST_KEPT = 128
"""The most frames that a thread keeps for its next advances."""
_MOST_THREADS = 32
"""The most threads that have advances: each turn of the loop reads a word of each."""
_start = attrgetter("start")
_NO_OFFSETS = np.zeros((0, 0), dtype=np.uint64)


class _Advance:
    """One advance that is not recalled: pages of one VMA and one leaf table."""

    __slots__ = ("booked", "end", "is_copy", "number", "pages", "pfns", "rights", "start")

    def __init__(self, number: int, start: Vaddr, pages: int, rights: int) -> None:
        self.number = number
        """Its place in the memory behind the ring."""
        self.start, self.end = start, start + (pages.bit_length() << PAGE_SHIFT)
        self.pages = pages
        """A bit for each page from `start` on that may be taken."""
        self.is_copy = rights & (ADVANCE_COPY | ADVANCE_FROM) != 0
        """Whether each becomes a copy of a file's page."""
        self.pfns: dict[int, Pfn] = {}
        """The frame of each page that is not booked, by its number from `start` on."""
        self.rights = rights & PAGE_BITS
        """The bits of the TLB word of each page."""
        self.booked = 0
        """A bit for each page whose fault is booked."""


class Advances:
    """The advances of one thread, in the memory behind its ring."""

    def __init__(self, words: memoryview, tlb: Tlb, process: Process, all_of_them: AllAdvances) -> None:
        """`words` is that memory, in words of 64 bits. The thread is one of `process` and uses the memory of `tlb`."""
        self._words = words
        offsets = np.frombuffer(words, dtype=np.uint64)[ADVANCE_OFFSETS:ROW_OFFSETS]
        self._offsets = offsets.reshape(NR_ADVANCES, ADVANCE_PAGES_MOST)
        """The offsets of the frames in the RAM's file, a row for each advance."""
        self._sources = np.frombuffer(words, dtype=np.uint64)[SOURCE_OFFSETS:].reshape(NR_ADVANCES, ADVANCE_PAGES_MOST)
        """The same of the frames that are to be copied."""
        self._tlb = tlb
        self._process = process
        self._windows = Windows(words, tlb, process)
        self._all = all_of_them
        self._given = all_of_them.frames.given
        self._live: list[_Advance] = []
        """Those that are not recalled, the oldest first."""
        self._counted = 0
        self._stamps = range(0)
        """The time by the clock of the LRU lists at which the pages came that are not booked."""
        self._kept: list[Pfn] = []
        """Frames for the next advances. What the program may have written to them harms nobody but itself."""
        self._in_doubt: list[Pfn] = []
        """Frames that the stub may still write to: it was busy when their advance was recalled."""
        self._rights: dict[int, int] = {}
        self.is_answered_first = False
        """Whether the thread has the answer to its fault before it is given pages, and goes on meanwhile: if there is
        another processor."""
        self._wanted: tuple[MmStruct, Vma, Vaddr, bool, bool] | None = None
        """The arguments of `offer`, for the time after the answer."""
        self._is_over = False
        tlb.advances.add(self)

    # What the thread's own requests do

    def begin_request(self) -> None:
        """Note that the thread makes a request: so its stub is busy with no advance.

        A fault of the same datagram may have asked for pages: this request may take their mapping away.
        """
        if self._wanted is not None:
            self._wanted = None
            self._words[ADVANCES_COMING] = 0
        if self._in_doubt:
            self._given.put_back(self._in_doubt)
            self._in_doubt = []

    def on_fault(self, address: Vaddr) -> None:
        """Note that the thread asks about an address: so it has not mapped the page, and does not take it now."""
        self.begin_request()
        self._windows.on_fault(address)
        taken = min(self._words[ADVANCES_COUNT] - self._counted, NR_ADVANCES * ADVANCE_PAGES_MOST)
        if taken > 0:
            if any(advance.is_copy for advance in self._live):
                # This fault may map pages of the file around it.
                self.book()
            else:
                # They are booked later, and come to their LRU list before what this fault brings.
                clock = self._all.frames.reserve_stamps(taken)
                self._stamps = range(clock + 1, clock + 1 + taken)
        for advance in self._live:
            if advance.start <= address < advance.end:
                number = address - advance.start >> PAGE_SHIFT
                if (advance.pages & ~advance.booked) >> number & 1:
                    self._book(advance)
                    if not advance.booked >> number & 1:
                        self._withdraw(advance, number)
                return

    def _withdraw(self, advance: _Advance, number: int) -> None:
        """Take one page back, while the thread waits for its request."""
        advance.pages ^= 1 << number
        self._words[advance.number * ADVANCE_WORDS + ADVANCE_PAGES] = advance.pages
        self._kept.append(advance.pfns.pop(number))

    def offer(self, mm: MmStruct, address: Vaddr, *, is_write: bool, is_present: bool) -> None:
        """Give pages in advance, after a fault at an address; `is_present`: at a page that could be read."""
        if self._is_over or len(self._tlb.views) != 1 or not self._all.may_give(mm, self._process):
            return
        vma = mm.vmas.lookup(address)
        if vma is None or not (pages_ahead.may_be_given(vma) if is_write else pages_ahead.may_have_windows(vma)):
            return
        if self.is_answered_first:
            self._wanted = mm, vma, address, is_write, is_present
            self._words[ADVANCES_COMING] = 1
        else:
            self._offer(mm, vma, address, is_write, is_present)

    def on_answered(self) -> None:
        """Give what the thread's last fault has asked for: it has its answer. Nothing else has run since."""
        self.is_answered_first = False
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self._offer(*wanted)
            self._words[ADVANCES_COMING] = 0

    def _offer(self, mm: MmStruct, vma: Vma, address: Vaddr, is_write: bool, is_present: bool) -> None:
        if not is_write:
            if self._given.are_plenty() and self._windows.offer(mm, vma, address):
                self._all.note_live(self)
            return
        start, end = pages_ahead.room_of(vma, address, is_present=is_present)
        self.book()
        self._recall([advance for advance in self._live if advance.start < end and start < advance.end])
        kind, sources = 0, None
        if is_present:
            kind, may_be_given = ADVANCE_COPY, pages_ahead.find_shared(mm, vma, start, end)
            if len(may_be_given):
                may_be_given &= self._tlb.granted(start, len(may_be_given))
        elif vma.file is None:
            may_be_given = pages_ahead.find_empty(mm, vma, start, end)
        else:
            kind, (may_be_given, sources) = ADVANCE_FROM, pages_ahead.find_cached(mm, vma, start, end)
        count = int(np.count_nonzero(may_be_given))
        if len(self._kept) < count:
            self._kept += self._given.take()
        if count and len(self._kept) >= count:
            self._give(start, may_be_given, self._rights_of(vma) | kind, sources)

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
        return free_place(advance.number for advance in self._live)

    def _give(
        self, start: Vaddr, is_given: npt.NDArray[np.bool_], rights: int, sources: npt.NDArray[np.int64] | None
    ) -> None:
        """Give some of the pages from `start` on. `sources`: the frames that they become copies of, for each page."""
        numbers, place = is_given.nonzero()[0], self._number()
        advance = _Advance(place, start, pages_ahead.bits_of(is_given), rights)
        frames, self._kept = self._kept[: len(numbers)], self._kept[len(numbers) :]
        advance.pfns = dict(zip(numbers.tolist(), frames, strict=True))
        self._offsets[place, numbers] = np.array(frames) << PAGE_SHIFT
        if sources is not None:
            self._sources[place, numbers] = sources[numbers] << PAGE_SHIFT
        publish(self._words, place, start, advance.pages, rights)
        self._live.append(advance)
        self._all.note_live(self)

    # What the kernel does

    @property
    def has_taken(self) -> bool:
        """Whether the thread has taken pages that are not booked."""
        return bool(self._words[ADVANCES_COUNT] != self._counted)

    def book(self, *, and_windows: bool = False) -> None:
        """Book the faults of the pages that the thread has taken; those of its windows only if that is asked for.

        A fault in a window leaves nothing in an order: no page comes to an LRU list. So they are booked many at once.
        """
        words = self._words
        self._counted = words[ADVANCES_COUNT]
        self._given.stamps, self._stamps = self._stamps, range(0)
        for advance in sorted(self._live, key=_start):
            if words[advance.number * ADVANCE_WORDS + ADVANCE_TAKEN] != advance.booked:
                self._book(advance)
        self._given.stamps = range(0)
        if and_windows:
            self._windows.book()

    def recall(self, start: Vaddr = 0, end: Vaddr = TASK_SIZE) -> None:
        """Take back what is not taken yet and lies in [start, end), and the windows of the mappings there."""
        if self._live:
            self._recall([advance for advance in self._live if advance.start < end and start < advance.end])
        self._windows.recall(start, end)

    def check(self) -> Iterator[str]:
        """Yield a line of text for each page that is given and must not be."""
        return self._windows.check()

    def give_up(self) -> None:
        """Take everything back, and free the frames."""
        self.recall()
        self._given.put_back(self._kept)
        self._kept = []
        self._all.note_empty(self)

    def end(self) -> None:
        """End the use of the memory, or of the ring: the thread takes no page any more."""
        self._is_over, self._wanted = True, None
        self.give_up()
        self._tlb.in_doubt += self._in_doubt
        self._in_doubt = []
        self._tlb.advances.discard(self)
        # The ring's memory can be unmapped now.
        self._offsets = self._sources = _NO_OFFSETS
        self._windows.end()

    def _recall(self, advances: list[_Advance]) -> None:
        words = self._words
        for advance in advances:
            words[advance.number * ADVANCE_WORDS + ADVANCE_RECALLED] = 1
        fence()
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
