"""The marks that the kernel's access leaves on a page: get_user_pages() with FOLL_TOUCH.

An access of the processor sets bits of the entry. The kernel's access does not use the entry: it marks the frame as
used and, for a write through a clean entry, as dirty. Without these marks, a page that MADV_FREE has cleaned and that
is then populated or locked for writing would be dropped by reclaim. Knows no fault. Answers to Linux v6.8
mm/gup.c:follow_page_pte(), mm/huge_memory.c:touch_pmd() and mm/page-writeback.c:folio_mark_dirty().
"""

from __future__ import annotations

import numpy as np

from kerneld.hw.distinct import distinct
from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_MKDIRTY,
    PTE_PSE,
    PTE_SPECIAL,
    counted_mask,
    entry_pfn,
    pte_pfn,
)
from kerneld.hw.scalars import u64
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import PG_ACTIVE, PG_ANON, PG_DIRTY, PG_REFERENCED, PG_UNEVICTABLE, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from kerneld.mm.frames.lru import folios_mark_accessed
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pagewalk import Leaf
from shared.uapi.page import PMD_SIZE, Pfn, Vaddr

_MARKS_THAT_COUNT = 3
"""The first mark makes a page referenced, the second active instead, the third both; more marks change nothing."""


def folio_mark_dirty(frames: Frames, pfns: Pfns) -> None:
    """Mark frames as dirty; a file also notes its dirty pages. A huge page is dirty as a whole.

    Source: Linux v6.8 mm/page-writeback.c:folio_mark_dirty().
    """
    cached = pfns[~frames.has(pfns, PG_ANON | PG_DIRTY)]
    anon = pfns[frames.has(pfns, PG_ANON)]
    frames.set(anon, PG_DIRTY)
    large = anon[frames.has(anon, PG_LARGE)]
    for head in distinct(large & -HPAGE_PMD_NR).tolist():
        frames.set(frames.huge.pages_of(head), PG_DIRTY)
    for pfn in cached.tolist():
        mapping = frames.find_mapping(pfn)
        if isinstance(mapping, AddressSpace):
            mapping.mark_dirty(frames.index_at[pfn], pfn)


def touch_entry(mm: MmStruct, at: int, vaddr: Vaddr, write: bool) -> Pfn:
    """Mark the page of a present entry, by its word index, that allows the access; returns the page's frame."""
    entry = mm.frames.ram.words[at]
    if entry & PTE_PSE:
        mm.pages.update_huge_pmd(at, vaddr & -PMD_SIZE, _touched_pmd(entry, write))
        return entry_pfn(entry, vaddr)
    pfn = pte_pfn(entry)
    if not entry & PTE_SPECIAL:
        if write and not entry & PTE_DIRTY:
            folio_mark_dirty(mm.frames, np.array([pfn]))
        flags = mm.frames.flags_at[pfn]
        # A marked page that is active or on no list does not change any more.
        if flags & PG_LARGE or not (flags & PG_REFERENCED and flags & (PG_ACTIVE | PG_UNEVICTABLE)):
            _mark_accessed(mm.frames, np.array([pfn]))
    return pfn


def touch_leaf(mm: MmStruct, leaf: Leaf, write: bool) -> None:
    """Mark every page that a run of entries, or a huge page's one entry, maps; all entries allow the access."""
    if leaf.huge:
        entry = mm.frames.ram.words[leaf.low]
        mm.pages.update_huge_pmd(leaf.low, leaf.start & -PMD_SIZE, _touched_pmd(entry, write))
        return
    entries = mm.frames.ram.words_np[leaf.low : leaf.high]
    counted = entries[counted_mask(entries)]
    pfns = pte_pfn(counted).astype(np.int64)
    if write:
        clean = pfns[(counted & u64(PTE_DIRTY)) == 0]
        if len(clean):
            folio_mark_dirty(mm.frames, clean)
    _mark_accessed(mm.frames, pfns)


def _touched_pmd(entry: int, write: bool) -> int:
    """Return an entry of 2 MiB after an access: a read changes nothing, because x86 only sets it together with dirty.

    Source: Linux v6.8 mm/huge_memory.c:touch_pmd(), arch/x86/mm/pgtable.c:pmdp_set_access_flags().
    """
    return entry | PTE_ACCESSED | PTE_MKDIRTY if write else entry


def _mark_accessed(frames: Frames, pfns: Pfns) -> None:
    """Mark frames as used; a huge page that small entries map is marked as a whole, once for each accessed page."""
    large = frames.has(pfns, PG_LARGE)
    if not large.any():
        folios_mark_accessed(frames, pfns)
        return
    folios_mark_accessed(frames, pfns[~large])
    heads, counts = np.unique(pfns[large] & -HPAGE_PMD_NR, return_counts=True)
    for head, count in zip(heads.tolist(), counts.tolist(), strict=True):
        for _ in range(min(count, _MARKS_THAT_COUNT)):
            folios_mark_accessed(frames, frames.huge.pages_of(head))
