"""The page table of one address space: four levels of real x86-64 entries in RAM.

Owns the table frames and the way to an entry. Knows no VMA; it neither sets nor reads leaf entries for anyone: it says
where they are, and `MmStruct` changes them. Answers to Linux v6.8 mm/memory.c (__pte_alloc, free_pgtables) and
arch/x86/mm/pgtable.c.

Invariants: every table below the root is pointed to by exactly one entry; a table that maps nothing may exist only
where a VMA lies in what it covers (`free_tables` is called for each hole that munmap makes).

An entry is named by its word index in RAM: `Ram.words[index]` is the entry, `Ram.words_np[low:high]` a run of them.
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
    PTE_TABLE,
    PTRS_PER_TABLE,
    PUD_SHIFT,
    make_pte,
    present_mask,
    pte_pfn,
)
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.mm.frames import PG_TABLE, Frames
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, TASK_SIZE, Pfn, Vaddr

_UPPER_SHIFTS = (PGD_SHIFT, PUD_SHIFT, PMD_SHIFT)


class Leaf(NamedTuple):
    """A run of entries in one leaf table: entry `low + i` (a word index) maps the page at `start + i * PAGE_SIZE`."""

    start: Vaddr
    end: Vaddr
    low: int
    high: int


class PageTable:
    """An empty page table; `root` is the frame that CR3 names."""

    def __init__(self, frames: Frames) -> None:
        """Allocate the root. Raises SysError(ENOMEM)."""
        self._frames = frames
        self._words = frames.ram.words
        self._words_np = frames.ram.words_np
        self.root: Pfn = self._alloc_table()
        self.table_pages = 1
        """Frames that the tables take, the root included."""

    def _alloc_table(self) -> Pfn:
        pfn = self._frames.alloc_page(PG_TABLE)
        self._frames.ram.set_written(pfn)
        return pfn

    @property
    def cr3(self) -> int:
        """The physical address of the root, in bytes."""
        return self.root << PAGE_SHIFT

    def find_pte(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the entry for a page, or None where no leaf table is."""
        words = self._words
        table = self.root << WORDS_SHIFT
        for shift in _UPPER_SHIFTS:
            entry = words[table | vaddr >> shift & 511]
            if not entry & PTE_PRESENT:
                return None
            table = (entry & PTE_PFN_MASK) >> 3
        return table | vaddr >> PAGE_SHIFT & 511

    def ensure_pte(self, vaddr: Vaddr) -> int:
        """Return the word index of the entry for a page, making the tables on the way.

        Raises SysError(ENOMEM); tables made before that stay, as in Linux v6.8 mm/memory.c:__pte_alloc().
        """
        words = self._words
        table = self.root << WORDS_SHIFT
        for shift in _UPPER_SHIFTS:
            slot = table | vaddr >> shift & 511
            entry = words[slot]
            if not entry & PTE_PRESENT:
                entry = make_pte(self._alloc_table(), PTE_TABLE)
                words[slot] = entry
                self.table_pages += 1
            table = (entry & PTE_PFN_MASK) >> 3
        return table | vaddr >> PAGE_SHIFT & 511

    def leaves(self, start: Vaddr, end: Vaddr) -> Iterator[Leaf]:
        """Yield what exists of the leaf tables for [start, end), in order; absent parts are stepped over."""
        words = self._words
        while start < end:
            table = self.root << WORDS_SHIFT
            for shift in _UPPER_SHIFTS:
                entry = words[table | start >> shift & 511]
                if not entry & PTE_PRESENT:
                    start = self._next_present(table, start, shift)
                    break
                table = (entry & PTE_PFN_MASK) >> 3
            else:
                stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
                low = table | start >> PAGE_SHIFT & 511
                yield Leaf(start, stop, low, low + ((stop - start) >> PAGE_SHIFT))
                start = stop

    def _next_present(self, table: int, vaddr: Vaddr, shift: int) -> Vaddr:
        """Return the first address after `vaddr` that this table's next present entry covers, or the table's end."""
        index = vaddr >> shift & 511
        ahead = np.flatnonzero(self._words_np[table + index : table + PTRS_PER_TABLE])
        step = int(ahead[0]) if len(ahead) else PTRS_PER_TABLE - index
        return ((vaddr >> shift) + step) << shift

    def ensure_leaves(self, start: Vaddr, end: Vaddr) -> Iterator[Leaf]:
        """Yield the leaf tables for [start, end), in order, each made when its turn comes. Raises SysError(ENOMEM)."""
        while start < end:
            stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
            low = self.ensure_pte(start)
            yield Leaf(start, stop, low, low + ((stop - start) >> PAGE_SHIFT))
            start = stop

    def entries(self, start: Vaddr, end: Vaddr) -> npt.NDArray[np.uint64]:
        """Return a copy of the 4 KiB entries of the page-aligned range [start, end), 0 where there is none."""
        entries = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
        for leaf in self.leaves(start, end):
            first = (leaf.start - start) >> PAGE_SHIFT
            entries[first : first + leaf.high - leaf.low] = self._words_np[leaf.low : leaf.high]
        return entries

    def free_tables(self, start: Vaddr, end: Vaddr, floor: Vaddr, ceiling: Vaddr) -> None:
        """Free the tables for [start, end) that cover nothing outside [floor, ceiling), a range without any VMA.

        Source: Linux v6.8 mm/memory.c:free_pgd_range(), where floor and ceiling are the neighbours' bounds.
        """
        if max(floor, start & -PMD_SIZE) + PMD_SIZE > ceiling:
            return
        self._free_below(self.root << WORDS_SHIFT, PGD_SHIFT, 0, (start, end, floor, ceiling))

    def _free_below(self, table: int, shift: int, base: Vaddr, bounds: tuple[Vaddr, Vaddr, Vaddr, Vaddr]) -> None:
        start, end, floor, ceiling = bounds
        span = 1 << shift
        first = max(0, (start - base) >> shift)
        last = min(PTRS_PER_TABLE, (end - base + span - 1) >> shift)
        run = self._words_np[table + first : table + last]
        for index in (np.flatnonzero(run) + first).tolist():
            low = base + (index << shift)
            below = (self._words[table | index] & PTE_PFN_MASK) >> 3
            if shift > PMD_SHIFT:
                self._free_below(below, shift - 9, low, bounds)
            if floor <= low and low + span <= ceiling:
                self._words[table | index] = 0
                self._frames.put_page(below >> WORDS_SHIFT)
                self.table_pages -= 1

    def tables(self) -> list[Pfn]:
        """Return the frame of every table, the root first; found by a walk, for the invariants."""
        found = level = [self.root]
        for _ in _UPPER_SHIFTS:
            rows = self._frames.ram.frames_np[level].ravel()
            level = pte_pfn(rows[present_mask(rows)]).astype(np.int64).tolist()
            found = found + level
        return found

    def destroy(self) -> None:
        """Free every table, the root last. No entry may map a frame any more."""
        end = TASK_SIZE + PAGE_SIZE
        self.free_tables(0, end, 0, end)
        self._frames.put_page(self.root)
        self.table_pages = 0
