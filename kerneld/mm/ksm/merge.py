"""Merges one page: makes its entry read-only, compares its contents, and gives its entry the merged frame.

A page is first made read-only everywhere, also for a native program (`kerneld.tlb`), and only then compared: nothing
can change it between the comparison and the replacement. If the program may still write to it (it is lent), the next
scan tries again. Answers to Linux v6.8 mm/ksm.c: write_protect_page(), replace_page(), try_to_merge_one_page(),
try_to_merge_with_ksm_page(), try_to_merge_two_pages().
"""

from __future__ import annotations

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_DIRTY, PTE_MKDIRTY, PTE_RW, PTE_SPECIAL, make_pte, pte_pfn, pte_present
from kerneld.mm.frames.frames import (
    PG_ANON,
    PG_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_KSM,
    PG_SWAPCACHE,
    ZERO_PFN,
    Frames,
)
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from kerneld.mm.frames.lru import folio_mark_accessed, mlock_folio, munlock_folio
from kerneld.mm.ksm.contents import page_bytes
from kerneld.mm.ksm.items import find_mergeable_vma, remove_rmap_item_from_tree
from kerneld.mm.ksm.unmerge import break_ksm
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.ksm_state import Ksm, RmapItem
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.split_folio import has_crowd, split_folio
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import Pfn, Vaddr


def write_protect_page(mm: MmStruct, address: Vaddr, pfn: Pfn) -> int | None:
    """Make the entry of a page read-only and clean, and return the entry's word index; None if that cannot be.

    It cannot be if the page is not there any more, is merged already, or is held by a call.
    Source: Linux v6.8 mm/ksm.c:write_protect_page().
    """
    frames = mm.frames
    pte = mm.page_table.find_pte(address)
    entry = 0 if pte is None else frames.ram.words[pte]
    flags = frames.flags_at[pfn]
    if pte is None or not pte_present(entry) or pte_pfn(entry) != pfn or flags & PG_KSM:
        return None
    if entry & (PTE_RW | PTE_DIRTY) or flags & PG_ANON_EXCLUSIVE:
        swapped = flags & PG_SWAPCACHE != 0
        if frames.mapcount_at[pfn] + swapped != frames.refcount_at[pfn]:
            return None
        frames.flags_at[pfn] = flags & ~PG_ANON_EXCLUSIVE | (PG_DIRTY if entry & PTE_DIRTY else 0)
        mm.pages.update_pte(pte, address, entry & ~(PTE_RW | PTE_DIRTY))
    return pte


def replace_page(mm: MmStruct, vma: Vma, address: Vaddr, pte: int, pfn: Pfn, kpfn: Pfn) -> None:
    """Let the write-protected entry of a page map the merged frame `kpfn` instead, or the zero page.

    Source: Linux v6.8 mm/ksm.c:replace_page(). KSM's entry of the zero page is dirty: so it can be told from others.
    """
    frames, prot = mm.frames, vma_page_prot(vma)
    locked = vma.vm_flags & VM_LOCKED
    if locked:
        munlock_folio(frames, pfn)
    if kpfn == ZERO_PFN:
        mm.pages.replace_pte(pte, address, make_pte(ZERO_PFN, prot | PTE_SPECIAL | PTE_MKDIRTY), ZERO_PFN)
        return
    frames.get_page(kpfn)
    if locked:
        mlock_folio(frames, kpfn)
    mm.pages.replace_pte(pte, address, make_pte(kpfn, prot), kpfn)


def try_to_merge_one_page(
    mm: MmStruct, vma: Vma, address: Vaddr, pfn: Pfn, kpfn: Pfn | None, other: Pfn | None = None
) -> bool:
    """Let a page map the merged frame `kpfn`; None: make its own frame a merged one. Return whether it is done.

    A frame of a huge page is split off first. That fails if `other`, which the caller holds, is of the same huge page.
    If very many map it, the scan splits it in pieces, and merges it the next time.
    Source: Linux v6.8 mm/ksm.c:try_to_merge_one_page().
    """
    frames = mm.frames
    if pfn == kpfn:
        return True  # A child has it.
    flags = frames.flags_at[pfn]
    if not flags & PG_ANON:
        return False
    if flags & PG_LARGE:
        if other is not None and are_of_one_huge_page(frames, pfn, other):
            return False
        if has_crowd(frames, pfn):
            ksm_of(frames).to_split.append(pfn)
            return False
        split_folio(frames, pfn)
    pte = write_protect_page(mm, address, pfn)
    if pte is None or frames.is_lent(pfn):
        return False
    if kpfn is None:
        _set_merged(frames, pfn)
    elif page_bytes(frames, pfn) == page_bytes(frames, kpfn):
        replace_page(mm, vma, address, pte, pfn, kpfn)
    else:
        return False
    return True


def _set_merged(frames: Frames, pfn: Pfn) -> None:
    """Make a frame a merged one, without a stable node yet."""
    frames.has_merged = True
    folio_mark_accessed(frames, pfn)
    # Reclaim drops a clean frame: a merged one must be written to the swap file.
    frames.flags_at[pfn] |= PG_KSM | PG_DIRTY
    frames.mapping_at[pfn] = 0


def are_of_one_huge_page(frames: Frames, pfn: Pfn, other: Pfn) -> bool:
    """Return whether two frames are of the same huge page."""
    is_large = frames.flags_at[pfn] & frames.flags_at[other] & PG_LARGE
    return is_large != 0 and pfn & -HPAGE_PMD_NR == other & -HPAGE_PMD_NR


def try_to_merge_with_ksm_page(
    ksm: Ksm, frames: Frames, item: RmapItem, pfn: Pfn, kpfn: Pfn | None, other: Pfn | None = None
) -> bool:
    """Merge the page of an item, as `try_to_merge_one_page` does, and note its anon_vma. Return whether it is done.

    Source: Linux v6.8 mm/ksm.c:try_to_merge_with_ksm_page().
    """
    vma = find_mergeable_vma(item.mm, item.address)
    if vma is None or not try_to_merge_one_page(item.mm, vma, item.address, pfn, kpfn, other):
        return False
    remove_rmap_item_from_tree(ksm, frames, item)
    item.anon_vma, item.index = vma.anon_vma, vma.page_index(item.address)
    return True


def try_to_merge_two_pages(ksm: Ksm, frames: Frames, item: RmapItem, pfn: Pfn, tree: RmapItem, tree_pfn: Pfn) -> bool:
    """Make the frame of an item a merged one, and let the page of the other item map it. Return whether it is done.

    Source: Linux v6.8 mm/ksm.c:try_to_merge_two_pages().
    """
    if not try_to_merge_with_ksm_page(ksm, frames, item, pfn, None, tree_pfn):
        return False
    if try_to_merge_with_ksm_page(ksm, frames, tree, tree_pfn, pfn):
        return True
    break_cow(item)
    return False


def break_cow(item: RmapItem) -> None:
    """Give the page of an item, which is at no stable node, a frame of its own again, as far as memory allows.

    Source: Linux v6.8 mm/ksm.c:break_cow(): the next scan tries again.
    """
    item.anon_vma = None
    vma = find_mergeable_vma(item.mm, item.address)
    if vma is not None:
        try:
            break_ksm(item.mm, vma, item.address)
        except SysError:
            return
