"""Pages of locked memory: kept out of reclaim when they are mapped, given back when they are unlocked.

The caller, or the VMA's flags, say whether memory is locked. Answers to Linux v6.8 mm/mlock.c:mlock_vma_pages_range().
"""

from __future__ import annotations

import numpy as np

from kerneld.mm.frames.frames import PG_ANON, Pfns
from kerneld.mm.frames.lru import mlock_folios, munlock_folios
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma, vma_has_recency
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SHIFT, Vaddr


def mlock_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Keep the pages that are mapped in [start, end), page-aligned, out of reclaim."""
    mlock_folios(mm.frames, _mapped(mm, start, end))


def munlock_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Give the pages mapped in [start, end), page-aligned, back to reclaim; call this before entries are cleared."""
    munlock_folios(mm.frames, _mapped(mm, start, end))


def zap_vma_range(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Clear every entry of [start, end), page-aligned, a part of a VMA, which may be locked.

    A page of a file is marked as used while it is still locked; then the mark has no other effect.
    Source: Linux v6.8 mm/memory.c:zap_pte_range(): folio_mark_accessed() before page_remove_rmap(), which unlocks.
    """
    _forget_accesses(mm, vma, start, end)
    if not vma.vm_flags & VM_LOCKED:
        mm.pages.zap_range(start, end)
        return
    pfns = _mapped(mm, start, end)
    is_anon = mm.frames.has(pfns, PG_ANON)
    munlock_folios(mm.frames, pfns[is_anon])
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
