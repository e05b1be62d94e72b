"""KSM: which memory may be merged with equal pages. Nothing is ever merged here: KSM does not run.

Linux searches for equal pages only after somebody has written 1 to /sys/kernel/mm/ksm/run; its default is 0. So what
is left are the flags: VM_MERGEABLE of a VMA, by madvise, and `mm.merge_any` of an address space, by prctl. The list of
address spaces to search (MMF_VM_MERGEABLE, __ksm_enter()) would have no reader, so there is none. Answers to Linux v6.8
mm/ksm.c.
"""

from __future__ import annotations

from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.vm_flags import VM_DONTEXPAND, VM_HUGETLB, VM_MAYSHARE, VM_MERGEABLE, VM_PFNMAP, VM_SHARED

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


def set_merge_any(mm: MmStruct, merge_any: bool) -> Steps:
    """Let all memory of an address space, present and future, be mergeable; or none of it, if all was.

    No VMA merges with its neighbour, though their flags are equal now. Yields when other clients may be served.
    Source: Linux v6.8 mm/ksm.c:ksm_enable_merge_any(), ksm_disable_merge_any().
    """
    if mm.merge_any == merge_any:
        return
    mm.merge_any = merge_any
    pace = Pace()
    vma = mm.vmas.find(0)
    while vma is not None:
        end = vma.end
        vm_flags = ksm_vma_flags(mm, vma.vm_flags) if merge_any else vma.vm_flags & ~VM_MERGEABLE
        if vm_flags != vma.vm_flags:
            mm.set_vma_flags(vma, vm_flags)
        if pace.is_over():
            yield
            pace.begin()
        vma = mm.vmas.find(end)
