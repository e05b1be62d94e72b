"""The primitives that set and clear entries of 2 MiB: what `PteOps` is for entries of 4 KiB.

`PmdOps` stands between `PteOps` and `MmStruct`. Owns the agreement between entries of 2 MiB, the counts of their
frames, the deposited tables and the resident counters. Knows no VMA and no fault. Answers to Linux v6.8
mm/huge_memory.c: zap_huge_pmd(), __split_huge_pmd_locked(), move_huge_pmd(), copy_huge_pmd().

Invariants: an entry of 2 MiB has PTE_PSE and lies in one VMA, anonymous and private, whole: whoever gives a VMA a new
bound, or changes a part of what such an entry maps, cuts the huge page up first (`split_huge_pmds_at`). An entry of the
huge zero page is special, as the zero page's entry of 4 KiB is. PROT_NONE is as in an entry of 4 KiB.
"""

from __future__ import annotations

from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_MASK,
    PTE_PSE,
    PTE_RW,
    PTE_SPECIAL,
    PTE_TABLE,
    PTRS_PER_TABLE,
    make_pte,
    pte_pfn,
    small_entries,
)
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE, PG_DIRTY, ZERO_PFN
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.pagewalk import Leaf
from kerneld.mm.space.pte_ops import PteOps, Rss
from shared.uapi.page import PMD_SIZE, Pfn, Vaddr


class PmdOps(PteOps):
    """Entries of 4 KiB and of 2 MiB of one page table; `haddr` is always an address on a 2 MiB boundary."""

    def map_huge_page(self, pmd: int, haddr: Vaddr, entry: int, head: Pfn) -> None:
        """Fill an empty entry with a huge page; the caller's reference of each frame becomes the entry's.

        A table has been deposited for it.
        """
        self._words[pmd] = entry
        self.frames.mapcount[head : head + HPAGE_PMD_NR] += 1
        self.frames.huge.add_mapping(head)
        self.rss[Rss.ANON] += HPAGE_PMD_NR
        self.notify(haddr, haddr + PMD_SIZE)

    def map_huge_zero_page(self, pmd: int, haddr: Vaddr, prot: int) -> None:
        """Fill an empty entry with the huge zero page, which is not counted; a table has been deposited for it.

        `prot` has the entry's rights. Raises SysError(ENOMEM) where there is no huge zero page and none can be had.
        """
        self._words[pmd] = make_pte(self.frames.huge.get_zero(), prot & ~PTE_RW | PTE_PSE | PTE_SPECIAL)
        self.notify(haddr, haddr + PMD_SIZE)

    def update_huge_pmd(self, pmd: int, haddr: Vaddr, entry: int) -> None:
        """Change the rights or state bits of an entry that goes on mapping the same huge page."""
        if self._words[pmd] != entry:
            self._words[pmd] = entry
            self.notify(haddr, haddr + PMD_SIZE)

    def zap_range(self, start: Vaddr, end: Vaddr) -> None:
        """Clear every entry of [start, end) as `PteOps` does; a huge page that lies in it only in part is cut up first.

        Source: Linux v6.8 mm/memory.c:zap_pmd_range().
        """
        if self.page_table.deposited:
            self.split_huge_pmds_at(start, end)
            self.update_hiwater_rss()
            for run in self.page_table.walk.runs(start, end):
                if isinstance(run, Leaf) and run.huge:
                    self._zap_huge_pmd(run)
        super().zap_range(start, end)

    def _zap_huge_pmd(self, leaf: Leaf) -> None:
        entry = self._words[leaf.low]
        self._words[leaf.low] = 0
        self.page_table.free_deposit()
        if entry & PTE_SPECIAL:
            self.frames.huge.put_zero()
        else:
            head = pte_pfn(entry)
            self.rss[Rss.ANON] -= HPAGE_PMD_NR
            self.frames.mapcount[head : head + HPAGE_PMD_NR] -= 1
            self.frames.huge.remove_mapping(head)
            self.frames.huge.put(head)
        self.notify(leaf.start, leaf.end)

    def split_huge_pmds_at(self, *bounds: Vaddr) -> None:
        """Cut up the huge pages that have one of these addresses inside.

        Source: Linux v6.8 mm/huge_memory.c:split_huge_pmd_address().
        """
        for vaddr in bounds:
            if vaddr & PMD_SIZE - 1:
                pmd = self.page_table.find_huge_pmd(vaddr)
                if pmd is not None:
                    self.split_huge_pmd(pmd, vaddr & -PMD_SIZE)

    def split_huge_pmd(self, pmd: int, haddr: Vaddr) -> None:
        """Put a table of 512 entries of the same frames in the place of an entry of 2 MiB; it cannot fail.

        Of the huge zero page each becomes an entry of the shared zero page. Any other is one page still, and is dirty
        now where the entry was.
        Source: Linux v6.8 mm/huge_memory.c:__split_huge_pmd_locked(), __split_huge_zero_page_pmd().
        """
        entry = self._words[pmd]
        table = self.page_table.withdraw()
        low = table << WORDS_SHIFT
        if entry & PTE_SPECIAL:
            self._words_np[low : low + PTRS_PER_TABLE] = make_pte(ZERO_PFN, entry & ~(PTE_PFN_MASK | PTE_PSE))
            self.frames.huge.put_zero()
        else:
            self._words_np[low : low + PTRS_PER_TABLE] = small_entries(entry, 0, PTRS_PER_TABLE)
            head = pte_pfn(entry)
            self.frames.huge.remove_mapping(head)
            if entry & PTE_DIRTY:
                self.frames.set(slice(head, head + HPAGE_PMD_NR), PG_DIRTY)
        self._words[pmd] = make_pte(table, PTE_TABLE)
        self.frames.huge.events["thp_split_pmd"] += 1
        self.notify(haddr, haddr + PMD_SIZE)

    def deposit_table(self, pmd: int) -> None:
        """Take an empty leaf table out of the page table and deposit it: a huge page comes in its place."""
        self.page_table.deposited.append(pte_pfn(self._words[pmd]))
        self._words[pmd] = 0

    def move_huge_pmd(self, pmd: int, haddr: Vaddr, to_pmd: int, to_haddr: Vaddr) -> None:
        """Move an entry of 2 MiB to an empty one; frames, counters and the deposited table stay as they are.

        Source: Linux v6.8 mm/huge_memory.c:move_huge_pmd().
        """
        self._words[to_pmd], self._words[pmd] = self._words[pmd], 0
        self.notify(haddr, haddr + PMD_SIZE)
        self.notify(to_haddr, to_haddr + PMD_SIZE)

    def move_tables(self, start: Vaddr, end: Vaddr, to: Vaddr) -> bool:
        """Move whole leaf tables as `PageTable.move_tables` does; frames and counters stay as they are."""
        moved = self.page_table.move_tables(start, end, to)
        self.notify(start, end)
        self.notify(to, to + end - start)
        return moved

    def copy_huge_pmd(self, new: PmdOps, leaf: Leaf) -> bool:
        """Give a forked address space an entry of 2 MiB of this one; both are write-protected then.

        Returns False where reclaim, for the tables that this takes, has cut the huge page up: nothing is done then.
        Raises SysError(ENOMEM). Source: Linux v6.8 mm/huge_memory.c:copy_huge_pmd(): the child's entry is old.
        """
        frames = self.frames
        pmd = new.page_table.ensure_pmd(leaf.start)
        new.page_table.deposit_new()
        entry = self._words[leaf.low] & ~PTE_RW
        if not entry & PTE_PSE:
            new.page_table.free_deposit()
            return False
        if entry & PTE_SPECIAL:
            new.map_huge_zero_page(pmd, leaf.start, entry & ~(PTE_PFN_MASK | PTE_ACCESSED))
            return True
        head = pte_pfn(entry)
        run = slice(head, head + HPAGE_PMD_NR)
        frames.clear(run, PG_ANON_EXCLUSIVE)
        frames.refcount[run] += 1
        self.update_huge_pmd(leaf.low, leaf.start, entry)
        new.map_huge_page(pmd, leaf.start, entry & ~PTE_ACCESSED, head)
        return True
