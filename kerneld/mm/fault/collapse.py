"""MADV_COLLAPSE: pages of 4 KiB become huge pages at once, at the program's request.

Answers to Linux v6.8 mm/khugepaged.c: madvise_collapse(), hpage_collapse_scan_pmd(), collapse_huge_page().

| 2 MiB of the range                      | what happens                          | the call ends with        |
|-----------------------------------------|---------------------------------------|---------------------------|
| mapped by a huge page                   | nothing                               | 0                         |
| a leaf table with a writable entry      | its pages move into a huge page       | 0                         |
| … and no huge page can be had           | nothing, the rest is not looked at    | ENOMEM                    |
| … part of it is swapped out             | it is read in first                   | 0; EAGAIN if it won't fit |
| a leaf table without a writable entry   | nothing, the rest is looked at        | EINVAL                    |
| … a page is missing, for a userfaultfd  | nothing, the rest is not looked at    | EINVAL                    |
| no leaf table                           | nothing, the rest is not looked at    | EINVAL                    |
| no table of leaf tables                 | nothing, the rest is looked at        | EINVAL                    |

Pages that other address spaces map too are copied; missing pages become zeros. The setting `--thp` does not matter.
MADV_NOHUGEPAGE, memory that is not anonymous, and memory that was never written to give EINVAL.
Differs from Linux: pages of files and of shared anonymous memory are never collapsed.
"""

from __future__ import annotations

import errno
from collections.abc import Generator

import numpy as np

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_PSE, PTE_RW, PTE_SPECIAL, counted_mask, make_pte, present_mask, pte_pfn, swap_mask
from kerneld.hw.scalars import u64
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.thp import huge_page_prot, thp_vma_allowable, thp_vma_suitable
from kerneld.mm.fault.vm_fault import VM_FAULT_ERROR, VM_FAULT_OOM
from kerneld.mm.space.anon_page import anon_flags, prepare_anon_vma
from kerneld.mm.space.locked_pages import munlock_zapped
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SHIFT, PMD_SHIFT, PMD_SIZE, Vaddr


def madvise_collapse(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> Steps:
    """Make huge pages of each whole 2 MiB in [start, end), a page-aligned part of a VMA.

    A part of 2 MiB stays as it is. Yields when other clients may be served (Linux releases mmap_lock there); then looks
    the VMA up again. Raises SysError(EINVAL) and SysError(ENOMEM) as the table above says; huge pages made before stay.
    """
    if not thp_vma_allowable(mm, vma, enforce_sysfs=False) or vma.anon_vma is None:
        raise SysError(errno.EINVAL)
    if not thp_vma_suitable(vma, vma.end - PMD_SIZE):
        raise SysError(errno.EINVAL)
    first, last = start + PMD_SIZE - 1 & -PMD_SIZE, end & -PMD_SIZE
    # A range without tables has nothing to collapse: it is skipped, however large it is.
    collapsed, pace, at, walk = 0, Pace(), first, mm.page_table.walk
    for leaf in walk.leaves(first, last):
        if any(walk.tables(at, leaf.start, PMD_SHIFT)):
            # The entry for a leaf table is empty. Source: Linux v6.8 mm/khugepaged.c:find_pmd_or_thp_or_none().
            break
        at = leaf.end
        collapsed += yield from _collapse_pmd(mm, vma, leaf.start)
        if leaf.end < last and pace.is_over():
            yield
            pace.begin()
            vma = _revalidate(mm, leaf.end)
    # A range without a 2 MiB boundary has last < first and is refused; an empty range is not (Linux subtracts alike).
    if collapsed != last - first >> PMD_SHIFT:
        raise SysError(errno.EINVAL)


def _revalidate(mm: MmStruct, vaddr: Vaddr) -> Vma:
    """Return the VMA that contains the next 2 MiB now.

    Raises SysError(EINVAL) if no VMA may have a huge page there. Source: Linux v6.8
    mm/khugepaged.c:hugepage_vma_revalidate(), madvise_collapse_errno().
    """
    vma = mm.vmas.lookup(vaddr)
    if vma is None or not thp_vma_suitable(vma, vaddr) or vma.anon_vma is None:
        raise SysError(errno.EINVAL)
    if not thp_vma_allowable(mm, vma, enforce_sysfs=False):
        raise SysError(errno.EINVAL)
    return vma


def _collapse_pmd(mm: MmStruct, vma: Vma, haddr: Vaddr) -> Generator[None, None, bool]:
    """Return whether a huge page maps these 2 MiB afterwards. Source: mm/khugepaged.c:hpage_collapse_scan_pmd().

    Yields while a native program may still store to the pages: its agent is late.
    """
    words, may_collapse = mm.frames.ram.words, False
    while True:
        pmd = mm.page_table.find_pmd(haddr)
        if pmd is None or not words[pmd]:
            return False
        if words[pmd] & PTE_PSE:
            return True
        _swap_in(mm, vma, haddr)
        may_collapse = may_collapse or _may_collapse(mm, haddr)
        if not may_collapse:
            return False
        if vma.userfaultfd_ctx is not None:
            _refuse_missing(mm, haddr)
        if not _forbid_stores(mm, haddr):
            break
        yield
        vma = _revalidate(mm, haddr)
    collapse_huge_page(mm, vma, haddr, pmd)
    return True


def _forbid_stores(mm: MmStruct, haddr: Vaddr) -> bool:
    """Let a native program store to no page of a leaf table, which is about to be copied. Return whether it still can.

    Source: Linux v6.8 mm/khugepaged.c:collapse_huge_page(): pmdp_collapse_flush() comes before the copy.
    """
    if mm.notifiers.tlb is None:
        return False
    lent = False
    for leaf in mm.page_table.walk.leaves(haddr, haddr + PMD_SIZE):
        entries = mm.page_table.walk.read(leaf)
        writable = present_mask(entries) & ((entries & u64(PTE_RW)) != 0)
        if writable.any():
            mm.pages.update_ptes(leaf, entries & ~(writable * u64(PTE_RW)))
        if mm.frames.loans is not None:
            lent |= bool(mm.frames.loans.has(pte_pfn(entries[counted_mask(entries)]).astype(np.int64)).any())
    return lent


def _may_collapse(mm: MmStruct, haddr: Vaddr) -> bool:
    """Return whether a leaf table has a writable entry (if not, Linux: SCAN_PAGE_RO)."""
    return bool((mm.page_table.walk.entries(haddr, haddr + PMD_SIZE) & u64(PTE_RW)).any())


def _refuse_missing(mm: MmStruct, haddr: Vaddr) -> None:
    """Raise SysError(EINVAL) if a page is missing: its userfaultfd has to give it (Linux: SCAN_EXCEED_NONE_PTE).

    Source: Linux v6.8 mm/khugepaged.c:hpage_collapse_scan_pmd().
    """
    entries = mm.page_table.walk.entries(haddr, haddr + PMD_SIZE)
    if ((entries == 0) | (entries & u64(PTE_SPECIAL) != 0)).any():
        raise SysError(errno.EINVAL)


def _swap_in(mm: MmStruct, vma: Vma, haddr: Vaddr) -> None:
    """Swap in all pages of a leaf table.

    Raises SysError(ENOMEM) without a frame, SysError(EAGAIN) if the pages do not fit into memory together.
    Source: Linux v6.8 mm/khugepaged.c:__collapse_huge_page_swapin() and madvise_collapse_errno().
    """
    for place in np.flatnonzero(swap_mask(mm.page_table.walk.entries(haddr, haddr + PMD_SIZE))).tolist():
        fault = handle_mm_fault(mm, vma, haddr + (place << PAGE_SHIFT), False)
        if fault & VM_FAULT_ERROR:
            raise SysError(errno.ENOMEM if fault & VM_FAULT_OOM else errno.EINVAL)
    if swap_mask(mm.page_table.walk.entries(haddr, haddr + PMD_SIZE)).any():
        raise SysError(errno.EAGAIN)


def collapse_huge_page(mm: MmStruct, vma: Vma, haddr: Vaddr, pmd: int) -> None:
    """Move the pages of a leaf table into a new huge page; the table is the one deposited for it.

    Raises SysError(ENOMEM) before any change. Source: Linux v6.8 mm/khugepaged.c:collapse_huge_page().
    """
    ram, huge = mm.frames.ram, mm.frames.huge
    try:
        head = huge.alloc(anon_flags(vma))
    except SysError:
        huge.events["thp_collapse_alloc_failed"] += 1
        raise
    huge.events["thp_collapse_alloc"] += 1
    entries = mm.page_table.walk.entries(haddr, haddr + PMD_SIZE)
    counted = np.flatnonzero(counted_mask(entries))
    for place, pfn in zip(counted.tolist(), pte_pfn(entries[counted]).tolist(), strict=True):
        ram.copy_page(head + place, pfn)
    if vma.vm_flags & VM_LOCKED:
        munlock_zapped(mm, haddr, haddr + PMD_SIZE)
    mm.pages.zap_range(haddr, haddr + PMD_SIZE)
    huge.set_anon(head, prepare_anon_vma(mm, vma), vma.page_index(haddr))
    mm.page_table.deposit_table(pmd)
    mm.pages.set_huge_pmd(pmd, haddr, make_pte(head, huge_page_prot(vma)), head)
