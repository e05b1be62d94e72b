"""The page table of one address space: four levels of real x86-64 entries in RAM.

Owns the table frames and the way to an entry. Knows no VMA; it neither sets nor reads leaf entries for anyone: it says
where they are, and `MmStruct` changes them. Answers to Linux v6.8 mm/memory.c (__pte_alloc, free_pgtables),
mm/pgtable-generic.c (pgtable_trans_huge_deposit) and arch/x86/mm/pgtable.c.

Invariants: every table below the root is pointed to by exactly one entry; a table that maps nothing may exist only
where a VMA lies in what it covers (`free_tables` is called for each hole that munmap makes); one table is deposited for
each entry of 2 MiB, so that cutting a huge page up needs no memory and cannot fail.

An entry is named by its word index in RAM: `Ram.words[index]` is the entry, `Ram.words_np[low:high]` a run of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.paging import (
    PF_USER,
    PF_WRITE,
    PGD_SHIFT,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_MASK,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    PTE_TABLE,
    PTE_USER,
    PTRS_PER_TABLE,
    PUD_SHIFT,
    make_pte,
    pte_pfn,
    small_entries,
    translate,
)
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.mm.frames import PG_TABLE, Frames
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, TASK_SIZE, Pfn, Vaddr

_UPPER_SHIFTS = (PGD_SHIFT, PUD_SHIFT, PMD_SHIFT)
_READ = PTE_PRESENT | PTE_USER | PTE_ACCESSED
_WRITTEN = _READ | PTE_RW | PTE_DIRTY
"""An entry with all of these needs no change and no fault for such an access."""
_MAX_CACHED = 64
PUD_SIZE = 1 << PUD_SHIFT
_KIND = PTE_PRESENT | PTE_PSE
"""Of an upper entry: PTE_PRESENT alone names a table; PTE_PSE, with or without it, is a huge page; else it is empty."""


class Leaf(NamedTuple):
    """A run of entries in one leaf table: entry `low + i` (a word index) maps the page at `start + i * PAGE_SIZE`.

    Where `huge` is set it is one entry of 2 MiB instead, at `low`, of which [start, end) may be a part.
    """

    start: Vaddr
    end: Vaddr
    low: int
    high: int
    huge: bool = False


class PageTable:
    """An empty page table; `root` is the frame that CR3 names."""

    def __init__(self, frames: Frames) -> None:
        """Allocate the root. Raises SysError(ENOMEM)."""
        self._frames = frames
        self._words = frames.ram.words
        self._words_np = frames.ram.words_np
        self._cached: dict[int, tuple[int, int, int]] = {}
        """The processor's paging-structure cache (Intel SDM volume 3, 4.10.3): for an address's number of 2 MiB, the
        word index of the entry that names its leaf table, that entry, and the word index of the leaf table. It holds
        good while the entry is what it was; dropped whenever a table is freed."""
        self.root: Pfn = self._alloc_table()
        self.table_pages = 1
        """Frames that the tables take, the root and the deposited ones included."""
        self.deposited: list[Pfn] = []
        """A table for each huge page, unused until that is cut up: empty exactly where there is no huge page."""

    def _alloc_table(self) -> Pfn:
        pfn = self._frames.alloc_page(PG_TABLE)
        self._frames.ram.set_written(pfn)
        return pfn

    @property
    def cr3(self) -> int:
        """The physical address of the root, in bytes."""
        return self.root << PAGE_SHIFT

    def translate(self, vaddr: Vaddr, access: int) -> int:
        """Translate one user access as `kerneld.hw.paging.translate` does, by way of the paging-structure cache."""
        cached = self._cached.get(vaddr >> PMD_SHIFT)
        words = self._words
        if cached is not None and words[cached[0]] == cached[1]:
            entry = words[cached[2] | vaddr >> PAGE_SHIFT & 511]
            if access == PF_WRITE:
                if entry & _WRITTEN == _WRITTEN:
                    return (entry & PTE_PFN_MASK) | (vaddr & ~PAGE_MASK)
            elif not access and entry & _READ == _READ:
                return (entry & PTE_PFN_MASK) | (vaddr & ~PAGE_MASK)
            if not entry:
                return ~(PF_USER | access)
        return translate(words, self.root, vaddr, access)

    def find_pte(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the entry for a page, or None where no leaf table is: a huge page has none."""
        words = self._words
        cached = self._cached.get(vaddr >> PMD_SHIFT)
        if cached is not None and words[cached[0]] == cached[1]:
            return cached[2] | vaddr >> PAGE_SHIFT & 511
        table = self.root << WORDS_SHIFT
        for shift in _UPPER_SHIFTS:
            slot = table | vaddr >> shift & 511
            entry = words[slot]
            if entry & _KIND != PTE_PRESENT:
                return None
            table = (entry & PTE_PFN_MASK) >> 3
        if len(self._cached) >= _MAX_CACHED:
            self._cached.clear()
        self._cached[vaddr >> PMD_SHIFT] = (slot, entry, table)
        return table | vaddr >> PAGE_SHIFT & 511

    def find_pmd(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the entry for the 2 MiB around an address, or None where no table holds one."""
        words = self._words
        table = self.root << WORDS_SHIFT
        for shift in _UPPER_SHIFTS[:2]:
            entry = words[table | vaddr >> shift & 511]
            if not entry & PTE_PRESENT:
                return None
            table = (entry & PTE_PFN_MASK) >> 3
        return table | vaddr >> PMD_SHIFT & 511

    def find_huge_pmd(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the entry of 2 MiB that maps an address, or None."""
        if not self.deposited:
            return None
        pmd = self.find_pmd(vaddr)
        return pmd if pmd is not None and self._words[pmd] & PTE_PSE else None

    def find_leaf(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the entry, of 4 KiB or of 2 MiB, that says what is at an address, or None."""
        pte = self.find_pte(vaddr)
        return self.find_huge_pmd(vaddr) if pte is None else pte

    def ensure_pte(self, vaddr: Vaddr) -> int:
        """Return the word index of the entry for a page that is in no huge page, making the tables on the way.

        Raises SysError(ENOMEM); tables made before that stay, as in Linux v6.8 mm/memory.c:__pte_alloc().
        """
        return self._ensure_table(vaddr, _UPPER_SHIFTS) | vaddr >> PAGE_SHIFT & 511

    def ensure_pmd(self, vaddr: Vaddr) -> int:
        """Return the word index of the entry for the 2 MiB around an address, making the tables on the way.

        Raises as `ensure_pte` does. Source: Linux v6.8 include/linux/mm.h:pmd_alloc().
        """
        return self._ensure_table(vaddr, _UPPER_SHIFTS[:2]) | vaddr >> PMD_SHIFT & 511

    def _ensure_table(self, vaddr: Vaddr, shifts: tuple[int, ...]) -> int:
        words = self._words
        table = self.root << WORDS_SHIFT
        for shift in shifts:
            slot = table | vaddr >> shift & 511
            entry = words[slot]
            if entry & _KIND != PTE_PRESENT:
                if entry:
                    raise KernelBug(f"a table is wanted for {vaddr:#x}, where a huge page is mapped by {entry:#x}")
                entry = make_pte(self._alloc_table(), PTE_TABLE)
                words[slot] = entry
                self.table_pages += 1
            table = (entry & PTE_PFN_MASK) >> 3
        return table

    def move_tables(self, start: Vaddr, end: Vaddr, to: Vaddr) -> bool:
        """Move the entries that name the leaf tables of [start, end), or are huge pages, to those of `to`.

        All three lie on 2 MiB boundaries. Returns whether it did: not where `to` has a table already. Raises
        SysError(ENOMEM) before any is moved. Source: Linux v6.8 mm/mremap.c:move_normal_pmd().
        """
        words_np = self._words_np
        pieces = []
        while start < end:
            step = min(end - start, PUD_SIZE - start % PUD_SIZE, PUD_SIZE - to % PUD_SIZE)
            count = step >> PMD_SHIFT
            low = self.find_pmd(start)
            if low is not None and words_np[low : low + count].any():
                to_low = self.ensure_pmd(to)
                if words_np[to_low : to_low + count].any():
                    return False
                pieces.append((low, to_low, count))
            start, to = start + step, to + step
        for low, to_low, count in pieces:
            words_np[to_low : to_low + count] = words_np[low : low + count]
            words_np[low : low + count] = 0
        return True

    def deposit_new(self) -> None:
        """Take a frame for the table of a huge page about to be mapped. Raises SysError(ENOMEM)."""
        self.deposited.append(self._frames.alloc_page(PG_TABLE, zero=False))
        self.table_pages += 1

    def withdraw(self) -> Pfn:
        """Return a deposited table, for the pages of a huge page that is cut up; the contents are whatever they were.

        Source: Linux v6.8 mm/pgtable-generic.c:pgtable_trans_huge_withdraw().
        """
        pfn = self.deposited.pop()
        self._frames.ram.set_written(pfn)
        return pfn

    def free_deposit(self) -> None:
        """Free the table of a huge page that has gone. Source: Linux v6.8 mm/huge_memory.c:zap_deposited_table()."""
        self._frames.put_page(self.deposited.pop())
        self.table_pages -= 1

    def leaves(self, start: Vaddr, end: Vaddr) -> Iterator[Leaf]:
        """Yield what exists of the leaf tables and huge pages in [start, end), in order; absent parts are stepped over.

        What it has yielded may be changed before it goes on, cut up or removed as well.
        """
        words = self._words
        while start < end:
            table = self.root << WORDS_SHIFT
            for shift in _UPPER_SHIFTS:
                slot = table | start >> shift & 511
                entry = words[slot]
                if entry & _KIND != PTE_PRESENT:
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

    def _next_present(self, table: int, vaddr: Vaddr, shift: int) -> Vaddr:
        """Return the first address after `vaddr` that this table's next present entry covers, or the table's end."""
        index = vaddr >> shift & 511
        ahead = np.flatnonzero(self._words_np[table + index : table + PTRS_PER_TABLE])
        step = int(ahead[0]) if len(ahead) else PTRS_PER_TABLE - index
        return ((vaddr >> shift) + step) << shift

    def ensure_leaves(self, start: Vaddr, end: Vaddr) -> Iterator[Leaf]:
        """Yield the leaf tables for [start, end), where no huge page is, in order, each made when its turn comes.

        Raises SysError(ENOMEM).
        """
        while start < end:
            stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
            low = self.ensure_pte(start)
            yield Leaf(start, stop, low, low + ((stop - start) >> PAGE_SHIFT))
            start = stop

    def entries(self, start: Vaddr, end: Vaddr) -> npt.NDArray[np.uint64]:
        """Return a copy of the 4 KiB entries of the page-aligned range [start, end), 0 where there is none.

        A huge page counts as the entries that it would be cut up into.
        """
        entries = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
        for leaf in self.leaves(start, end):
            entries[(leaf.start - start) >> PAGE_SHIFT : (leaf.end - start) >> PAGE_SHIFT] = self.leaf_entries(leaf)
        return entries

    def leaf_entries(self, leaf: Leaf) -> npt.NDArray[np.uint64]:
        """Return the 4 KiB entries of a leaf, to be read: those of a huge page as `entries` has them."""
        if leaf.huge:
            first = leaf.start >> PAGE_SHIFT & PTRS_PER_TABLE - 1
            return small_entries(self._words[leaf.low], first, (leaf.end - leaf.start) >> PAGE_SHIFT)
        return self._words_np[leaf.low : leaf.high]

    def free_tables(self, start: Vaddr, end: Vaddr, floor: Vaddr, ceiling: Vaddr) -> None:
        """Free the tables for [start, end) that cover nothing outside [floor, ceiling), a range without any VMA.

        Source: Linux v6.8 mm/memory.c:free_pgd_range(), where floor and ceiling are the neighbours' bounds.
        """
        if max(floor, start & -PMD_SIZE) + PMD_SIZE > ceiling:
            return
        self._cached.clear()
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
        """Return the frame of every table, the root first, the deposited ones last; found by a walk, for tests."""
        found = level = [self.root]
        for _ in _UPPER_SHIFTS:
            rows = self._frames.ram.frames_np[level].ravel()
            level = pte_pfn(rows[(rows & np.uint64(_KIND)) == PTE_PRESENT]).astype(np.int64).tolist()
            found = found + level
        return found + self.deposited

    def free_empty_table(self, vaddr: Vaddr) -> None:
        """Free the leaf table for an address if it holds no entry: it was made for a fault that then failed."""
        pte = self.find_pte(vaddr)
        if pte is None:
            return
        low = pte & -PTRS_PER_TABLE
        if self._words_np[low : low + PTRS_PER_TABLE].any():
            return
        pmd = self.find_pmd(vaddr)
        assert pmd is not None
        self._words[pmd] = 0
        self._cached.clear()
        self._frames.put_page(low >> WORDS_SHIFT)
        self.table_pages -= 1

    def destroy(self) -> None:
        """Free every table, the root last. No entry may map a frame any more."""
        end = TASK_SIZE + PAGE_SIZE
        self.free_tables(0, end, 0, end)
        self._frames.put_page(self.root)
        self.table_pages = 0
