"""What a shadow page table says of a range: a function of the VMAs and the page-table entries as they are now.

Owns nothing, remembers nothing: it serves `start`, every change, execve and page_contents alike, so that the table
cannot depend on the way by which a state was reached. Answers to docs/abi.md, "Shadow page table".
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
from kerneld.mm.vm_flags import VM_WRITE
from kerneld.shadowpt.layout import F24, Flags
from shared.uapi.page import PAGE_SHIFT, Pfn, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma


def describe(
    mm: MmStruct, start: Vaddr, end: Vaddr, layout: Flags = F24
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return state_flags and pfn of each page in [start, end), page-aligned; pfn 0 where none is mapped."""
    flags = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
    for vma in mm.vmas.overlapping(start, end):
        first = (max(vma.start, start) - start) >> PAGE_SHIFT
        last = (min(vma.end, end) - start) >> PAGE_SHIFT
        flags[first:last] = _vma_flags(vma, layout)
    entries = mm.page_table.walk.entries(start, end)
    present = present_mask(entries)
    flags[present] |= layout.mapped
    if layout.pte_writeable:
        flags[present & ((entries & np.uint64(PTE_RW)) != 0)] |= layout.pte_writeable
    return flags, pte_pfn(entries) * present


def describe_page(mm: MmStruct, vaddr: Vaddr, layout: Flags = F24) -> tuple[int, Pfn]:
    """Return what describe() says of one page, page-aligned, for a fifth of its cost: a fault changes one page."""
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
