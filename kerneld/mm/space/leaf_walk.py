"""The walk over the leaf tables of a page table: one at a time, or many at once where a range is large.

`LeafWalk` is the half of `PageTable` that reads, in a file of its own for its length. Owns what a run of entries is and
how it is read. Changes nothing. Answers to Linux v6.8 mm/memory.c (zap_pmd_range, copy_pmd_range), which go table by
table: here a table costs some twenty calls of numpy, however many tables one call is for.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    pte_pfn,
    small_entries,
)
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.mm.frames.frames import Frames, Pfns
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, Pfn, Vaddr

Words = npt.NDArray[np.uint64]

UPPER_SHIFTS = (PGD_SHIFT, PUD_SHIFT, PMD_SHIFT)
PUD_SIZE = 1 << PUD_SHIFT
PGD_SIZE = 1 << PGD_SHIFT
KIND = PTE_PRESENT | PTE_PSE
"""Of an upper entry: PTE_PRESENT alone names a table; PTE_PSE, with or without it, is a huge page; else it is empty."""
_TABLES_AT_ONCE = 16
"""So many that numpy's fixed costs no longer show, and so few that their entries stay in a processor's cache."""
_FEW_TABLES = 2
"""Up to so many whole tables are gone to one by one."""
FEW_ENTRIES = 8
"""Up to so many entries a loop is faster than numpy's fixed costs."""
_PAGES = np.arange(PTRS_PER_TABLE, dtype=np.uint64) * np.uint64(PAGE_SIZE)


class Leaf(NamedTuple):
    """A run of entries in one leaf table: entry `low + i` (a word index) maps the page at `start + i * PAGE_SIZE`.

    Where `huge` is set it is one entry of 2 MiB instead, at `low`, of which [start, end) may be a part.
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
    """Between the two there may be tables that are not here."""
    starts: Words
    tables: Pfns
    huge: bool = False

    @classmethod
    def of(cls, starts: Words, tables: Pfns) -> Leaves:
        """Return the run of these tables, one at least: from its first one to its last one."""
        return cls(int(starts[0]), int(starts[-1]) + PMD_SIZE, starts, tables)

    def vaddrs(self) -> Words:
        """Return the address of the page of each entry."""
        return (self.starts[:, np.newaxis] + _PAGES).ravel()


Run = Leaf | Leaves


class LeafWalk:
    """The leaf tables under `root`."""

    root: Pfn

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._words = frames.ram.words
        self._words_np = frames.ram.words_np
        self._frames_np = frames.ram.frames_np

    def leaves(self, start: Vaddr, end: Vaddr) -> Iterator[Leaf]:
        """Yield what exists of the leaf tables and huge pages in [start, end), in order; absent parts are stepped over.

        What it has yielded may be changed before it goes on, cut up or removed as well.
        """
        words = self._words
        while start < end:
            table = self.root << WORDS_SHIFT
            for shift in UPPER_SHIFTS:
                slot = table | start >> shift & 511
                entry = words[slot]
                if entry & KIND != PTE_PRESENT:
                    if entry:
                        stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
                        yield Leaf(start, stop, slot, slot + 1, huge=True)
                        start = stop
                    else:
                        start = self._next_present(table, start, shift)
                    break
                table = (entry & PTE_PFN_MASK) >> 3
            else:
                stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
                low = table | start >> PAGE_SHIFT & 511
                yield Leaf(start, stop, low, low + ((stop - start) >> PAGE_SHIFT))
                start = stop

    def first_leaf(self, start: Vaddr, end: Vaddr) -> Vaddr:
        """Return the first address of [start, end) that a leaf table or a huge page covers, or `end`."""
        for leaf in self.leaves(start, end):
            return leaf.start
        return end

    def _next_present(self, table: int, vaddr: Vaddr, shift: int) -> Vaddr:
        """Return the first address after `vaddr` that this table's next present entry covers, or the table's end."""
        index = vaddr >> shift & 511
        ahead = np.flatnonzero(self._words_np[table + index : table + PTRS_PER_TABLE])
        step = int(ahead[0]) if len(ahead) else PTRS_PER_TABLE - index
        return ((vaddr >> shift) + step) << shift

    def runs(self, start: Vaddr, end: Vaddr) -> Iterator[Run]:
        """Yield what `leaves` does, whole leaf tables many at once; in order but for huge pages, which come earlier.

        What it has yielded may be changed before it goes on, as there, but no table of the range may be freed: a walk
        that lets others run in between takes `leaves`.
        """
        first, last = start + (-start & PMD_SIZE - 1), end & -PMD_SIZE
        if last - first <= _FEW_TABLES * PMD_SIZE:
            yield from self.leaves(start, end)
            return
        yield from self.leaves(start, first)
        for vaddr, low, high in self._pmd_runs(first, last):
            upper = self._words_np[low:high]
            tables = np.flatnonzero((upper & np.uint64(KIND)) == PTE_PRESENT)
            for index in np.flatnonzero(upper & np.uint64(PTE_PSE)).tolist():
                haddr = vaddr + (index << PMD_SHIFT)
                yield from self.leaves(haddr, haddr + PMD_SIZE)  # Cut up by now, maybe.
            for at in range(0, len(tables), _TABLES_AT_ONCE):
                chosen = tables[at : at + _TABLES_AT_ONCE]
                starts = (chosen.astype(np.uint64) << np.uint64(PMD_SHIFT)) + np.uint64(vaddr)
                yield Leaves.of(starts, pte_pfn(upper[chosen]).astype(np.int64))
        yield from self.leaves(last, end)

    def _pmd_runs(self, start: Vaddr, end: Vaddr) -> Iterator[tuple[Vaddr, int, int]]:
        """Yield what exists of the tables above the leaf tables: address of the first entry, and its word indexes."""
        words = self._words
        while start < end:
            table = self.root << WORDS_SHIFT
            for shift in UPPER_SHIFTS[:2]:
                entry = words[table | start >> shift & 511]
                if not entry & PTE_PRESENT:
                    start = self._next_present(table, start, shift)
                    break
                table = (entry & PTE_PFN_MASK) >> 3
            else:
                stop = min(end, (start & -PUD_SIZE) + PUD_SIZE)
                low = table | start >> PMD_SHIFT & 511
                yield start, low, low + ((stop - start) >> PMD_SHIFT)
                start = stop

    def entries(self, start: Vaddr, end: Vaddr) -> Words:
        """Return a copy of the 4 KiB entries of the page-aligned range [start, end), 0 where there is none.

        A huge page counts as the entries that it would be cut up into.
        """
        entries = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
        for leaf in self.leaves(start, end):
            entries[(leaf.start - start) >> PAGE_SHIFT : (leaf.end - start) >> PAGE_SHIFT] = self.page_entries(leaf)
        return entries

    def page_entries(self, run: Run) -> Words:
        """Return the 4 KiB entries of a run, to be read: those of a huge page as `entries` has them."""
        if isinstance(run, Leaf) and run.huge:
            first = run.start >> PAGE_SHIFT & PTRS_PER_TABLE - 1
            return small_entries(self._words[run.low], first, (run.end - run.start) >> PAGE_SHIFT)
        return self.read(run)

    def read(self, run: Run) -> Words:
        """Return the entries of a run as they stand, a huge page's being one: for reading, and soon."""
        if isinstance(run, Leaf):
            return self._words_np[run.low : run.high]
        return self._frames_np[run.tables].ravel()

    def find_filled(self, run: Run) -> Run | None:
        """Return the tables of a run that have an entry which is not 0, or None where none has."""
        if isinstance(run, Leaf):
            return run if self.read(run).any() else None
        filled = self._frames_np[run.tables].any(axis=1)
        if filled.all():
            return run
        return Leaves.of(run.starts[filled], run.tables[filled]) if filled.any() else None
