"""Rules of earlier kernels for huge pages, which replace kerneld's own while the referee runs (`known`)."""

from __future__ import annotations

from collections.abc import Callable

from kerneld.fs.proc_smaps import MemSizeStats
from kerneld.hw.paging import PTE_DIRTY, PTE_PRESENT, PTE_SOFT_DIRTY, PTE_SPECIAL, PTRS_PER_TABLE, pte_pfn
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.hw.scalars import u64
from kerneld.mm.frames.frames import Frames
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pages import Pages
from kerneld.mm.space.pagewalk import Leaf
from kerneld.referee.later_huge import still_present, where_mapped
from shared.uapi.page import PAGE_SHIFT, Pfn, Vaddr


def splits_into_clean_entries(earlier: Callable[[Pages, int, Vaddr], None]) -> Callable[[Pages, int, Vaddr], None]:
    """The small entries of a split entry are clean. The huge page is dirty if that entry was.

    Source: Linux v6.1 mm/huge_memory.c:__split_huge_pmd_locked(), without `freeze`.
    """

    def split_huge_pmd(self: Pages, pmd: int, haddr: Vaddr) -> None:
        entry = self._words[pmd]
        earlier(self, pmd, haddr)
        if not entry & PTE_SPECIAL:
            low = pte_pfn(self._words[pmd]) << WORDS_SHIFT
            lost = PTE_DIRTY | (PTE_SOFT_DIRTY & ~entry)
            self._words_np[low : low + PTRS_PER_TABLE] &= u64(~lost)

    return split_huge_pmd


def keeps_dirty_entries(earlier: Callable[[Frames, Pfn], None]) -> Callable[[Frames, Pfn], None]:
    """If the huge page is split for good at once, its small entries are as dirty as the one of 2 MiB, and soft-dirty.

    Source: Linux v6.1 mm/huge_memory.c:__split_huge_pmd_locked() with `freeze`, mm/migrate.c:remove_migration_pte().
    """

    def split_folio(frames: Frames, pfn: Pfn) -> None:
        dirty = [
            (mm, start + (at << PAGE_SHIFT))
            for mm, start, entries in where_mapped(frames, frames.huge.pages_of(pfn & -HPAGE_PMD_NR))
            if mm.page_table.find_huge_pmd(start) is not None and int(entries[0]) & PTE_DIRTY
            for at in range(len(entries))
        ]
        earlier(frames, pfn)
        for mm, pte, vaddr in still_present(frames, dirty):
            mm.pages.update_pte(pte, vaddr, frames.ram.words[pte] | PTE_DIRTY | PTE_SOFT_DIRTY)

    return split_folio


def sharers_of_the_page(frames: Frames, pfn: Pfn) -> int:
    """Source: Linux v6.1 mm/madvise.c:madvise_cold_or_pageout_pte_range(): page_mapcount()."""
    return frames.mapcount_at[pfn]


def passes_over_what_is_inaccessible(
    earlier: Callable[[MmStruct, Leaf, MemSizeStats], None],
) -> Callable[[MmStruct, Leaf, MemSizeStats], None]:
    """smaps does not count a huge page without rights.

    Source: Linux v6.1 fs/proc/task_mmu.c:smaps_pmd_entry(), mm/huge_memory.c:follow_trans_huge_pmd() (pmd_protnone()).
    """

    def gather_leaf(mm: MmStruct, leaf: Leaf, stats: MemSizeStats) -> None:
        if not leaf.huge or int(mm.page_table.walk.page_entries(leaf)[0]) & PTE_PRESENT:
            earlier(mm, leaf, stats)

    return gather_leaf
