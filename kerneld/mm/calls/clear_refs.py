"""What a write to /proc/PID/clear_refs does: pages count as not used, or the peak of resident memory starts again.

Answers to Linux v6.8 fs/proc/task_mmu.c: clear_refs_write(), clear_refs_pte_range(). A kernel without
CONFIG_MEM_SOFT_DIRTY takes the 4 for soft-dirty bits and does nothing: so does this one.
"""

from __future__ import annotations

from enum import IntEnum

from kerneld.hw.paging import PTE_ACCESSED
from kerneld.mm.calls.madvise_pages import clear_bits
from kerneld.mm.frames.frames import PG_REFERENCED
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.space.vma import Vma
from shared.uapi.page import PMD_SIZE, Vaddr

_STEP_BYTES = 32 * PMD_SIZE


class ClearRefs(IntEnum):
    """What is to be cleared: Linux v6.8 fs/proc/task_mmu.c:enum clear_refs_types."""

    ALL = 1
    ANON = 2
    MAPPED = 3
    SOFT_DIRTY = 4
    MM_HIWATER_RSS = 5


def clear_refs(mm: MmStruct, kind: ClearRefs) -> Steps:
    """Clear the accessed bits of an address space's pages, of all mappings or of those without or with a file.

    Yields where other clients may be served: a mapping that is gone then is left out.
    """
    if kind is ClearRefs.MM_HIWATER_RSS:
        mm.rss.restart_hiwater()
    if kind > ClearRefs.MAPPED:
        return
    pace, at = Pace(), 0
    vma = mm.vmas.find(at)
    while vma is not None:
        start = max(at, vma.start)
        at = min(vma.end, start + _STEP_BYTES)
        if _is_meant(vma, kind):
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
