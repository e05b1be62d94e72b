"""The TLB of one address space: which pages the host maps for its native program, and which it must unmap.

Owns the list of granted pages, and ensures that no grant exceeds its page-table entry while the program can run. It
listens to the address space as the shadow page table does: a notification names a range, and the grants of the range
are compared with the present entries. Knows no socket: an `Agent` carries orders out, and the reply to the program's
own request carries grants and drops.

There are two ways to drop a page. While the program's one thread waits for its own request, no thread runs in its
memory: the reply names the pages to drop, and they are dropped before the program continues. In every other case the
agent drops the pages at once, and the primitive that removed the page continues after the agent's acknowledgement: no
frame is used again before. If the agent has no processor, the primitive continues without it: see `kerneld.tlb.debts`.

The program may read a reply after a later order has reached the agent. So the reply carries the number of orders given
before it; if a later order has come, its grants are ignored.

Answers to Linux v6.8 arch/x86/mm/tlb.c:flush_tlb_mm_range() and mm/mmu_gather.c.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PTE_PFN_MASK, PTRS_PER_TABLE
from kerneld.tlb.debts import Debts
from kerneld.tlb.host_check import check_host
from kerneld.tlb.record import MOST_OPERATIONS, ONE, Span, joined, pack_record
from kerneld.tlb.rights import PAGE_BITS, WRITE, TlbWords, exceeds, frames_of, tlb_word, tlb_words, word_exceeds
from kerneld.tlb.runs import runs_to_grant
from kerneld.tlb.view import Agent, CheckedView, View
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, TASK_SIZE, Pfn, Pid, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.frames.frames import Pfns
    from kerneld.mm.space.mm import MmStruct
    from kerneld.task.task import ThreadAdvances

AROUND_PAGES = 16
"""Number of pages around a fault, aligned, that are granted too: as many as Linux's fault-around maps."""
FEW_PAGES = 64
"""Up to this number of pages, a loop over grants is faster than numpy."""


class Tlb:
    """A listener of one address space; see `MmuNotifier`."""

    def __init__(
        self,
        mm: MmStruct,
        forget: Callable[[Tlb], None],
        agent: Agent | None = None,
        debts: Debts | None = None,
        *,
        is_checked: bool = False,
    ) -> None:
        """`forget` is called when the address space ends. `is_checked`: see `CheckedView`."""
        self._is_checked = is_checked
        self.mm = mm
        self.agent = agent
        self.views: set[View] = set()
        """The views of all threads that use the memory: of the process, and of other processes that share it."""
        self.has_left_running = False
        """Whether a thread has left without a request of its own."""
        self._debts = debts or Debts(mm.frames, set())
        self._forget = forget
        self._granted: dict[int, TlbWords] = {}
        """One TLB word for each page, by number of the leaf table (address >> PMD_SHIFT)."""
        self._granted_at: dict[int, memoryview] = {}
        """The same words, for one at a time: as `Frames` has its arrays twice."""
        self._dirty: list[Span] = []
        self._drops: list[Span] = []
        self._dropped: list[int] = []
        """The TLB words of the pages in `_drops`."""
        self._grants: list[tuple[Vaddr, int, int]] = []
        """Start, pages, TLB word of the first page."""
        self._filled: tuple[Vaddr, int, int] | None = None
        """The pages that a fault has just mapped, as `update_mmu_cache_range` has told; nothing has changed since."""
        self.orders = 0
        self.advances: set[ThreadAdvances] = set()
        """Of the threads that use the memory."""
        self.in_doubt: list[Pfn] = []
        """Frames that were given to threads which have ended in the middle of taking a page."""
        mm.notifiers.add_tlb(self)

    # Notifications of the address space

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        """Drop the grants that exceed the changed entries of [start, end): at once, or with the program's answer."""
        self._filled = None
        number = start >> PMD_SHIFT
        if number == (end - 1) >> PMD_SHIFT:
            table = self._granted.get(number)
            if table is None:
                return
            low = start >> PAGE_SHIFT & 511
            if not (
                table.item(low) if end - start == PAGE_SIZE else table[low : low + (end - start >> PAGE_SHIFT)].any()
            ):
                return
        elif not self._granted:
            return
        self._dirty.append((start, end))
        if not self.is_quiet:
            self._order()

    def clear_flush_young(self, start: Vaddr, end: Vaddr) -> None:
        """Drop the grants of [start, end): the entries are old, and the next access must fault to be seen."""
        self.invalidate_range(start, end)

    def update_mmu_cache_range(self, vaddr: Vaddr, entry: int, nr_pages: int) -> None:
        """Note pages that a fault has mapped in empty entries: they can be granted without a look at these."""
        self._filled = vaddr, entry, nr_pages

    def release(self) -> None:
        """End the TLB: the process exits."""
        self._end()

    def exec_mmap(self, new_mm: MmStruct) -> None:
        """End the TLB: the process continues with another address space, which gets a new TLB when its loader asks."""
        self._end()

    def _end(self) -> None:
        """Drop every grant: a thread that still runs in the memory (its process is killed) finds no mapping there.

        Without such a thread nobody waits for the agent: the answer to the last request, which has asked for the end,
        names the drop.
        """
        for advances in list(self.advances):
            advances.end()
        doubtful, self.in_doubt = sorted(self.in_doubt), []
        agent, self.agent = self.agent, None
        if agent is not None:
            if self._granted and not self.is_quiet:
                self.orders += 1
                if not agent.order(pack_record([(0, TASK_SIZE)], [], self.orders)):
                    words = np.concatenate(list(self._granted.values()))
                    pfns = np.union1d(frames_of(words[words != 0]), np.array(doubtful, dtype=np.int64))
                    self._debts.owe(agent, self.orders, pfns, None)
            self._debts.end_of(agent, self.mm)
            agent.dismiss()
        self.mm.frames.given.put_back(doubtful)
        if not self.views:
            self._dirty, self._drops, self._grants = [], [(0, TASK_SIZE)] if self._granted else [], []
        self._granted.clear()
        self._granted_at.clear()
        self.mm.notifiers.forget_tlb()
        self._forget(self)

    # Requests of the program

    def enter(self, pid: Pid) -> View:
        """Return the view of a thread of process `pid` that begins to use the memory; it is in a request now."""
        for advances in self.advances:
            advances.recall()
        view = CheckedView(self, pid) if self._is_checked else View(self)
        self.views.add(view)
        return view

    @property
    def is_quiet(self) -> bool:
        """Whether no thread runs in the memory: its only thread waits for its own request, or has left in it."""
        if not self.views:
            return not self.has_left_running
        return len(self.views) == 1 and next(iter(self.views)).is_inside

    def take(self) -> bytes:
        """Return the record to be sent behind the replies of a request."""
        self._filled = None
        if self._dirty:
            self._collect()
            self._dropped.clear()
        drops, grants = self._drops, self._grants
        if not drops and len(grants) == 1:
            # What most faults bring.
            start, pages, word = grants.pop()
            return ONE.pack(
                ONE.size, 1, self.orders, start, pages << PAGE_SHIFT | word & PAGE_BITS, word & PTE_PFN_MASK
            )
        self._drops, self._grants = [], []
        if len(drops) + len(grants) > MOST_OPERATIONS:
            drops = [(min(start for start, _ in drops), max(end for _, end in drops))]
            grants = grants[: MOST_OPERATIONS - 1]
        return pack_record(drops, grants, self.orders)

    def _order(self) -> None:
        self._collect()
        drops, self._drops = self._drops, []
        dropped, self._dropped = self._dropped, []
        if not drops:
            return
        if len(drops) > MOST_OPERATIONS:
            drops = [(drops[0][0], drops[-1][1])]
        # Grants that are not sent yet may exceed the present entries: they are dropped, and the next fault grants
        # again.
        self._grants = []
        self.orders += 1
        if self.agent is not None and not self.agent.order(pack_record(drops, [], self.orders)):
            self._debts.owe(self.agent, self.orders, frames_of(np.array(dropped, dtype=np.uint64)), self.mm)

    def _collect(self) -> None:
        if self._dirty:
            dirty, self._dirty = self._dirty, []
            for start, end in dirty if len(dirty) == 1 else joined(dirty):
                if end - start == PAGE_SIZE:
                    self._take_exceeding_page(start)
                else:
                    self._drops.extend(self._take_exceeding(start, end))
            self._drops.sort()

    def _take_exceeding_page(self, vaddr: Vaddr) -> None:
        """Forget the grant of one page if it exceeds its entry. Most faults change one entry, and give more rights."""
        table = self._granted.get(vaddr >> PMD_SHIFT)
        if table is None:
            return
        index = vaddr >> PAGE_SHIFT & 511
        word = table.item(index)
        if not word:
            return
        pte = self.mm.page_table.find_pte(vaddr)
        if pte is None:
            # There is no leaf table: an entry of 2 MiB, or none.
            self._drops.extend(self._take_exceeding(vaddr, vaddr + PAGE_SIZE))
            return
        allowed = tlb_word(self.mm.frames.ram.words[pte])
        if word_exceeds(word, allowed):
            table[index] = 0
            self._dropped.append(word)
            self._drops.append((vaddr, vaddr + PAGE_SIZE))

    def _take_exceeding(self, start: Vaddr, end: Vaddr) -> Iterator[Span]:
        """Forget the grants that exceed their entries in a range, and yield spans that have all of these pages.

        A span may also have pages without a grant, where the host maps nothing, but none whose grant stays.
        """
        first, last = start >> PMD_SHIFT, (end - 1) >> PMD_SHIFT
        numbers = range(first, last + 1)
        if len(numbers) > len(self._granted):
            found = sorted(number for number in self._granted if first <= number <= last)
        else:
            found = [number for number in numbers if number in self._granted]
        for number in found:
            base = number << PMD_SHIFT
            low = (max(start, base) - base) >> PAGE_SHIFT
            high = (min(end, base + PMD_SIZE) - base + PAGE_SIZE - 1) >> PAGE_SHIFT
            places = self._granted[number][low:high].nonzero()[0] + low
            if len(places):
                yield from self._take_exceeding_of(number, places)

    def _take_exceeding_of(self, number: int, places: npt.NDArray[np.int64]) -> Iterator[Span]:
        """Do the same for the pages of one leaf table that are granted, by their places in it."""
        base, granted = number << PMD_SHIFT, self._granted[number]
        pte = self.mm.page_table.find_pte(base)
        at = places.tolist()
        if pte is None:
            # An entry of 2 MiB, or none.
            bad = exceeds(granted[places], self._allowed(base)[places]).tolist()
        elif len(at) <= FEW_PAGES:
            words = self.mm.frames.ram.words
            bad = [word_exceeds(granted.item(place), tlb_word(words[pte + place])) for place in at]
        else:
            bad = exceeds(granted[places], tlb_words(self.mm.frames.ram.words_np[places + pte])).tolist()
        if any(bad):
            self._dropped += granted[places[bad]].tolist()
            granted[places[bad]] = 0
        for is_bad, run in itertools.groupby(zip(bad, at, strict=True), key=itemgetter(0)):
            if is_bad:
                pages = [place for _, place in run]
                yield base + (pages[0] << PAGE_SHIFT), base + (pages[-1] + 1 << PAGE_SHIFT)

    def _allowed(self, base: Vaddr) -> TlbWords:
        """Return the TLB words of the 512 entries of the leaf table at `base`."""
        walk = self.mm.page_table.walk
        words = np.zeros(PTRS_PER_TABLE, dtype=np.uint64)
        for run in walk.runs(base, base + PMD_SIZE):
            entries = walk.page_entries(run)
            low = (run.start - base) >> PAGE_SHIFT
            words[low : low + len(entries)] = tlb_words(entries)
        return words

    # Grants

    def grant_page(self, address: Vaddr) -> int:
        """Grant the page at an address, and no other page, as its entry allows. Return its TLB word; 0: nothing.

        For a page that has just come: what is around it has been granted before, or will be asked for. The new mapping
        takes the place of one that is there.
        """
        pte = self.mm.page_table.find_pte(address)
        if pte is None:
            return self.grant(address)
        ram = self.mm.frames.ram
        word = tlb_word(ram.words[pte])
        if not word:
            return 0
        words = self._granted_at.get(address >> PMD_SHIFT)
        if words is None:
            self._table(address)
            words = self._granted_at[address >> PMD_SHIFT]
        words[address >> PAGE_SHIFT & 511] = word
        if word & WRITE:
            ram.set_written(word >> PAGE_SHIFT)
        vaddr = address & PAGE_MASK
        self._grants.append((vaddr, 1, word))
        if self._dirty and self._dirty[-1] == (vaddr, vaddr + PAGE_SIZE):
            # The fault itself has changed the entry, and the grant is what the entry allows now.
            self._dirty.pop()
        return word

    def granted(self, start: Vaddr, count: int) -> npt.NDArray[np.bool_]:
        """Return for each of some pages of one leaf table whether it is granted."""
        low = start >> PAGE_SHIFT & 511
        return self._table(start)[low : low + count].astype(np.bool_)

    def note_taken(self, start: Vaddr, numbers: list[int], pfns: list[Pfn], rights: int) -> None:
        """Note that the program has mapped pages of one leaf table by itself: see `kerneld.tlb.advances`."""
        self._table(start)
        words, low = self._granted_at[start >> PMD_SHIFT], start >> PAGE_SHIFT & 511
        for number, pfn in zip(numbers, pfns, strict=True):
            words[low + number] = pfn << PAGE_SHIFT | rights

    def note_windows(self, start: Vaddr, numbers: Pfns, pfns: Pfns, rights: int) -> None:
        """Do the same for many: see `kerneld.tlb.windows`."""
        self._table(start)[numbers + (start >> PAGE_SHIFT & 511)] = (pfns << PAGE_SHIFT | rights).astype(np.uint64)

    def _table(self, address: Vaddr) -> TlbWords:
        table = self._granted.get(address >> PMD_SHIFT)
        if table is None:
            table = self._granted[address >> PMD_SHIFT] = np.zeros(PTRS_PER_TABLE, dtype=np.uint64)
            self._granted_at[address >> PMD_SHIFT] = table.data
        return table

    def grant(self, address: Vaddr) -> int:
        """Grant the page at an address, and the pages around it, as their entries allow. Return the page's TLB word."""
        filled, self._filled = self._filled, None
        if filled is not None and 0 <= address - filled[0] < filled[2] << PAGE_SHIFT:
            word = self._grant_filled(*filled)
            return word and word + (address - filled[0] & PAGE_MASK)
        number = address >> PMD_SHIFT
        table = self._table(address)
        index = address >> PAGE_SHIFT & 511
        pte = self.mm.page_table.find_pte(address)
        if pte is None:
            self._grant_huge(number, table)
            return table.item(index)
        first = index & -AROUND_PAGES
        low = pte - index + first
        ram = self.mm.frames.ram
        known = table[first : first + AROUND_PAGES].tolist()
        base = (number << PMD_SHIFT) + (first << PAGE_SHIFT)
        for at, count, word in runs_to_grant(ram.words[low : low + AROUND_PAGES].tolist(), known, index - first):
            if count == 1:
                table[first + at] = word
            else:
                table[first + at : first + at + count] = np.arange(word, word + (count << PAGE_SHIFT), PAGE_SIZE)
            if word & WRITE:
                ram.written[word >> PAGE_SHIFT : (word >> PAGE_SHIFT) + count] = True
            self._grants.append((base + (at << PAGE_SHIFT), count, word))
        return table.item(index)

    def _grant_filled(self, vaddr: Vaddr, entry: int, nr_pages: int) -> int:
        """Grant pages of one leaf table that have just been mapped by entries in a row. Return the first TLB word."""
        word = tlb_word(entry)
        if word:
            low = vaddr >> PAGE_SHIFT & 511
            self._table(vaddr)[low : low + nr_pages] = np.arange(
                word, word + (nr_pages << PAGE_SHIFT), PAGE_SIZE, dtype=np.uint64
            )
            self._grants.append((vaddr, nr_pages, word))
        return word

    def _grant_huge(self, number: int, table: TlbWords) -> None:
        """Grant a whole page of 2 MiB by one mapping of the host, because its frames are contiguous."""
        base = number << PMD_SHIFT
        table[:] = self._allowed(base)
        word = int(table[0])
        if word & WRITE:
            self.mm.frames.ram.written[word >> PAGE_SHIFT : (word >> PAGE_SHIFT) + PTRS_PER_TABLE] = True
        if word:
            self._grants.append((base, PTRS_PER_TABLE, word))

    def check_host(self, pid: Pid) -> None:
        """Check what the host maps in a process that uses the memory. Raises KernelBug."""
        for advances in self.advances:
            advances.book(and_windows=True)
        check_host(pid, self._granted)

    def check(self) -> list[str]:
        """Return one line of text for each page that is granted more than its entry allows."""
        wrong = []
        for number, granted in self._granted.items():
            base = number << PMD_SHIFT
            for at in np.flatnonzero(exceeds(granted, self._allowed(base))).tolist():
                wrong.append(f"the TLB grants {granted[at]:#x} at {base + (at << PAGE_SHIFT):#x}")
        return wrong + [line for advances in self.advances for line in advances.check()]
