"""Computes the shadow page table of a range from the current VMAs and page-table entries.

Owns nothing and remembers nothing. `start`, every change, execve and page_contents use the same function. So the table
depends only on the current state, and not on the changes that led to it. Answers to docs/abi.md, "Shadow page table".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import (
    PTE_KERNEL_PRESENT,
    PTE_PFN_MASK,
    PTE_PSE,
    PTE_RW,
    entry_pfn,
    present_mask,
    pte_pfn,
)
from kerneld.hw.scalars import u64
from kerneld.mm.vm_flags import VM_WRITE
from kerneld.shadowpt.layout import F24, Flags
from shared.uapi.page import PAGE_SHIFT, Pfn, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma


def describe(
    mm: MmStruct, start: Vaddr, end: Vaddr, layout: Flags = F24
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return state_flags and pfn of each page in [start, end), page-aligned. The pfn is 0 for an unmapped page."""
    flags = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
    for vma in mm.vmas.overlapping(start, end):
        first = (max(vma.start, start) - start) >> PAGE_SHIFT
        last = (min(vma.end, end) - start) >> PAGE_SHIFT
        flags[first:last] = _vma_flags(vma, layout)
    entries = mm.page_table.walk.entries(start, end)
    present = present_mask(entries)
    flags[present] |= layout.mapped
    if layout.pte_writeable:
        flags[present & ((entries & u64(PTE_RW)) != 0)] |= layout.pte_writeable
    return flags, pte_pfn(entries) * present


def describe_page(mm: MmStruct, vaddr: Vaddr, layout: Flags = F24) -> tuple[int, Pfn]:
    """Do the same as describe() for one page, page-aligned. It costs a fifth, and most faults change one page."""
    vma = mm.vmas.lookup(vaddr)
    flags = 0 if vma is None else _vma_flags(vma, layout)
    at = mm.page_table.find_leaf(vaddr)
    entry = 0 if at is None else mm.frames.ram.words[at]
    if not entry & PTE_KERNEL_PRESENT:
        return flags, 0
    if entry & PTE_RW:
        flags |= layout.pte_writeable
    return flags | layout.mapped, entry_pfn(entry, vaddr) if entry & PTE_PSE else (entry & PTE_PFN_MASK) >> PAGE_SHIFT


def _vma_flags(vma: Vma, layout: Flags) -> int:
    flags = layout.anonymous if vma.is_anonymous else layout.allocated
    if layout.vaddr_writeable and vma.vm_flags & VM_WRITE:
        flags |= layout.vaddr_writeable
    return flags
