"""The walk over a page table: the one module that goes down its four levels.

Owns the way from the root to an entry (`descend`), the definition of a run of entries, and the walk over a range: table
by table, or many leaf tables at once if the range is large. Changes no entry; knows no VMA. Answers to Linux v6.8
mm/pagewalk.c (walk_page_range, walk_pgd_range and the rest of its family) and include/linux/pagewalk.h (struct
mm_walk_ops).

| wanted                                                | function                                |
|-------------------------------------------------------|-----------------------------------------|
| one entry                                             | `descend` (xv6: walk())                 |
| the entries of a range, both sizes alike              | a loop over `PageWalk.runs`             |
| … each size by a function of its own                  | `PageWalk.page_range`                   |
| … while other clients may be served in between        | a loop over `PageWalk.leaves`           |
| the tables of an upper level                          | `PageWalk.tables`                       |
| the entries of a range, whatever maps it, as an array | `PageWalk.entries`                      |

Existing entries come in order; missing tables are skipped. A run costs some twenty calls of numpy, for one table or for
many: so a large range comes sixteen tables at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import (
    PGD_SHIFT,
    PTE_PFN_MASK,
    PTE_PRESENT,
    PTE_PSE,
    PTRS_PER_TABLE,
    PUD_SHIFT,
    counted_mask,
    pte_pfn,
    small_entries,
)
from kerneld.hw.ram import WORDS_SHIFT, Ram
from kerneld.hw.scalars import u64
from kerneld.mm.frames.frames import Pfns
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, Pfn, Vaddr

Words = npt.NDArray[np.uint64]

UPPER_SHIFTS = (PGD_SHIFT, PUD_SHIFT, PMD_SHIFT)
PUD_SIZE = 1 << PUD_SHIFT
KIND = PTE_PRESENT | PTE_PSE
"""Of an upper entry: PTE_PRESENT alone names a table; PTE_PSE, with or without it, is a huge page; else it is empty."""
_TABLES_AT_ONCE = 16
"""Enough tables that numpy's fixed costs hardly count, and so few that their entries stay in a processor's cache."""
_FEW_TABLES = 2
"""Up to this number, whole tables are walked one by one."""
FEW_ENTRIES = 8
"""Up to this number of entries, a loop is faster than numpy, whose calls have fixed costs."""
_PAGES = np.arange(PTRS_PER_TABLE, dtype=np.uint64) * u64(PAGE_SIZE)


class Leaf(NamedTuple):
    """A run of entries in one leaf table: entry `low + i` (a word index) maps the page at `start + i * PAGE_SIZE`.

    If `huge` is set, it is one entry of 2 MiB at `low` instead, and [start, end) may be a part of the 2 MiB.
    """

    start: Vaddr
    end: Vaddr
    low: int
    high: int
    huge: bool = False

    def vaddrs(self) -> Words:
        """Return the address of the page of each entry of 4 KiB."""
        return np.arange(self.start, self.end, PAGE_SIZE, dtype=np.uint64)


class Leaves(NamedTuple):
    """Several whole leaf tables of one GiB, in order: frame `tables[i]` maps the 512 pages from `starts[i]` on."""

    start: Vaddr
    end: Vaddr
    """Between the first address and `end` there may be other tables, which are not in this run."""
    starts: Words
    tables: Pfns
    huge: bool = False

    @classmethod
    def of(cls, starts: Words, tables: Pfns) -> Leaves:
        """Return the run of these tables, at least one: it reaches from the first to the last one."""
        return cls(int(starts[0]), int(starts[-1]) + PMD_SIZE, starts, tables)

    def vaddrs(self) -> Words:
        """Return the address of the page of each entry."""
        return (self.starts[:, np.newaxis] + _PAGES).ravel()


Run = Leaf | Leaves


class Table(NamedTuple):
    """A run of entries of one table of any level: entry `low + i` is for the bytes from `start + (i << shift)` on."""

    start: Vaddr
    """The start of the range; it may lie inside the part of the first entry."""
    end: Vaddr
    low: int
    high: int


def descend(words: memoryview, root: Pfn, vaddr: Vaddr, shift: int) -> tuple[int, int]:
    """Go down from the root to the entry for an address whose level maps `1 << shift` bytes an entry (xv6: walk()).

    Returns the entry's word index and its level's shift. If an entry on the way names no table, the way ends there:
    this entry, which is 0 or a huge page, is returned with its larger shift.
    """
    table, level = root << WORDS_SHIFT, PGD_SHIFT
    while True:
        slot = table | vaddr >> level & 511
        if level == shift:
            return slot, level
        entry = words[slot]
        if entry & KIND != PTE_PRESENT:
            return slot, level
        table = (entry & PTE_PFN_MASK) >> 3
        level -= 9


class PageWalk:
    """The walk over the page table that begins at frame `root` of `ram`."""

    def __init__(self, ram: Ram, root: Pfn) -> None:
        self._root = root
        self._words = ram.words
        self._words_np = ram.words_np
        self._frames_np = ram.frames_np

    def leaves(self, start: Vaddr, end: Vaddr) -> Iterator[Leaf]:
        """Yield the existing leaf tables and huge pages in [start, end), in order; missing tables are skipped.

        The caller may change, split or remove a yielded one before it continues.
        """
        words = self._words
        while start < end:
            slot, level = descend(words, self._root, start, PAGE_SHIFT)
            if level == PAGE_SHIFT:
                stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
                yield Leaf(start, stop, slot, slot + ((stop - start) >> PAGE_SHIFT))
            elif words[slot]:
                stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
                yield Leaf(start, stop, slot, slot + 1, huge=True)
            else:
                stop = self._next_present(slot, start, level, end)
            start = stop

    def first_leaf(self, start: Vaddr, end: Vaddr) -> Vaddr:
        """Return the first address of [start, end) that a leaf table or a huge page covers, or `end`."""
        for leaf in self.leaves(start, end):
            return leaf.start
        return end

    def tables(self, start: Vaddr, end: Vaddr, shift: int) -> Iterator[Table]:
        """Yield the existing tables in [start, end) whose entries are each for `1 << shift` bytes, in order.

        `shift` is an upper level's. The caller may change a yielded table before it continues, as in `leaves`.
        """
        span = 1 << shift
        while start < end:
            slot, level = descend(self._words, self._root, start, shift)
            if level == shift:
                stop = min(end, (start & -span * PTRS_PER_TABLE) + span * PTRS_PER_TABLE)
                yield Table(start, stop, slot, slot + ((stop - (start & -span) + span - 1) >> shift))
            else:
                stop = self._next_present(slot, start, level, end)
            start = stop

    def _next_present(self, slot: int, vaddr: Vaddr, shift: int, end: Vaddr) -> Vaddr:
        """Return the start of the first entry that is not empty behind an empty one in its table, or the table's
        end. An empty entry that reaches to `end` or beyond is not looked behind."""
        following = ((vaddr >> shift) + 1) << shift
        if following >= end:
            return following
        index = slot % PTRS_PER_TABLE
        ahead = self._words_np[slot : slot - index + PTRS_PER_TABLE].nonzero()[0]
        step = int(ahead[0]) if len(ahead) else PTRS_PER_TABLE - index
        return ((vaddr >> shift) + step) << shift

    def runs(self, start: Vaddr, end: Vaddr) -> Iterator[Run]:
        """Return the same as `leaves`, in order, but many whole leaf tables at once.

        The caller may change yielded entries before it continues, but no table of the range may be freed. So a walk
        that lets other clients be served in between uses `leaves`.
        """
        first, last = start + (-start & PMD_SIZE - 1), end & -PMD_SIZE
        if last - first <= _FEW_TABLES * PMD_SIZE:
            return self.leaves(start, end)
        return self._long_runs(start, end, first, last)

    def _long_runs(self, start: Vaddr, end: Vaddr, first: Vaddr, last: Vaddr) -> Iterator[Run]:
        """Yield the runs of [start, end); [first, last) is the part of whole leaf tables."""
        yield from self.leaves(start, first)
        for upper in self.tables(first, last, PMD_SHIFT):
            yield from self._whole_leaves(upper)
        yield from self.leaves(last, end)

    def _whole_leaves(self, upper: Table) -> Iterator[Run]:
        """Yield the whole leaf tables and huge pages that the entries of a table name."""
        entries = self._words_np[upper.low : upper.high]
        if not np.count_nonzero(entries):
            return
        tables = np.flatnonzero((entries & u64(KIND)) == PTE_PRESENT)
        done = 0
        for index in np.flatnonzero(entries & u64(PTE_PSE)).tolist():
            before = int(np.searchsorted(tables, index))
            yield from self._in_batches(upper, tables[done:before])
            done = before
            haddr = upper.start + (index << PMD_SHIFT)
            yield from self.leaves(haddr, haddr + PMD_SIZE)  # It may be split by now.
        yield from self._in_batches(upper, tables[done:])

    def _in_batches(self, upper: Table, indexes: npt.NDArray[np.int64]) -> Iterator[Leaves]:
        for at in range(0, len(indexes), _TABLES_AT_ONCE):
            chosen = indexes[at : at + _TABLES_AT_ONCE]
            starts = (chosen.astype(np.uint64) << u64(PMD_SHIFT)) + np.uint64(upper.start)
            yield Leaves.of(starts, pte_pfn(self._words_np[upper.low + chosen]).astype(np.int64))

    def page_range(self, start: Vaddr, end: Vaddr, ptes: Callable[[Run], None], huge: Callable[[Leaf], bool]) -> None:
        """Call `ptes` for each run of entries of 4 KiB in [start, end), and `huge` for each entry of 2 MiB, in order.

        `huge` returns whether it is done with the entry (Linux: ACTION_CONTINUE). It returns False if it has split the
        huge page, or has found it split: the entries of 4 KiB are then given to `ptes` (Linux: ACTION_AGAIN).
        A walk that treats both sizes alike needs no callbacks: `for run in walk.runs(start, end)`.
        No table of the range may be freed meanwhile.
        Source: Linux v6.8 mm/pagewalk.c:walk_page_range(), walk_pmd_range().
        """
        for run in self.runs(start, end):
            if not isinstance(run, Leaf) or not run.huge:
                ptes(run)
            elif not huge(run):
                for leaf in self.leaves(run.start, run.end):
                    ptes(leaf)

    def entries(self, start: Vaddr, end: Vaddr) -> Words:
        """Return a copy of the 4 KiB entries of the page-aligned range [start, end), 0 for each missing entry.

        A huge page gives the entries that it would be split into.
        """
        entries = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
        for leaf in self.leaves(start, end):
            entries[(leaf.start - start) >> PAGE_SHIFT : (leaf.end - start) >> PAGE_SHIFT] = self.page_entries(leaf)
        return entries

    def page_entries(self, run: Run) -> Words:
        """Return the 4 KiB entries of a run, only to be read; a huge page gives the same entries as in `entries`."""
        if isinstance(run, Leaf) and run.huge:
            first = run.start >> PAGE_SHIFT & PTRS_PER_TABLE - 1
            return small_entries(self._words[run.low], first, (run.end - run.start) >> PAGE_SHIFT)
        return self.read(run)

    def read(self, run: Run) -> Words:
        """Return the entries of a run, one for a huge page: only to be read, and before any of them changes."""
        if isinstance(run, Leaf):
            return self._words_np[run.low : run.high]
        return self._frames_np[run.tables].ravel()

    def mapped(self, run: Run) -> tuple[npt.NDArray[np.int64], Pfns]:
        """Return which pages of a run map a frame that is counted, by their position in the run, and these frames.

        Source: Linux v6.8 mm/memory.c:vm_normal_page(): the zero page is not counted.
        """
        entries = self.page_entries(run)
        places = np.flatnonzero(counted_mask(entries))
        return places, pte_pfn(entries[places]).astype(np.int64)

    def find_filled(self, run: Run) -> Run | None:
        """Return the tables of a run that have an entry other than 0, or None if no table has one."""
        if isinstance(run, Leaf):
            return run if self.read(run).any() else None
        filled = self._frames_np[run.tables].any(axis=1)
        if filled.all():
            return run
        return Leaves.of(run.starts[filled], run.tables[filled]) if filled.any() else None
