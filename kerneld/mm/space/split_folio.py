"""A huge page becomes 512 single pages for good, in every address space.

`Pages.split_huge_pmd` is different: it splits only one entry of 2 MiB. The page remains one page, which small entries
map. Answers to Linux v6.8 mm/huge_memory.c: split_huge_page_to_list(), __split_huge_page_tail(), and
include/linux/mm.h:folio_estimated_sharers().
"""

from __future__ import annotations

from kerneld.hw.distinct import distinct
from kerneld.hw.paging import PTE_DIRTY, PTE_SOFT_DIRTY
from kerneld.hw.scalars import u64
from kerneld.mm.frames.frames import PG_DIRTY, PG_UNEVICTABLE, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from kerneld.mm.frames.lru import mlock_folios
from kerneld.mm.space.pace import Steps
from kerneld.mm.space.rmap_walk import split_huge_pmds_of, split_some_huge_pmds
from kerneld.mm.space.vma import Vma, vma_soft_dirty_enabled
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import Pfn

CROWD = 256
"""A huge page that more entries may map is split in pieces."""
SPLIT_AT_ONCE = 64
"""The entries of 2 MiB that one piece splits: 2 ms."""


def estimated_sharers(frames: Frames, pfn: Pfn) -> int:
    """Return how many entries map the first page of a frame's huge page: an estimate of how many map the huge page.

    It is 0 if the first page is not mapped any more.
    """
    head = pfn & -HPAGE_PMD_NR
    return frames.mapcount_at[head] if frames.flags_at[head] & PG_LARGE else 0


def split_folio(frames: Frames, pfn: Pfn) -> None:
    """Split a frame's huge page into single pages; all of them become dirty if an entry of one is dirty.

    A dirty entry is made anew, which makes it soft-dirty too (pte_mkdirty()): it is looked for where that shows.

    Every entry of 2 MiB that maps the huge page is split. The locks on the huge page end. Each single page is locked by
    each locked VMA that maps it. Source: Linux v6.8 mm/huge_memory.c:split_huge_page_to_list(),
    mm/rmap.c:try_to_migrate_one() (folio_mark_dirty(), folio_remove_rmap_pte()), mm/migrate.c:remove_migration_pte().
    """
    pfns = frames.huge.pages_of(pfn & -HPAGE_PMD_NR)
    words = frames.ram.words_np
    dirty = False
    locked: list[Pfns] = []

    def wants(vma: Vma) -> bool:
        return not dirty or vma.vm_flags & VM_LOCKED != 0 or vma_soft_dirty_enabled(vma)

    for mapped in split_huge_pmds_of(frames, pfns, wants):
        dirty_here = (words[mapped.ptes] & u64(PTE_DIRTY)) != u64(0)
        dirty = dirty or bool(dirty_here.any())
        if vma_soft_dirty_enabled(mapped.vma):
            for pte, vaddr in zip(mapped.ptes[dirty_here].tolist(), mapped.vaddrs[dirty_here].tolist(), strict=True):
                mapped.mm.pages.update_pte(pte, vaddr, frames.ram.words[pte] | PTE_SOFT_DIRTY)
        if mapped.vma.vm_flags & VM_LOCKED:
            locked.append(pfns[mapped.at])
    frames.clear(pfns, PG_LARGE | PG_UNEVICTABLE)
    frames.mlock_more[pfns] = 0
    for each in locked:
        mlock_folios(frames, each)
    if dirty:
        frames.set(pfns, PG_DIRTY)


def has_crowd(frames: Frames, pfn: Pfn) -> bool:
    """Return whether so many entries may map a frame's huge page that to split it at once takes long."""
    return frames.mapcount_at[pfn] > CROWD


def split_crowded_folio(frames: Frames, pfn: Pfn) -> Steps:
    """Do the same as `split_folio`, if the frame is still of a huge page then; yield when others may be served.

    Linux holds the lock of the family's anon_vma (split_huge_page_to_list()), for which only the family waits.
    """
    head = pfn & -HPAGE_PMD_NR
    while frames.flags_at[pfn] & PG_LARGE and split_some_huge_pmds(frames, head, SPLIT_AT_ONCE):
        yield
    if frames.flags_at[pfn] & PG_LARGE:
        split_folio(frames, pfn)


def split_folios(frames: Frames, pfns: Pfns) -> None:
    """Split every huge page that contains one of these frames."""
    large = pfns[frames.has(pfns, PG_LARGE)]
    for head in distinct(large & -HPAGE_PMD_NR).tolist():
        # The first page itself may have been freed.
        split_folio(frames, head)
