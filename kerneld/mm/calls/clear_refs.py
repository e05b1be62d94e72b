"""What a write to /proc/PID/clear_refs does: pages count as not used, or as not written; or the peak of resident memory
starts again.

A page is soft-dirty (bit 55 of /proc/PID/pagemap) if its entry is, or its whole VMA (VM_SOFTDIRTY, in every new one).
To clear it makes the entries read-only: the next write to a page faults, and makes its entry soft-dirty. Answers to
Linux v6.8 fs/proc/task_mmu.c: clear_refs_write(), clear_refs_pte_range(), clear_soft_dirty(), clear_soft_dirty_pmd(),
with CONFIG_MEM_SOFT_DIRTY, and Documentation/admin-guide/mm/soft-dirty.rst.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_RW,
    PTE_SOFT_DIRTY,
    PTE_SWP_SOFT_DIRTY,
    PTE_UNNOTICED,
    present_mask,
)
from kerneld.hw.scalars import u64
from kerneld.mm.calls.madvise_pages import clear_bits
from kerneld.mm.frames.frames import PG_REFERENCED
from kerneld.mm.space.mm import MmStruct, vma_set_page_prot
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_PFNMAP, VM_SOFTDIRTY
from shared.uapi.page import Vaddr

_OF_WRITES = PTE_RW | PTE_UNNOTICED | PTE_SOFT_DIRTY


class ClearRefs(IntEnum):
    """What is to be cleared: Linux v6.8 fs/proc/task_mmu.c:enum clear_refs_types."""

    ALL = 1
    ANON = 2
    MAPPED = 3
    SOFT_DIRTY = 4
    MM_HIWATER_RSS = 5


def clear_refs(mm: MmStruct, kind: ClearRefs) -> Steps:
    """Clear the accessed bits of an address space's pages, of all mappings or of those without or with a file; or the
    soft-dirty bits.

    Yields where other clients may be served: a mapping that is gone then is left out. For SOFT_DIRTY the caller holds
    mmap_lock for writing.
    """
    if kind is ClearRefs.MM_HIWATER_RSS:
        mm.rss.restart_hiwater()
        return
    pace, at = Pace(), 0
    vma = mm.vmas.find(at)
    while vma is not None:
        start = max(at, vma.start)
        at = pace.far_stop(mm.page_table.walk, start, vma.end)
        if kind is ClearRefs.SOFT_DIRTY:
            clear_soft_dirty(mm, vma, start, at)
        elif _is_meant(vma, kind):
            _clear_range(mm, start, at)
        if pace.is_over():
            yield
            pace.begin()
        vma = mm.vmas.find(at)


def _is_meant(vma: Vma, kind: ClearRefs) -> bool:
    return kind is ClearRefs.ALL or (vma.vm_file is None) == (kind is ClearRefs.ANON)


def _clear_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    for run in mm.page_table.walk.runs(start, end):
        positions, pfns = mm.page_table.walk.mapped(run)
        clear_bits(mm, run, positions, PTE_ACCESSED)
        mm.frames.clear(pfns, PG_REFERENCED)


def clear_soft_dirty(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Make a part of a VMA not soft-dirty, entry by entry; the VMA itself is not from then on."""
    if vma.vm_flags & VM_SOFTDIRTY:
        mm.set_vma_flags(vma, vma.vm_flags & ~VM_SOFTDIRTY)
        vma_set_page_prot(vma)
    if vma.vm_flags & VM_PFNMAP:
        return
    for run in mm.page_table.walk.runs(start, end):
        entries = mm.page_table.walk.read(run)
        cleared = entries & np.where(present_mask(entries), u64(~_OF_WRITES), u64(~PTE_SWP_SOFT_DIRTY))
        if (cleared != entries).any():
            mm.pages.update_ptes(run, cleared)
