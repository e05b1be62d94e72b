"""Rules of newer kernels for swap, which replace kerneld's own while the referee runs (`known`)."""

from __future__ import annotations

from kerneld.hw.paging import PTE_RW, PTE_SOFT_DIRTY, pte_pfn
from kerneld.mm.fault import fault
from kerneld.mm.fault.vm_fault import VM_FAULT_ERROR
from kerneld.mm.frames import swap_state
from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE, PG_DIRTY, Frames
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma, vma_soft_dirty_enabled
from kerneld.mm.vm_flags import VM_WRITE
from shared.uapi.page import Pfn, Vaddr

_do_swap_page_v6_8 = fault.do_swap_page
_read_swap_cache_v6_8 = swap_state.read_swap_cache


def do_swap_page(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int, write: bool) -> int:
    """A page that only the reader has becomes writable at once, unless a write has to make it soft-dirty.

    Source: Linux v6.11 mm/memory.c: do_swap_page(), pte_needs_soft_dirty_wp().
    """
    result = _do_swap_page_v6_8(mm, vma, vaddr, pte, entry, write)
    now = mm.frames.ram.words[pte]
    is_ours = not result & VM_FAULT_ERROR and mm.frames.flags_at[pte_pfn(now)] & PG_ANON_EXCLUSIVE
    is_seen = now & PTE_SOFT_DIRTY or not vma_soft_dirty_enabled(vma)
    if is_ours and is_seen and vma.vm_flags & VM_WRITE:
        mm.pages.update_pte(pte, vaddr, now | PTE_RW)
    return result


def read_swap_cache(frames: Frames, slot: int) -> Pfn:
    """zswap drops a page when it is read: so the page is dirty. Pages of zeros are clean, because zswap never had them.

    Source: Linux v6.8 mm/zswap.c:zswap_load() with zswap_exclusive_loads_enabled, v6.12 mm/page_io.c (zeromap).
    """
    pfn = _read_swap_cache_v6_8(frames, slot)
    if frames.ram.frames_np[pfn].any():
        frames.flags_at[pfn] |= PG_DIRTY
    return pfn
