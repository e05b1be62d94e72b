"""Pages of locked memory: kept out of reclaim when they are mapped, given back when they are unlocked.

The caller, or the VMA's flags, say whether memory is locked. Answers to Linux v6.8 mm/mlock.c:mlock_vma_pages_range().
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerneld.mm.frames.frames import PG_ANON, PG_UNEVICTABLE, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from kerneld.mm.frames.lru import mlock_folios, munlock_folio, munlock_folios
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma, vma_has_recency
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SHIFT, Pfn, Vaddr


def mlock_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Keep the pages that are mapped in [start, end), page-aligned, out of reclaim.

    A huge page that small entries map counts only if one table in the range maps all of it.
    Source: Linux v6.8 mm/mlock.c:mlock_pte_range(), allow_mlock_munlock().
    """
    frames = mm.frames
    if not frames.huge.has_been_used:
        mlock_folios(frames, _mapped(mm, start, end))
        return
    for leaf in mm.page_table.walk.leaves(start, end):
        places, pfns = mm.page_table.walk.mapped(leaf)
        mlock_folios(frames, pfns[~frames.has(pfns, PG_LARGE)])
        for pfn, nr_pages in _large_runs(frames, places, pfns):
            if nr_pages == HPAGE_PMD_NR:
                mlock_folios(frames, frames.huge.pages_of(pfn & -HPAGE_PMD_NR))


def munlock_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Give the pages mapped in [start, end), page-aligned, back to reclaim. The entries stay.

    A huge page is unlocked if any part of it lies in the range.
    Source: Linux v6.8 mm/mlock.c:mlock_pte_range(), allow_mlock_munlock().
    """
    frames = mm.frames
    if not frames.huge.has_been_used:
        munlock_folios(frames, _mapped(mm, start, end))
        return
    for leaf in mm.page_table.walk.leaves(start, end):
        places, pfns = mm.page_table.walk.mapped(leaf)
        munlock_folios(frames, pfns[~frames.has(pfns, PG_LARGE)])
        for pfn, _ in _large_runs(frames, places, pfns):
            munlock_folio(frames, pfn)


def munlock_zapped(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Give the anonymous pages mapped in [start, end), page-aligned, back to reclaim, before their entries are cleared.

    Each small entry of a huge page unlocks it once more.
    Source: Linux v6.8 mm/rmap.c:__folio_remove_rmap(), munlock_vma_folio().
    """
    frames = mm.frames
    for leaf in mm.page_table.walk.leaves(start, end) if frames.huge.has_been_used else ():
        places, pfns = mm.page_table.walk.mapped(leaf)
        for pfn, nr_pages in _large_runs(frames, places, pfns):
            for _ in range(1 if leaf.huge else nr_unlocks(nr_pages)):
                if not frames.flags_at[pfn] & PG_UNEVICTABLE:
                    break
                munlock_folio(frames, pfn)
    pfns = _mapped(mm, start, end)
    munlock_folios(frames, pfns[(frames.flags[pfns] & (PG_ANON | PG_LARGE)) == PG_ANON])


def nr_unlocks(nr_pages: int) -> int:
    """Return how often a huge page is unlocked when some of its small entries are cleared.

    Source: Linux v6.8 mm/memory.c:zap_pte_range(): folio_remove_rmap_pte() of each.
    """
    return nr_pages


def _large_runs(frames: Frames, places: Pfns, pfns: Pfns) -> Iterator[tuple[Pfn, int]]:
    """Yield each run of entries of one table that map one huge page: a frame of it that is mapped, and their number.

    Source: Linux v6.8 mm/mlock.c:folio_mlock_step().
    """
    large = np.flatnonzero(frames.has(pfns, PG_LARGE))
    if not len(large):
        return
    heads = pfns[large] & -HPAGE_PMD_NR
    breaks = np.flatnonzero((np.diff(heads) != 0) | (np.diff(places[large]) != 1)) + 1
    for run in np.split(large, breaks):
        yield int(pfns[run[0]]), len(run)


def zap_vma_range(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Clear every entry of [start, end), page-aligned, a part of a VMA, which may be locked.

    A page of a file is marked as used while it is still locked; then the mark has no other effect.
    Source: Linux v6.8 mm/memory.c:zap_pte_range(): folio_mark_accessed() before page_remove_rmap(), which unlocks.
    """
    _forget_accesses(mm, vma, start, end)
    if not vma.vm_flags & VM_LOCKED:
        mm.pages.zap_range(start, end)
        return
    mm.pages.split_huge_pmds_at(start, end)
    pfns = _mapped(mm, start, end)
    is_anon = mm.frames.has(pfns, PG_ANON)
    munlock_zapped(mm, start, end)
    mm.pages.zap_range(start, end)
    munlock_folios(mm.frames, pfns[~is_anon])


def zap_vma_cached(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Do the same as `zap_vma_range`, for the pages of a file only: private copies stay."""
    _forget_accesses(mm, vma, start, end)
    if not vma.vm_flags & VM_LOCKED:
        mm.pages.zap_cached(start, end)
        return
    pfns = _mapped(mm, start, end)
    mm.pages.zap_cached(start, end)
    munlock_folios(mm.frames, pfns[~mm.frames.has(pfns, PG_ANON)])


def _forget_accesses(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Clear the accessed bits of a file's pages if accesses through this VMA do not count (`vma_has_recency`)."""
    if vma.file is None or vma_has_recency(vma):
        return
    for leaf in mm.page_table.walk.leaves(start, end):
        places, _ = mm.page_table.walk.mapped(leaf)
        if len(places):
            mm.pages.clear_young(leaf.low + places, leaf.start + (places << PAGE_SHIFT))


def _mapped(mm: MmStruct, start: Vaddr, end: Vaddr) -> Pfns:
    walk = mm.page_table.walk
    return np.concatenate([np.zeros(0, dtype=np.int64), *(walk.mapped(run)[1] for run in walk.runs(start, end))])
