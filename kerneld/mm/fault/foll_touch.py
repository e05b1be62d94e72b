"""What the kernel leaves behind on pages that it goes to for somebody: get_user_pages() with FOLL_TOUCH.

The processor's own access leaves its marks in the entry. The kernel's does not go by the entry: it marks the frame as
used and, for a write through an entry that is clean, as dirty. Without that a page that MADV_FREE has cleaned, and that
is then populated or locked to be written to, would count as given up. Knows no fault. Answers to Linux v6.8
mm/gup.c:follow_page_pte(), mm/huge_memory.c:touch_pmd() and mm/page-writeback.c:folio_mark_dirty().
"""

from __future__ import annotations

import numpy as np

from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_PSE, PTE_SPECIAL, counted_mask, entry_pfn, pte_pfn
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import PG_ACTIVE, PG_ANON, PG_DIRTY, PG_REFERENCED, PG_UNEVICTABLE, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from kerneld.mm.frames.lru import folio_mark_accessed
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pagewalk import Leaf
from shared.uapi.page import PMD_SIZE, Pfn, Vaddr

_MARKS_THAT_COUNT = 3
"""Referenced, then active instead, then both: more change nothing."""


def folio_mark_dirty(frames: Frames, pfns: Pfns) -> None:
    """Note of frames that they have changed; of a file's the file knows it too. A huge page is dirty as a whole.

    Source: Linux v6.8 mm/page-writeback.c:folio_mark_dirty().
    """
    cached = pfns[~frames.has(pfns, PG_ANON | PG_DIRTY)]
    anon = pfns[frames.has(pfns, PG_ANON)]
    frames.set(anon, PG_DIRTY)
    large = anon[frames.has(anon, PG_LARGE)]
    for head in np.unique(large & -HPAGE_PMD_NR).tolist():
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
        # One that is active, or on no list, and marked already stays as it is.
        if flags & PG_LARGE or not (flags & PG_REFERENCED and flags & (PG_ACTIVE | PG_UNEVICTABLE)):
            _mark_accessed(mm.frames, np.array([pfn]))
    return pfn


def touch_leaf(mm: MmStruct, leaf: Leaf, write: bool) -> None:
    """Mark every page that a run of entries maps, each of which allows the access, or a huge page's one entry."""
    if leaf.huge:
        entry = mm.frames.ram.words[leaf.low]
        mm.pages.update_huge_pmd(leaf.low, leaf.start & -PMD_SIZE, _touched_pmd(entry, write))
        return
    entries = mm.frames.ram.words_np[leaf.low : leaf.high]
    counted = entries[counted_mask(entries)]
    pfns = pte_pfn(counted).astype(np.int64)
    if write:
        clean = pfns[(counted & np.uint64(PTE_DIRTY)) == 0]
        if len(clean):
            folio_mark_dirty(mm.frames, clean)
    _mark_accessed(mm.frames, pfns)


def _touched_pmd(entry: int, write: bool) -> int:
    """Nothing changes for a read: x86 takes a new entry of 2 MiB only where it is dirty.

    Source: Linux v6.8 mm/huge_memory.c:touch_pmd(), arch/x86/mm/pgtable.c:pmdp_set_access_flags().
    """
    return entry | PTE_ACCESSED | PTE_DIRTY if write else entry


def _mark_accessed(frames: Frames, pfns: Pfns) -> None:
    """Mark frames as used; a huge page that small entries map is so as a whole, once for each page gone to."""
    large = frames.has(pfns, PG_LARGE)
    if not large.any():
        folio_mark_accessed(frames, pfns)
        return
    folio_mark_accessed(frames, pfns[~large])
    heads, counts = np.unique(pfns[large] & -HPAGE_PMD_NR, return_counts=True)
    for head, count in zip(heads.tolist(), counts.tolist(), strict=True):
        for _ in range(min(count, _MARKS_THAT_COUNT)):
            folio_mark_accessed(frames, frames.huge.pages_of(head))
