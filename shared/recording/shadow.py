"""The shadow page table of any range of any process, computed from the model: what the kernel would write there.

Answers to docs/abi.md, "Shadow page table", for an address space that records tell of. So two processes can be shown
at one moment, and no table is opened for it.
"""

from __future__ import annotations

from shared.recording.address_space import AddressSpace
from shared.recording.physical import entry_pfn
from shared.trace.event import PRESENT, PSE, step_of
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE
from shared.uapi.shadowpt import Spte

ALLOCATED = int(Spte.VADDR_ALLOCATED)
ANONYMOUS = ALLOCATED | int(Spte.VADDR_ANONYMOUS)
MAPPED = int(Spte.PTE_MAPPED)


def shadow_entries(mm: AddressSpace | None, start: int, end: int) -> list[tuple[int, int, int]]:
    """Return vaddr, pfn and state_flags of each page in [start, end), page-aligned. Without `mm` all are empty.

    The pfn is 0 for a page without a frame, and where the reader of the events may not see frames.
    """
    pages = (end - start) >> PAGE_SHIFT
    flags, pfns = [0] * pages, [0] * pages
    if mm is not None:
        for vma in mm.vmas.values():
            first = max(0, (vma.start - start) >> PAGE_SHIFT)
            last = min(pages, (vma.end - start) >> PAGE_SHIFT)
            if first < last:
                flags[first:last] = [ALLOCATED if vma.mapping else ANONYMOUS] * (last - first)
        _map(mm, start, flags, pfns)
    return [(start + at * PAGE_SIZE, pfns[at], flags[at]) for at in range(pages)]


def _map(mm: AddressSpace, start: int, flags: list[int], pfns: list[int]) -> None:
    """Add to the flags and frames what the page-table entries say."""
    for vaddr, nr_pages, entry in mm.runs(start, start + len(flags) * PAGE_SIZE):
        if not entry & PRESENT:
            continue
        pfn = entry_pfn(entry)
        step = 1 if pfn and (entry & PSE or step_of(entry)) else 0
        first = (vaddr - start) >> PAGE_SHIFT
        for at in range(max(0, first), min(len(flags), first + nr_pages)):
            flags[at] |= MAPPED
            pfns[at] = pfn + (at - first) * step
