"""Transparent huge pages: faults that map, write to or age 2 MiB of anonymous memory at once.

Owns the decision where huge pages are used; entries are set by `mm.pages`, frames are `HugeFrames`'s. Answers to
Linux v6.8 mm/huge_memory.c: thp_vma_allowable_order(), do_huge_pmd_anonymous_page(), do_huge_pmd_wp_page(),
huge_pmd_set_accessed(), and mm/memory.c:__handle_mm_fault().

| 2 MiB around the fault           | read                               | write                                        |
|----------------------------------|------------------------------------|----------------------------------------------|
| empty; one VMA, which may        | huge zero page                     | new zeroed huge page                         |
| … and no huge page can be had    | as without huge pages              | as without huge pages                        |
| huge zero page                   | made young                         | split, then one page is copied               |
| huge page, writable              | made young                         | made young and dirty                         |
| huge page, not writable          | made young                         | made writable if exclusive, else as above    |
A VMA may have huge pages if it is anonymous and private, has no MADV_NOHUGEPAGE (MAP_STACK sets that too), and the
setting is `always`, or it is `madvise` and the VMA has MADV_HUGEPAGE.

Differs from Linux: there is no khugepaged; memory becomes huge at a fault or by MADV_COLLAPSE. Only 2 MiB, no size
between (Linux's default too). Files and shared anonymous memory never get huge pages (shmem_enabled `never`). No prctl
turns huge pages off for a process. A new stack is laid out at its place, so there is no temporary one to spare.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from kerneld.errors import SysError
from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_MKDIRTY,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    PTE_SPECIAL,
    entry_pfn,
    make_pte,
    pte_pfn,
)
from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space.anon_page import anon_flags, prepare_anon_vma
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.pagewalk import Leaf
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_HUGEPAGE, VM_NOHUGEPAGE, VM_UFFD_MISSING, VM_WRITE
from shared.uapi.page import PMD_SIZE, Pfn, Vaddr

_U64 = (1 << 64) - 1


def thp_vma_allowable(mm: MmStruct, vma: Vma, *, enforce_sysfs: bool = True) -> bool:
    """Return whether a VMA of any length may have huge pages; without `enforce_sysfs`, ignore the setting `--thp`.

    Source: Linux v6.8 mm/huge_memory.c:__thp_vma_allowable_orders().
    """
    if vma.file is not None or vma.vm_flags & VM_NOHUGEPAGE or mm.thp_disabled:
        return False
    enabled = mm.sysctl.transparent_hugepage
    return (
        not enforce_sysfs
        or enabled is TransparentHugepage.ALWAYS
        or (enabled is TransparentHugepage.MADVISE and vma.vm_flags & VM_HUGEPAGE != 0)
    )


def thp_vma_suitable(vma: Vma, vaddr: Vaddr) -> bool:
    """Return whether all of the 2 MiB around an address lie in a VMA.

    The sums wrap as those of 64-bit words do: 2 MiB below the end of a VMA in the first 2 MiB is the top of the address
    space, and counts as suitable. Source: Linux v6.8 include/linux/huge_mm.h:thp_vma_suitable_order().
    """
    haddr = vaddr & -PMD_SIZE & _U64
    return vma.start <= haddr and (haddr + PMD_SIZE & _U64) <= vma.end


def thp_eligible(mm: MmStruct, vma: Vma) -> bool:
    """Return whether a VMA may have huge pages and has room for one: `THPeligible` of /proc/PID/smaps."""
    return thp_vma_allowable(mm, vma) and thp_vma_suitable(vma, vma.end - PMD_SIZE)


def may_have_huge_pages(mm: MmStruct, vma: Vma) -> bool:
    """Return whether a VMA may have a huge page, now or after a fault; a range operation asks this once."""
    return vma.file is None and (bool(mm.page_table.deposited) or thp_vma_allowable(mm, vma))


def handle_huge_fault(mm: MmStruct, vma: Vma, vaddr: Vaddr, write: bool) -> bool:
    """Settle a fault in anonymous memory at an address without a leaf table by a huge page, or return False.

    After False, the caller can make a leaf table there. Raises SysError(ENOMEM). Source:
    mm/memory.c:__handle_mm_fault().
    """
    haddr = vaddr & -PMD_SIZE
    pmd = mm.page_table.find_huge_pmd(vaddr)
    if pmd is None:
        if vma.vm_flags & VM_UFFD_MISSING or not thp_vma_allowable(mm, vma) or not thp_vma_suitable(vma, vaddr):
            return False
        return do_huge_pmd_anonymous_page(mm, vma, haddr, write)
    entry = mm.frames.ram.words[pmd]
    if write and not entry & PTE_RW:
        return do_huge_pmd_wp_page(mm, vma, haddr, pmd)
    mm.pages.update_huge_pmd(pmd, haddr, entry | PTE_ACCESSED | (PTE_MKDIRTY if write else 0))
    return True


def do_huge_pmd_anonymous_page(mm: MmStruct, vma: Vma, haddr: Vaddr, write: bool) -> bool:
    """Map a new huge page at an empty entry, or for a read the huge zero page; False if no huge page is free.

    Raises SysError(ENOMEM) if there is no frame even for a page table.
    Source: Linux v6.8 mm/huge_memory.c:do_huge_pmd_anonymous_page().
    """
    number = prepare_anon_vma(mm, vma)
    pmd = mm.page_table.ensure_pmd(haddr)
    mm.page_table.deposit_new()
    huge = mm.frames.huge
    try:
        if not write:
            mm.pages.set_huge_zero_pmd(pmd, haddr, vma_page_prot(vma))
            return True
        head = huge.alloc(anon_flags(vma))
    except SysError as error:
        mm.page_table.free_deposit()
        huge.events["thp_fault_fallback"] += 1
        if error.errno != errno.ENOMEM:
            raise
        return False
    huge.events["thp_fault_alloc"] += 1
    huge.set_anon(head, number, vma.page_index(haddr))
    mm.pages.set_huge_pmd(pmd, haddr, make_pte(head, huge_page_prot(vma)), head)
    return True


def huge_page_prot(vma: Vma) -> int:
    """Return the entry bits of a new huge page: dirty, and writable if the VMA is (Linux: maybe_pmd_mkwrite())."""
    return vma_page_prot(vma) | PTE_PSE | PTE_MKDIRTY | (PTE_RW if vma.vm_flags & VM_WRITE else 0)


def do_huge_pmd_wp_page(mm: MmStruct, vma: Vma, haddr: Vaddr, pmd: int) -> bool:
    """Settle a write to a huge page without RW: make it writable if this address space is its only owner, else split
    it.

    Source: Linux v6.8 mm/huge_memory.c:do_huge_pmd_wp_page().
    """
    entry = mm.frames.ram.words[pmd]
    if entry & PTE_SPECIAL or not _can_reuse(mm, vma, pte_pfn(entry)):
        mm.pages.split_huge_pmd(pmd, haddr)
        return False
    bits = PTE_ACCESSED | PTE_MKDIRTY | (PTE_RW if vma.vm_flags & VM_WRITE else 0)
    mm.pages.update_huge_pmd(pmd, haddr, entry | bits)
    return True


def _can_reuse(mm: MmStruct, vma: Vma, head: Pfn) -> bool:
    """Return whether a huge page is exclusive to this address space; it becomes so if it has no other owner left."""
    frames = mm.frames
    run = slice(head, head + HPAGE_PMD_NR)
    if not frames.flags_at[head] & PG_ANON_EXCLUSIVE and frames.refcount[run].max() == 1:
        frames.set(run, PG_ANON_EXCLUSIVE)
        frames.mapping[run] = prepare_anon_vma(mm, vma)
    return frames.flags_at[head] & PG_ANON_EXCLUSIVE != 0


def unshare_huge_page(mm: MmStruct, vma: Vma, vaddr: Vaddr) -> Pfn | None:
    """Make the anonymous huge page at an address exclusive to this address space and return the frame of that address.

    Returns None if there is no huge page, or no longer: a huge page with other owners is split.
    Source: Linux v6.8 mm/huge_memory.c:do_huge_pmd_wp_page() with FAULT_FLAG_UNSHARE.
    """
    pmd = mm.page_table.find_huge_pmd(vaddr)
    if pmd is None:
        return None
    entry = mm.frames.ram.words[pmd]
    if _can_reuse(mm, vma, pte_pfn(entry)):
        return entry_pfn(entry, vaddr)
    mm.pages.split_huge_pmd(pmd, vaddr & -PMD_SIZE)
    return None


def fault_in_huge(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, write: bool) -> Iterator[Leaf]:
    """Yield the huge pages, faulted in, and the leaf tables of [start, end), a part of an anonymous VMA, in order.

    A huge page is made wherever one can serve the access; elsewhere a missing leaf table is made, empty.
    Raises SysError(ENOMEM).
    """
    while start < end:
        stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
        if mm.page_table.find_pte(start) is None and _fault_in_one(mm, vma, start, write):
            yield from mm.page_table.walk.leaves(start, stop)
        else:
            yield from mm.page_table.ensure_leaves(start, stop)
        start = stop


def _fault_in_one(mm: MmStruct, vma: Vma, vaddr: Vaddr, write: bool) -> bool:
    """Fault a huge page in if possible, count the fault, and return whether a huge page serves the access now."""
    needed = PTE_PRESENT | PTE_RW if write else PTE_PRESENT
    pmd = mm.page_table.find_huge_pmd(vaddr)
    if pmd is not None and mm.frames.ram.words[pmd] & needed == needed:
        return True
    settled = handle_huge_fault(mm, vma, vaddr, write)
    mm.range_faults += settled
    return settled
