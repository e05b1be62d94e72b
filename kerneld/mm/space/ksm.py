"""KSM: which memory may be merged with equal pages, and which address spaces the scan has to look at.

Owns the flag of a new VMA, and the list of address spaces (`Ksm.slots`). `kerneld.mm.ksm` scans and merges.
Answers to Linux v6.8 mm/ksm.c and include/linux/ksm.h.
"""

from __future__ import annotations

from kerneld.mm.frames.frames import PG_ANON, PG_KSM, Frames
from kerneld.mm.space.ksm_state import RUN_UNMERGE, Ksm, MmSlot
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rmap import AnonVma, anon_vma_root
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_DONTEXPAND, VM_HUGETLB, VM_MAYSHARE, VM_MERGEABLE, VM_PFNMAP, VM_SHARED
from shared.uapi.page import Pfn, Vaddr

_INCOMPATIBLE = VM_SHARED | VM_MAYSHARE | VM_PFNMAP | VM_DONTEXPAND | VM_HUGETLB


def ksm_compatible(vm_flags: int) -> bool:
    """Return whether the pages of a VMA with these flags could ever be merged.

    Source: Linux v6.8 mm/ksm.c:vma_ksm_compatible().
    """
    return not vm_flags & _INCOMPATIBLE


def ksm_vma_flags(mm: MmStruct, vm_flags: int) -> int:
    """Return the VM_ flags of a new VMA, which has not merged with a neighbour.

    Source: Linux v6.8 mm/ksm.c:ksm_add_vma().
    """
    return vm_flags | VM_MERGEABLE if mm.merge_any and ksm_compatible(vm_flags) else vm_flags


def ksm_of(frames: Frames) -> Ksm:
    """Return KSM of a machine."""
    if frames.ksm is None:
        frames.ksm = Ksm()
    return frames.ksm


def ksm_enter(mm: MmStruct) -> None:
    """Have an address space scanned from now on, if it is not yet: right before the scan's present place, so last.

    While everything is unmerged, it comes to the end of the list instead, or it would be missed.
    Source: Linux v6.8 mm/ksm.c:__ksm_enter().
    """
    if mm.ksm_slot is not None:
        return
    ksm = ksm_of(mm.frames)
    slot = mm.ksm_slot = MmSlot(mm)
    ksm.slots.insert(None if ksm.settings.run == RUN_UNMERGE else ksm.scan.slot, slot)


def ksm_exit(mm: MmStruct) -> None:
    """Take an address space that is about to be taken down off the list.

    If the scan has items of it, or is at it, the scan does that, as soon as it goes on: the address space is next.
    Source: Linux v6.8 mm/ksm.c:__ksm_exit().
    """
    slot = mm.ksm_slot
    if slot is None:
        return
    ksm = ksm_of(mm.frames)
    if slot is ksm.scan.slot:
        return
    ksm.slots.remove(slot)
    if not slot.items:
        mm.ksm_slot = None
    else:
        ksm.slots.insert(ksm.slots.first if ksm.scan.slot is None else ksm.scan.slot.after, slot)


def ksm_fork(old: MmStruct, new: MmStruct) -> None:
    """Have a child scanned as its parent is.

    Differs from Linux v6.8, as Linux v6.18 does: the child's counters begin at 0, and its copies of KSM's zero pages
    are counted (mm/ksm.h:ksm_fork() there). In v6.8 the child takes over its parent's counters, and
    `ksm_zero_pages` falls below 0 when the child ends.
    """
    if old.ksm_slot is not None:
        ksm_enter(new)


def ksm_execve(mm: MmStruct) -> None:
    """Have a new program scanned, if prctl has made all memory of its process mergeable.

    Source: Linux v6.9 include/linux/ksm.h:ksm_execve(), also in v6.8.3. Before, such a program was never scanned.
    """
    if mm.merge_any:
        ksm_enter(mm)


def ksm_must_copy(frames: Frames, vma: Vma, vaddr: Vaddr, pfn: Pfn) -> bool:
    """Return whether the page of an entry that is swapped in needs a copy of the frame that the swap cache has for it.

    A page that was merged loses that when it leaves memory: read in again, it is a usual page of the first VMA that
    asks for it, and the reverse map does not lead to others. While everything is unmerged, no merged frame is mapped.
    Source: Linux v6.8 mm/ksm.c:ksm_might_need_to_copy().
    """
    flags = frames.flags_at[pfn]
    if flags & PG_KSM:
        return not frames.mapping_at[pfn] or ksm_of(frames).settings.run == RUN_UNMERGE
    if not flags & PG_ANON:
        return False
    owner = frames.find_mapping(pfn)
    if not isinstance(owner, AnonVma) or vma.anon_vma is None or frames.index_at[pfn] != vma.page_index(vaddr):
        return True
    return anon_vma_root(owner) is not anon_vma_root(vma.anon_vma)
