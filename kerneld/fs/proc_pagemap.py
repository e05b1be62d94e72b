"""/proc/PID/pagemap: a 64-bit word for each page of the address space.

It is read in windows: the whole file has 256 GiB. Answers to Linux v6.8 fs/proc/task_mmu.c: pagemap_read(),
pte_to_pagemap_entry(), and Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.hw.paging import (
    PTE_SOFT_DIRTY,
    PTE_SPECIAL,
    PTE_SWP_SOFT_DIRTY,
    entry_pfn,
    present_mask,
    pte_pfn,
    swap_mask,
    swp_offset,
)
from kerneld.hw.scalars import u64
from kerneld.mm.frames.frames import PG_ANON, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_SOFTDIRTY
from shared.uapi.page import PAGE_SHIFT, TASK_SIZE, Vaddr

ENTRY_BYTES = 8
_MAX_SWAPFILES_SHIFT = 5
PM_SOFT_DIRTY = 1 << 55
PM_MMAP_EXCLUSIVE = 1 << 56
PM_FILE = 1 << 61
PM_SWAP = 1 << 62
PM_PRESENT = 1 << 63


def read_pagemap(mm: MmStruct, offset: int, length: int, *, show_pfn: bool) -> bytes:
    """Return the words of the pages from offset / 8 on. Frame numbers are 0 without `show_pfn`.

    Raises SysError(EINVAL) unless offset and length are multiples of 8.
    """
    if offset % ENTRY_BYTES or length % ENTRY_BYTES:
        raise SysError(errno.EINVAL)
    start = min(offset // ENTRY_BYTES << PAGE_SHIFT, TASK_SIZE)
    end = min(start + (length // ENTRY_BYTES << PAGE_SHIFT), TASK_SIZE)
    entries = mm.page_table.walk.entries(start, end)
    words = np.zeros(len(entries), dtype=np.uint64)
    present = present_mask(entries)
    words[present] = PM_PRESENT
    swapped = swap_mask(entries)
    words[swapped] = PM_SWAP
    if show_pfn:
        # The type of the swap file, 0, in the five lowest bits, the offset above them.
        words[swapped] |= swp_offset(entries[swapped]) << u64(_MAX_SWAPFILES_SHIFT)
    soft_dirty = (present & ((entries & u64(PTE_SOFT_DIRTY)) != 0)) | (
        swapped & ((entries & u64(PTE_SWP_SOFT_DIRTY)) != 0)
    )
    words[soft_dirty] |= u64(PM_SOFT_DIRTY)
    pfns = pte_pfn(entries).astype(np.int64)
    if show_pfn:
        words[present] |= pfns[present].astype(np.uint64)
    # The shared zero page is neither a file page nor exclusive (Linux: vm_normal_page() returns none for it).
    counted = present & ((entries & PTE_SPECIAL) == 0)
    counted_pfns = pfns[counted]
    flags = np.where(~mm.frames.has(counted_pfns, PG_ANON), u64(PM_FILE), u64(0))
    flags |= np.where(mm.frames.mapcount[counted_pfns] == 1, u64(PM_MMAP_EXCLUSIVE), u64(0))
    words[counted] |= flags
    if mm.page_table.deposited:
        _huge_pages(mm, start, end, words)
    for vma in mm.vmas.overlapping(start, end):
        if vma.vm_flags & VM_SOFTDIRTY:
            first = (max(start, vma.start) - start) >> PAGE_SHIFT
            last = (min(end, vma.end) - start) >> PAGE_SHIFT
            words[first:last] |= u64(PM_SOFT_DIRTY)
    return words.tobytes()


def _huge_pages(mm: MmStruct, start: Vaddr, end: Vaddr, words: npt.NDArray[np.uint64]) -> None:
    """Set the words of pages in huge pages: bit 56 is that of the first page; the huge zero page is not anonymous.

    Source: Linux v6.8 fs/proc/task_mmu.c:pagemap_pmd_range().
    """
    for leaf in mm.page_table.walk.leaves(start, end):
        if leaf.huge:
            entry = mm.frames.ram.words[leaf.low]
            is_zero = entry & PTE_SPECIAL
            pfns = np.arange(entry_pfn(entry, leaf.start), entry_pfn(entry, leaf.end - 1) + 1)
            exclusive = huge_exclusive(mm.frames, pfns) & (not is_zero)
            run = words[(leaf.start - start) >> PAGE_SHIFT : (leaf.end - start) >> PAGE_SHIFT]
            run &= u64(~(PM_FILE | PM_MMAP_EXCLUSIVE))
            run |= u64(PM_FILE if is_zero else 0) | exclusive * u64(PM_MMAP_EXCLUSIVE)


def huge_exclusive(frames: Frames, pfns: Pfns) -> npt.NDArray[np.bool_]:
    """Return for frames of one huge page, which an entry of 2 MiB maps, whether they count as mapped once.

    Source: Linux v6.8 fs/proc/task_mmu.c:pagemap_pmd_range(): the first page decides for all.
    """
    return np.full(len(pfns), frames.mapcount_at[int(pfns[0]) & -HPAGE_PMD_NR] == 1)
