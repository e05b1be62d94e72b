"""What a shadow page table says of a range: a function of the VMAs and the page-table entries as they are now.

Owns nothing, remembers nothing: it serves `start`, every change, execve and page_contents alike, so that the table
cannot depend on the way by which a state was reached. Answers to ABI.md, "Shadow page table".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import present_mask, pte_pfn, pte_present
from shared.uapi.page import PAGE_SHIFT, Pfn, Vaddr
from shared.uapi.shadowpt import Spte

if TYPE_CHECKING:
    from kerneld.mm.mm import MmStruct

_ALLOCATED = int(Spte.VADDR_ALLOCATED)
_ANONYMOUS = int(Spte.VADDR_ALLOCATED | Spte.VADDR_ANONYMOUS)
_MAPPED = int(Spte.PTE_MAPPED)


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


def describe_page(mm: MmStruct, vaddr: Vaddr) -> tuple[int, Pfn]:
    """Return what describe() says of one page, page-aligned, for a fifth of its cost: a fault changes one page."""
    vma = mm.vmas.lookup(vaddr)
    flags = 0 if vma is None else _ANONYMOUS if vma.is_anonymous else _ALLOCATED
    pte = mm.page_table.find_pte(vaddr)
    entry = 0 if pte is None else mm.frames.ram.words[pte]
    if not pte_present(entry):
        return flags, 0
    return flags | _MAPPED, pte_pfn(entry)
