"""Gives merged pages frames of their own again: for MADV_UNMERGEABLE, prctl, mremap, and 2 in /sys/kernel/mm/ksm/run.

The items of these pages stay where they are: the next scan, or the end of the whole, removes them.
Answers to Linux v6.8 mm/ksm.c: break_ksm(), unmerge_ksm_pages(), unmerge_and_remove_all_rmap_items(),
ksm_enable_merge_any(), ksm_disable_merge_any().
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.hw.paging import counted_mask, pte_pfn
from kerneld.mm.fault.cow import unshare_page
from kerneld.mm.frames.frames import PG_KSM, Frames
from kerneld.mm.ksm.items import drop_last_items, remove_slot
from kerneld.mm.ksm.stable import remove_all_stable_nodes
from kerneld.mm.space.ksm import ksm_enter, ksm_of, ksm_vma_flags
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.space.pagewalk import Words
from kerneld.mm.space.rss import is_ksm_zero
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_MERGEABLE
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, TASK_SIZE, Vaddr

_PART_BYTES = PMD_SIZE // 4
"""A piece of this length takes about a millisecond if every page of it is merged."""


def break_ksm(mm: MmStruct, vma: Vma, address: Vaddr) -> None:
    """Give a page a frame of its own if it is merged, or has a zero page of KSM's; read-only, until it is written.

    Raises SysError(ENOMEM). Source: Linux v6.8 mm/ksm.c:break_ksm().
    """
    pte = mm.page_table.find_pte(address)
    if pte is not None and _are_merged(mm, mm.frames.ram.words_np[pte : pte + 1])[0]:
        unshare_page(mm, vma, address)


def _are_merged(mm: MmStruct, entries: Words) -> npt.NDArray[np.bool_]:
    """Return for each entry whether it maps a merged frame, or a zero page of KSM's."""
    merged = is_ksm_zero(entries)
    counted = np.flatnonzero(counted_mask(entries))
    merged[counted[mm.frames.has(pte_pfn(entries[counted]).astype(np.int64), PG_KSM)]] = True
    return merged


def unmerge_ksm_pages(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Give all merged pages of [start, end), page-aligned, a part of a VMA, frames of their own.

    Raises SysError(ENOMEM); some pages are then still merged. Source: Linux v6.8 mm/ksm.c:unmerge_ksm_pages().
    """
    if not mm.frames.has_merged and not mm.frames.ksm_zero_pages:
        return
    for leaf in mm.page_table.walk.leaves(start, end):
        if not leaf.huge:
            merged = _are_merged(mm, mm.page_table.walk.read(leaf))
            for place in np.flatnonzero(merged).tolist():
                # Reclaim may have swapped the page out since.
                break_ksm(mm, vma, leaf.start + (place << PAGE_SHIFT))


def unmerge_in_pieces(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> Steps:
    """Do the same as `unmerge_ksm_pages`, and yield when other clients may be served.

    The caller must keep other threads from changing the VMA: Linux holds mmap_lock.
    """
    if not mm.frames.has_merged and not mm.frames.ksm_zero_pages:
        return
    pace = Pace()
    while start < end:
        stop = pace.far_stop(mm.page_table.walk, start, end, _PART_BYTES)
        unmerge_ksm_pages(mm, vma, start, stop)
        start = stop
        if start < end and pace.is_over():
            yield
            pace.begin()


def set_merge_any(mm: MmStruct, merge_any: bool) -> Steps:
    """Let all memory of an address space, present and future, be mergeable; or none of it, if all was.

    No VMA merges with its neighbour, though their flags are equal now. What was merged gets frames of its own; without
    memory for them everything is mergeable again, and SysError(ENOMEM) is raised. Yields when other clients may be
    served; the caller must keep other threads of the process from changing it.
    Source: Linux v6.8 mm/ksm.c:ksm_enable_merge_any(), ksm_disable_merge_any().
    """
    if mm.merge_any == merge_any:
        return
    if not merge_any:
        try:
            yield from _set_flags(mm, merge_any=False)
        except SysError:
            yield from _set_flags(mm, merge_any=True)
            raise
        mm.merge_any = False
        return
    ksm_enter(mm)
    mm.merge_any = True
    yield from _set_flags(mm, merge_any=True)


def _set_flags(mm: MmStruct, *, merge_any: bool) -> Steps:
    """Source: Linux v6.8 mm/ksm.c:ksm_add_vmas(), ksm_del_vmas()."""
    pace = Pace()
    vma = mm.vmas.find(0)
    while vma is not None:
        end = vma.end
        vm_flags = ksm_vma_flags(mm, vma.vm_flags) if merge_any else vma.vm_flags & ~VM_MERGEABLE
        if vm_flags != vma.vm_flags:
            if not merge_any:
                yield from unmerge_in_pieces(mm, vma, vma.start, vma.end)
            mm.set_vma_flags(vma, vm_flags)
        if pace.is_over():
            yield
            pace.begin()
        vma = mm.vmas.find(end)


def unmerge_and_remove_all_rmap_items(frames: Frames) -> Steps:
    """Unmerge everything on the machine, and forget all scanned pages; address spaces stay on the list.

    Yields when other clients may be served. Raises SysError(ENOMEM); the rest is then as it was.
    Source: Linux v6.8 mm/ksm.c:unmerge_and_remove_all_rmap_items().
    """
    ksm = ksm_of(frames)
    scan = ksm.scan
    scan.slot = ksm.slots.first
    try:
        while scan.slot is not None:
            slot = scan.slot
            yield from _unmerge_mm(slot.mm)
            while not drop_last_items(ksm, frames, slot, 0):
                yield
            scan.slot = slot.after
            if slot.mm.is_dying:
                remove_slot(ksm, slot)
    finally:
        scan.slot = None
    # A frame that another program still maps keeps its node.
    yield from remove_all_stable_nodes(ksm, frames)
    scan.seqnr = 0


def _unmerge_mm(mm: MmStruct) -> Steps:
    """Unmerge all pages of an address space, which may change meanwhile; yield when other clients may be served."""
    pace, address = Pace(), 0
    while not mm.is_dying and (vma := mm.vmas.find(address)) is not None:
        start = max(address, vma.start)
        stop = vma.end
        if vma.vm_flags & VM_MERGEABLE and vma.anon_vma is not None:
            stop = pace.far_stop(mm.page_table.walk, start, vma.end, _PART_BYTES)
            unmerge_ksm_pages(mm, vma, start, stop)
        address = stop
        if address < TASK_SIZE and pace.is_over():
            yield
            pace.begin()
