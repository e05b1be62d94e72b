"""fork: a copy of an address space whose private pages are shared until somebody writes.

Answers to Linux v6.8 kernel/fork.c:dup_mmap() and mm/memory.c:copy_page_range(), copy_present_pte().

| VMA of the parent                   | in the child                                                          |
|-------------------------------------|-----------------------------------------------------------------------|
| VM_DONTCOPY                         | absent                                                                |
| VM_WIPEONFORK                       | present, empty                                                        |
| without an anon_vma                 | present, empty: its pages can be faulted in again from the file       |
| shared                              | present, empty (likewise)                                             |
| private with an anon_vma            | same frames and swap slots, both sides write-protected                |
"""

from __future__ import annotations

import numpy as np

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_DIRTY, PTE_RW, PTE_SPECIAL, PTE_SWP_EXCLUSIVE, present_mask, pte_pfn, swap_mask
from kerneld.mm.frames import PG_ANON, PG_ANON_EXCLUSIVE
from kerneld.mm.mm import MmStruct
from kerneld.mm.munmap import exit_mmap
from kerneld.mm.overcommit import check_enough_memory
from kerneld.mm.pagetable import Leaf
from kerneld.mm.pte_ops import Rss
from kerneld.mm.rmap import anon_vma_fork
from kerneld.mm.vm_flags import VM_ACCOUNT, VM_DONTCOPY, VM_LOCKED_MASK, VM_SHARED, VM_WIPEONFORK
from kerneld.mm.vma import Vma

_U64 = (1 << 64) - 1
_COPIED = (
    "mmap_base", "start_brk", "brk", "start_stack", "start_code", "end_code", "start_data", "end_data",
    "arg_start", "arg_end", "env_start", "env_end", "exe_path", "has_cap_sys_admin",
)  # fmt: skip


def dup_mmap(old: MmStruct) -> MmStruct:
    """Return the child's address space; the parent's private pages become write-protected.

    Raises SysError(ENOMEM), with the half-made child gone again; the parent's pages may stay write-protected then.
    """
    new = MmStruct(old.frames, old.rlimits.copy(), old.sysctl)
    try:
        for name in _COPIED:
            setattr(new, name, getattr(old, name))
        for vma in old.vmas:
            if not vma.vm_flags & VM_DONTCOPY:
                _dup_vma(old, new, vma)
    except SysError:
        exit_mmap(new)
        raise
    return new


def _dup_vma(old: MmStruct, new: MmStruct, vma: Vma) -> None:
    if vma.vm_flags & VM_ACCOUNT:
        check_enough_memory(old, vma.nr_pages)
    child = Vma(vma.start, vma.end, vma.vm_flags & ~VM_LOCKED_MASK, vma.pgoff, vma.file)
    wiped = vma.vm_flags & VM_WIPEONFORK
    if not wiped:
        anon_vma_fork(child, vma, new.frames)
    new.insert_vma(child)
    if not wiped and vma.anon_vma is not None:
        copy_page_range(old, new, vma)


def _copy_swap_ptes(old: MmStruct, new: MmStruct, leaf: Leaf, low: int) -> None:
    """What is swapped out belongs to both from now on. Source: Linux v6.8 mm/memory.c:copy_nonpresent_pte()."""
    entries = old.frames.ram.words_np[leaf.low : leaf.high]
    swapped = swap_mask(entries)
    if swapped.any():
        shared = entries & np.uint64(~PTE_SWP_EXCLUSIVE & _U64)
        old.write_ptes(leaf.low, leaf.start, np.where(swapped, shared, entries))
        new.copy_swap_ptes(low, leaf.start, np.where(swapped, shared, np.uint64(0)))


def copy_page_range(old: MmStruct, new: MmStruct, vma: Vma) -> None:
    """Give the child the parent's entries of a VMA, one leaf table at a time. Raises SysError(ENOMEM).

    The write-protection of both sides is what makes the next write of either copy. Source: Linux v6.8
    mm/memory.c:copy_present_pte(): in a shared VMA entries stay writable, but the child's are clean.
    """
    frames = old.frames
    words_np = frames.ram.words_np
    shared = vma.vm_flags & VM_SHARED
    for found in old.page_table.leaves(vma.start, vma.end):
        leaf = found
        if leaf.huge:
            if old.copy_huge_pmd(new, leaf):
                continue
            leaf = next(old.page_table.leaves(leaf.start, leaf.end))
        entries = words_np[leaf.low : leaf.high]
        if not entries.any():
            continue
        # Before anything is read: to make a table may reclaim pages of the parent.
        low = new.page_table.ensure_pte(leaf.start)
        _copy_swap_ptes(old, new, leaf, low)
        present = present_mask(entries)
        if not present.any():
            continue
        if not shared:
            protected = entries & np.uint64(~PTE_RW & _U64)
            old.write_ptes(leaf.low, leaf.start, np.where(present, protected, entries))
        copied = np.where(present, words_np[leaf.low : leaf.high], np.uint64(0))
        if shared:
            copied &= np.uint64(~PTE_DIRTY & _U64)
        counted = copied[present & ((copied & np.uint64(PTE_SPECIAL)) == 0)]
        pfns = pte_pfn(counted).astype(np.int64)
        flags = frames.flags[pfns]
        anon = (flags & np.uint32(PG_ANON)) != 0
        frames.flags[pfns[anon]] &= np.uint32(~PG_ANON_EXCLUSIVE & (1 << 32) - 1)
        frames.refcount[pfns] += 1
        nr_anon = int(np.count_nonzero(anon))
        kind = Rss.SHMEM if vma.file is not None and vma.file.mapping.is_shmem else Rss.FILE
        new.rss[kind] += len(pfns) - nr_anon
        new.map_pages(low, leaf.start, copied, pfns, Rss.ANON)
        new.rss[Rss.ANON] -= len(pfns) - nr_anon
