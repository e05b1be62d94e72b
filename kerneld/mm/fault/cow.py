"""Writes to a present entry without RW: copy-on-write, and the first write to a shared page.

`kerneld.mm.fault.fault` has the table of all faults, and what an allocation may change. Answers to Linux v6.8
mm/memory.c:do_wp_page().
"""

from __future__ import annotations

from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_MKDIRTY,
    PTE_PFN_MASK,
    PTE_RW,
    PTE_SOFT_DIRTY,
    PTE_SPECIAL,
    PTE_UNNOTICED,
    make_pte,
)
from kerneld.mm.fault.thp import unshare_huge_page
from kerneld.mm.fault.vm_fault import VM_FAULT_SIGBUS
from kerneld.mm.files.dirtying import do_page_mkwrite, note_write
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_KSM, PG_SWAPCACHE, ZERO_PFN
from kerneld.mm.frames.huge_frames import PG_LARGE
from kerneld.mm.frames.lru import munlock_folio
from kerneld.mm.frames.swap_state import folio_free_swap
from kerneld.mm.space.anon_page import new_anon_page, prepare_anon_vma
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED, VM_MAYSHARE, VM_SHARED, VM_WRITE
from shared.uapi.page import PAGE_SHIFT, Pfn, Vaddr


def do_wp_page(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int) -> int:
    """Settle a write to a present entry without RW. Source: Linux v6.8 mm/memory.c:do_wp_page()."""
    pfn = (entry & PTE_PFN_MASK) >> PAGE_SHIFT
    frames = mm.frames
    if vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        return wp_page_shared(mm, vma, vaddr, pte, entry)
    if entry & PTE_SPECIAL:
        return wp_page_copy(mm, vma, vaddr, pte, ZERO_PFN)
    if frames.flags_at[pfn] & PG_ANON and wp_can_reuse_anon(mm, vma, pfn):
        wp_page_reuse(mm, vma, vaddr, pte, entry)
        return 0
    if frames.has_merged and frames.flags_at[pfn] & PG_KSM:
        frames.vmstat["cow_ksm"] += 1
    return wp_page_copy(mm, vma, vaddr, pte, pfn)


def wp_can_reuse_anon(mm: MmStruct, vma: Vma, pfn: Pfn) -> bool:
    """Return whether an anonymous frame is exclusive to this address space.

    It becomes so if it has no other owner left. For that it gives up its slot in the swap file, if only the swap cache
    uses the slot. A frame of a huge page, or a merged one, does not become exclusive here. Source: Linux v6.8
    mm/memory.c:wp_can_reuse_anon_folio(): the frame moves to this VMA's anon_vma.
    """
    frames = mm.frames
    if frames.flags_at[pfn] & PG_ANON_EXCLUSIVE:
        return True
    if frames.flags_at[pfn] & (PG_LARGE | PG_KSM):
        return False
    if frames.flags_at[pfn] & PG_SWAPCACHE and frames.refcount_at[pfn] == 2:
        folio_free_swap(frames, pfn)
    if frames.refcount_at[pfn] != 1:
        return False
    frames.flags_at[pfn] |= PG_ANON_EXCLUSIVE
    frames.mapping_at[pfn] = prepare_anon_vma(mm, vma)
    return True


def unshare_page(mm: MmStruct, vma: Vma, vaddr: Vaddr) -> Pfn:
    """Make the anonymous page of an entry exclusive to this address space, still read-only, and return its frame.

    The zero page becomes a page of its own.

    Raises SysError(ENOMEM). Source: Linux v6.8 mm/memory.c:do_wp_page() with FAULT_FLAG_UNSHARE.
    """
    huge = unshare_huge_page(mm, vma, vaddr)
    if huge is not None:
        return huge
    pte = mm.page_table.ensure_pte(vaddr)
    entry = mm.frames.ram.words[pte]
    pfn = (entry & PTE_PFN_MASK) >> PAGE_SHIFT
    if not entry & PTE_SPECIAL and wp_can_reuse_anon(mm, vma, pfn):
        return pfn
    new = copy_of(mm, vma, vaddr, pfn)
    if vma.vm_flags & VM_LOCKED and not entry & PTE_SPECIAL:
        munlock_folio(mm.frames, pfn)
    mm.pages.replace_pte(pte, vaddr, make_pte(new, vma_page_prot(vma) | entry & PTE_SOFT_DIRTY), new)
    return new


def copy_of(mm: MmStruct, vma: Vma, vaddr: Vaddr, source: Pfn) -> Pfn:
    """Return a new anonymous frame of the VMA with the contents of another. Raises SysError(ENOMEM)."""
    frames = mm.frames
    frames.get_page(source)
    try:
        pfn = new_anon_page(mm, vma, vaddr, zero=False)
    finally:
        frames.put_page(source)
    frames.ram.copy_page(pfn, source)
    return pfn


def wp_page_reuse(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int) -> None:
    """Make an entry writable in place. Source: Linux v6.8 mm/memory.c:wp_page_reuse()."""
    bits = PTE_ACCESSED | PTE_MKDIRTY
    if vma.vm_flags & VM_WRITE:
        bits |= PTE_RW
    mm.pages.update_pte(pte, vaddr, entry | bits)


def wp_page_shared(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int) -> int:
    """Settle the first write to a clean page of a shared mapping, or to one that is to become soft-dirty.

    For a file in memory Linux takes the fault only if soft-dirty pages are looked for (PTE_UNNOTICED says that it does
    not); else the page becomes dirty when the entry goes, and the fault only notes that the real file does not have it.
    Source: Linux v6.8 mm/memory.c: wp_page_shared(), fault_dirty_shared_page().
    """
    assert vma.file is not None
    index = vma.page_index(vaddr)
    if index >= vma.file.mapping.last_index():
        return VM_FAULT_SIGBUS
    do_page_mkwrite(vma.file.mapping, index)
    wp_page_reuse(mm, vma, vaddr, pte, entry)
    if entry & PTE_UNNOTICED:
        note_write(vma.file.mapping, index)
    else:
        vma.file.mapping.mark_dirty(index, (entry & PTE_PFN_MASK) >> PAGE_SHIFT)
    return 0


def wp_page_copy(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, source: Pfn) -> int:
    """Copy a page into a new frame for the writer. Source: Linux v6.8 mm/memory.c:wp_page_copy()."""
    if source == ZERO_PFN:
        pfn = new_anon_page(mm, vma, vaddr)
    else:
        pfn = copy_of(mm, vma, vaddr, source)
        if vma.vm_flags & VM_LOCKED:
            munlock_folio(mm.frames, source)
    mm.pages.replace_pte(pte, vaddr, make_pte(pfn, copy_prot(vma)), pfn)
    return 0


def copy_prot(vma: Vma) -> int:
    """Return the bits of an entry for a copy that a write has made (not of a VMA without VM_WRITE: FOLL_FORCE)."""
    return vma_page_prot(vma) | (PTE_RW | PTE_MKDIRTY if vma.vm_flags & VM_WRITE else PTE_MKDIRTY)
