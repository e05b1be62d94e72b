"""The page table of one address space: four levels of real x86-64 entries in RAM.

Owns the table frames: finds, makes, moves and frees tables. Knows no VMA. It does not set leaf entries: it returns
where an entry is, and `Pages` changes it. `kerneld.mm.space.pagewalk` goes down the levels and walks over ranges.
Answers to Linux v6.8 mm/memory.c (__pte_alloc, free_pgtables), mm/pgtable-generic.c (pgtable_trans_huge_deposit) and
arch/x86/mm/pgtable.c.

Invariants: every table below the root is pointed to by exactly one entry; a table that maps nothing may exist only
where a VMA lies in what it covers (`free_tables` is called for each hole that munmap makes); one table is deposited for
each entry of 2 MiB, so that splitting its mapping needs no memory and cannot fail.

An entry is named by its word index in RAM: `Ram.words[index]` is the entry, `Ram.words_np[low:high]` a run of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerneld.errors import KernelBug, SysError
from kerneld.hw.paging import (
    PF_PROT,
    PF_USER,
    PF_WRITE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_MASK,
    PTE_PKEY_MASK,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    PTE_SOFT_DIRTY,
    PTE_TABLE,
    PTE_USER,
    PTRS_PER_TABLE,
    PUD_SHIFT,
    make_pte,
    pte_pfn,
    translate,
)
from kerneld.hw.processor import PKRU_AD, PKRU_WD
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.hw.scalars import u64
from kerneld.mm.frames.frames import PG_PGD, PG_TABLE, Frames, Pfns
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.pagewalk import KIND, PUD_SIZE, UPPER_SHIFTS, Leaf, Leaves, PageWalk, Run, Table, descend
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, TASK_SIZE, Pfn, Vaddr

_READ = PTE_PRESENT | PTE_USER | PTE_ACCESSED
_WRITTEN = _READ | PTE_RW | PTE_DIRTY
"""An entry with all these bits needs no change and no fault for a write."""
_READ_KEY, _WRITTEN_KEY = _READ | PTE_PKEY_MASK, _WRITTEN | PTE_PKEY_MASK
_SEEN = PTE_PRESENT | PTE_USER
_SEEN_KEY = _SEEN | PTE_RW | PTE_PKEY_MASK
"""Of these bits a page with key 0 that may only be read has `_SEEN`."""
_KEY_0 = PKRU_AD | PKRU_WD
"""Key 0's bits of PKRU."""
_MAX_CACHED = 64
_FEW_TABLES = 4
"""Number of tables up to which each is freed by itself."""


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
        self.root: Pfn = self._alloc_table(PG_PGD)
        self.walk = PageWalk(frames.ram, self.root)
        self.table_pages = 1
        """Number of table frames, the root and the deposited tables included."""
        self.deposited: list[Pfn] = []
        """One table for each mapped huge page, unused until the huge page's entry is split."""

    def _alloc_table(self, flags: int = PG_TABLE) -> Pfn:
        pfn = self._frames.alloc_page(flags)
        self._frames.ram.set_written(pfn)
        return pfn

    @property
    def cr3(self) -> int:
        """The physical address of the root, in bytes."""
        return self.root << PAGE_SHIFT

    def translate(self, vaddr: Vaddr, access: int, pkru: int) -> int:
        """Translate one user access as `kerneld.hw.paging.translate` does, by way of the paging-structure cache.

        The quick ways are for pages with key 0, which `pkru` nearly always allows. Every table is entered as PTE_TABLE,
        which takes no right away.
        """
        cached = self._cached.get(vaddr >> PMD_SHIFT)
        words = self._words
        if cached is not None and words[cached[0]] == cached[1]:
            entry = words[cached[2] | vaddr >> PAGE_SHIFT & 511]
            if access == PF_WRITE:
                if entry & _WRITTEN_KEY == _WRITTEN and not pkru & _KEY_0:
                    return (entry & PTE_PFN_MASK) | (vaddr & ~PAGE_MASK)
                if entry & _SEEN_KEY == _SEEN and not pkru & _KEY_0:
                    return ~(PF_PROT | PF_USER | PF_WRITE)
            elif not access and entry & _READ_KEY == _READ and not pkru & _KEY_0:
                return (entry & PTE_PFN_MASK) | (vaddr & ~PAGE_MASK)
            if not entry & PTE_PRESENT:
                return ~(PF_USER | access)
        elif not self.deposited and self.find_pte(vaddr) is not None:
            return self.translate(vaddr, access, pkru)  # It is in the cache now.
        return translate(words, self.root, vaddr, access, pkru)

    def find_pte(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the entry for a page, or None if it has no leaf table (a huge page has none)."""
        words = self._words
        cached = self._cached.get(vaddr >> PMD_SHIFT)
        if cached is not None and words[cached[0]] == cached[1]:
            return cached[2] | vaddr >> PAGE_SHIFT & 511
        slot, level = descend(words, self.root, vaddr, PMD_SHIFT)
        entry = words[slot]
        if level != PMD_SHIFT or entry & KIND != PTE_PRESENT:
            return None
        table = (entry & PTE_PFN_MASK) >> 3
        if len(self._cached) >= _MAX_CACHED:
            self._cached.clear()
        self._cached[vaddr >> PMD_SHIFT] = (slot, entry, table)
        return table | vaddr >> PAGE_SHIFT & 511

    def find_pmd(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the entry for the 2 MiB around an address, or None if no table holds one."""
        slot, level = descend(self._words, self.root, vaddr, PMD_SHIFT)
        return slot if level == PMD_SHIFT else None

    def find_huge_pmd(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the entry of 2 MiB that maps an address, or None."""
        if not self.deposited:
            return None
        pmd = self.find_pmd(vaddr)
        return pmd if pmd is not None and self._words[pmd] & PTE_PSE else None

    def find_leaf(self, vaddr: Vaddr) -> int | None:
        """Return the word index of the last entry on the way to an address, of 4 KiB or of 2 MiB, or None."""
        pte = self.find_pte(vaddr)
        return self.find_huge_pmd(vaddr) if pte is None else pte

    def ensure_pte(self, vaddr: Vaddr) -> int:
        """Return the word index of the entry for a page that is in no huge page, making the tables on the way.

        Raises SysError(ENOMEM); tables made before that stay, as in Linux v6.8 mm/memory.c:__pte_alloc().
        """
        return self._ensure(vaddr, PAGE_SHIFT)

    def ensure_pmd(self, vaddr: Vaddr) -> int:
        """Return the word index of the entry for the 2 MiB around an address, making the tables on the way.

        Raises as `ensure_pte` does. Source: Linux v6.8 include/linux/mm.h:pmd_alloc().
        """
        return self._ensure(vaddr, PMD_SHIFT)

    def _ensure(self, vaddr: Vaddr, shift: int) -> int:
        """Return the word index of the entry for `1 << shift` bytes around an address; make missing tables."""
        words = self._words
        while True:
            slot, level = descend(words, self.root, vaddr, shift)
            if level == shift:
                return slot
            if words[slot]:
                raise KernelBug(f"a table is wanted for {vaddr:#x}, where a huge page is mapped by {words[slot]:#x}")
            words[slot] = make_pte(self._alloc_table(), PTE_TABLE)
            self.table_pages += 1

    def ensure_pud(self, vaddr: Vaddr) -> int:
        """Return the word index of the entry for the GiB around an address, making the table that holds it.

        Raises as `ensure_pte` does. Source: Linux v6.8 include/linux/mm.h:pud_alloc().
        """
        return self._ensure(vaddr, PUD_SHIFT)

    def ensure_puds(self, start: Vaddr, end: Vaddr, to: Vaddr) -> None:
        """Make the tables for the entries of the GiB around `to` and of those that follow, wherever [start, end) has
        tables.

        Raises as `ensure_pte` does. Source: Linux v6.8 mm/mremap.c:move_page_tables(), alloc_new_pud().
        """
        for pud, _, _, target in self._pud_pieces(start, end, to):
            if self._words[pud]:
                self.ensure_pud(target)

    def copy_upper(self, source: PageTable, start: Vaddr, end: Vaddr) -> None:
        """Make the tables above the leaf tables that another page table has for [start, end).

        Raises as `ensure_pte` does. Source: Linux v6.8 mm/memory.c:copy_p4d_range(), copy_pud_range().
        """
        for table in source.walk.tables(start, end, PUD_SHIFT):
            self.ensure_pud(table.start)
            for number in np.flatnonzero(self._words_np[table.low : table.high]).tolist():
                self.ensure_pmd((table.start & -PUD_SIZE) + (number << PUD_SHIFT))

    def _pud_pieces(self, start: Vaddr, end: Vaddr, to: Vaddr) -> Iterator[tuple[int, Vaddr, int, Vaddr]]:
        """Yield the pieces of a move, each within one GiB at either place: the entry for the GiB, address, size, new
        address. A range without a table of GiB entries is skipped.
        """
        for table in self.walk.tables(start, end, PUD_SHIFT):
            at = table.start
            while at < table.end:
                target = at - start + to
                step = min(table.end - at, PUD_SIZE - at % PUD_SIZE, PUD_SIZE - target % PUD_SIZE)
                yield table.low + (at >> PUD_SHIFT) - (table.start >> PUD_SHIFT), at, step, target
                at += step

    def move_tables(self, start: Vaddr, end: Vaddr, to: Vaddr) -> bool:
        """Move the entries for the leaf tables and huge pages of [start, end) to the entries of `to`.

        All three addresses are 2 MiB-aligned. A whole GiB that moves by whole GiBs needs only its one upper entry.
        Returns whether the entries were moved: not if `to` has a table already. Raises SysError(ENOMEM) before any is
        moved.
        Source: Linux v6.8 mm/mremap.c:move_normal_pud(), move_normal_pmd().
        """
        words_np = self._words_np
        pieces = []
        for pud, at, step, target in self._pud_pieces(start, end, to):
            if not self._words[pud]:
                continue
            to_pud = self.ensure_pud(target)
            if step == PUD_SIZE and not self._words[to_pud]:
                pieces.append((pud, to_pud, 1))
                continue
            count = step >> PMD_SHIFT
            low = self.find_pmd(at)
            assert low is not None
            if np.count_nonzero(words_np[low : low + count]):
                to_low = self.ensure_pmd(target)
                if np.count_nonzero(words_np[to_low : to_low + count]):
                    return False
                pieces.append((low, to_low, count))
        for low, to_low, count in pieces:
            moved = words_np[low : low + count]
            if self.deposited:
                # A huge page is marked (Linux: move_soft_dirty_pmd()); what a table below has, is not looked at.
                moved = np.where(moved & u64(PTE_PSE), moved | u64(PTE_SOFT_DIRTY), moved)
            words_np[to_low : to_low + count] = moved
            words_np[low : low + count] = 0
        self._cached.clear()
        return True

    def deposit_table(self, pmd: int) -> None:
        """Remove an empty leaf table from the page table and deposit it: a huge page is mapped in its place."""
        self.deposited.append(pte_pfn(self._words[pmd]))
        self._words[pmd] = 0

    def deposit_new(self) -> None:
        """Take a frame for the table of a huge page about to be mapped. Raises SysError(ENOMEM)."""
        self.deposited.append(self._frames.alloc_page(PG_TABLE, zero=False))
        self.table_pages += 1

    def withdraw(self) -> Pfn:
        """Return a deposited table, for the entries of a huge page that is split; the table's contents are undefined.

        Source: Linux v6.8 mm/pgtable-generic.c:pgtable_trans_huge_withdraw().
        """
        pfn = self.deposited.pop()
        self._frames.ram.set_written(pfn)
        return pfn

    def free_deposit(self) -> None:
        """Free the deposited table of a huge page that was unmapped.

        Source: Linux v6.8 mm/huge_memory.c:zap_deposited_table().
        """
        self._frames.put_page(self.deposited.pop())
        self.table_pages -= 1

    def ensure_leaves(self, start: Vaddr, end: Vaddr) -> Iterator[Leaf]:
        """Yield the leaf tables for [start, end), a range without huge pages, in order; make each one just before.

        Raises SysError(ENOMEM).
        """
        while start < end:
            stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
            low = self.ensure_pte(start)
            yield Leaf(start, stop, low, low + ((stop - start) >> PAGE_SHIFT))
            start = stop

    def ensure_run(self, run: Run) -> Run:
        """Return this page table's entries for the pages of another page table's run; the pages are in no huge page.

        Makes missing tables. Raises SysError(ENOMEM).
        """
        if isinstance(run, Leaf):
            low = self.ensure_pte(run.start)
            return run._replace(low=low, high=low + run.high - run.low)
        slots = self.ensure_pmd(run.start) + ((run.starts - run.starts[0]) >> u64(PMD_SHIFT)).astype(np.int64)
        missing = slots[self._words_np[slots] == 0]
        if len(missing):
            self._make_tables(run, missing)
        return run._replace(tables=pte_pfn(self._words_np[slots]).astype(np.int64))

    def ensure_whole(self, start: Vaddr, end: Vaddr) -> Leaves:
        """Return the whole leaf tables around [start, end), a range without huge pages, and make missing tables.

        Raises SysError(ENOMEM).
        """
        start, end = start & -PMD_SIZE, end + (-end & PMD_SIZE - 1)
        tables = [self.ensure_pte(vaddr) >> WORDS_SHIFT for vaddr in range(start, end, PMD_SIZE)]
        starts = np.arange(start, end, PMD_SIZE, dtype=np.uint64)
        return Leaves.of(starts, np.array(tables, dtype=np.int64))

    def _make_tables(self, run: Leaves, missing: Pfns) -> None:
        """Make the leaf tables of a run whose upper entries, by word index, are `missing`."""
        try:
            tables = self._frames.alloc_pages(len(missing), PG_TABLE)
        except SysError:
            for start in run.starts.tolist():
                self.ensure_pte(start)  # The allocation of one frame tries harder than that of many.
            return
        self._frames.ram.written[tables] = True
        self._words_np[missing] = (tables.astype(np.uint64) << u64(PAGE_SHIFT)) | u64(PTE_TABLE)
        self.table_pages += len(missing)

    def free_tables(self, start: Vaddr, end: Vaddr, floor: Vaddr, ceiling: Vaddr) -> None:
        """Free the tables for [start, end) that cover nothing outside [floor, ceiling), a range without any VMA.

        Source: Linux v6.8 mm/memory.c:free_pgd_range(), where floor and ceiling are the neighbours' bounds.
        """
        if max(floor, start & -PMD_SIZE) + PMD_SIZE > ceiling:
            return
        if start & -PMD_SIZE == (end - 1) & -PMD_SIZE:
            covered = self._lowest_table_bytes(start)
            if start & -covered < floor or (start & -covered) + covered > ceiling:
                return
        self._cached.clear()
        for shift in reversed(UPPER_SHIFTS):
            for table in self.walk.tables(start, end, shift):
                self._free_named(table, shift, floor, ceiling)

    def _lowest_table_bytes(self, vaddr: Vaddr) -> int:
        """Return how many bytes the lowest table on the way to an address covers."""
        slot, level = descend(self._words, self.root, vaddr, PMD_SHIFT)
        return 1 << level if self._words[slot] & KIND == PTE_PRESENT else PTRS_PER_TABLE << level

    def _free_named(self, table: Table, shift: int, floor: Vaddr, ceiling: Vaddr) -> None:
        """Free the tables that a table's entries name and that cover nothing outside [floor, ceiling)."""
        start = table.start & -(1 << shift)
        low = table.low + max(0, floor - start + (1 << shift) - 1 >> shift)
        high = min(table.high, table.low + (ceiling - start >> shift))
        slots = low + self._words_np[low:high].nonzero()[0]
        if len(slots) > _FEW_TABLES:
            freed = pte_pfn(self._words_np[slots]).astype(np.int64)
            self._words_np[slots] = 0
            self._frames.put_pages(freed)
        else:
            for slot in slots.tolist():
                self._frames.put_page(pte_pfn(self._words[slot]))
                self._words[slot] = 0
        self.table_pages -= len(slots)

    def tables(self) -> list[Pfn]:
        """Return the frame of every table, the root first, the deposited tables last; found by a walk, for tests."""
        found = [self.root]
        for shift in UPPER_SHIFTS:
            for table in self.walk.tables(0, TASK_SIZE + PAGE_SIZE, shift):
                entries = self._words_np[table.low : table.high]
                found += pte_pfn(entries[(entries & u64(KIND)) == PTE_PRESENT]).tolist()
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

    def destroy_in_pieces(self, pace: Pace) -> Iterator[None]:
        """Free every table, the root last; yield when the rest is consistent. No entry may map a frame any more."""
        end = TASK_SIZE + PAGE_SIZE
        for table in self.walk.tables(0, TASK_SIZE, PMD_SHIFT):
            self.free_tables(table.start, table.start + PUD_SIZE, table.start, table.start + PUD_SIZE)
            if pace.is_over():
                yield
                pace.begin()
        self.free_tables(0, end, 0, end)
        self.free_root()

    def free_root(self) -> None:
        """Free the root, the last table. The page table may not be used any more."""
        self._frames.put_page(self.root)
        self.table_pages = 0
