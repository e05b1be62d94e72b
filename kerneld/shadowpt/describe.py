"""What a shadow page table says of a range: one function of the VMAs and the page-table entries as they are now.

Owns nothing, remembers nothing: it serves `start`, every change, execve and page_contents alike, so that the table
cannot depend on the way by which a state was reached. Answers to ABI.md, "Shadow page table".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import present_mask, pte_pfn
from shared.uapi.page import PAGE_SHIFT, Vaddr
from shared.uapi.shadowpt import Spte

if TYPE_CHECKING:
    from kerneld.mm.mm import MmStruct

_ALLOCATED = int(Spte.VADDR_ALLOCATED)
_ANONYMOUS = int(Spte.VADDR_ALLOCATED | Spte.VADDR_ANONYMOUS)
_MAPPED = np.uint64(Spte.PTE_MAPPED)


def describe(mm: MmStruct, start: Vaddr, end: Vaddr) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return state_flags and pfn of each page in [start, end), page-aligned; pfn 0 where none is mapped."""
    flags = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
    for vma in mm.vmas.overlapping(start, end):
        first = (max(vma.start, start) - start) >> PAGE_SHIFT
        last = (min(vma.end, end) - start) >> PAGE_SHIFT
        flags[first:last] = _ANONYMOUS if vma.is_anonymous else _ALLOCATED
    entries = mm.page_table.entries(start, end)
    present = present_mask(entries)
    flags[present] |= _MAPPED
    return flags, pte_pfn(entries) * present
