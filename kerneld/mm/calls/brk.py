"""brk: the heap grows and shrinks at its end.

Answers to Linux v6.8 mm/mmap.c: SYSCALL_DEFINE1(brk), do_brk_flags().
"""

from __future__ import annotations

import errno
from collections.abc import Generator

from kerneld.errors import SysError
from kerneld.mm.calls.mmap import may_expand_vm, vm_brk_limit_ok
from kerneld.mm.space.ksm import ksm_vma_flags
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import munmap_steps
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.mm.space.pace import drain
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES, Vma, vm_start_gap
from kerneld.mm.space.vma_merge import can_merge_after, vma_expanded
from kerneld.mm.vm_flags import VM_ACCOUNT, VM_DATA_DEFAULT_FLAGS, VM_SOFTDIRTY
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Vaddr, page_align
from shared.uapi.resource import RLIM_INFINITY, Rlimit


def do_brk(mm: MmStruct, brk: Vaddr, *, privileged: bool, vm_flags: int = 0) -> Vaddr:
    """Move the end of the heap to `brk`, any byte address, and return the end: the old one if this fails.

    New memory gets `vm_flags` too: VM_EXEC if reading implies executing (Linux: VM_DATA_FLAGS_TSK_EXEC).
    If new memory is locked (`mm.def_flags`), the caller faults it in.
    Source: Linux v6.8 mm/mmap.c:SYSCALL_DEFINE1(brk).
    """
    return drain(brk_in_pieces(mm, brk, privileged=privileged, vm_flags=vm_flags))


def brk_in_pieces(mm: MmStruct, brk: Vaddr, *, privileged: bool, vm_flags: int = 0) -> Generator[None, None, Vaddr]:
    """Do the same as `do_brk`; yield while a heap shrinks. The caller must keep the address space alive."""
    limit = mm.rlimits.soft[Rlimit.DATA]
    data = brk - mm.start_brk + mm.end_data - mm.start_data
    if brk < mm.start_brk or (limit != RLIM_INFINITY and data > limit):
        return mm.brk
    new, old = page_align(brk), page_align(mm.brk)
    try:
        if new < old:
            vma = mm.vmas.find(new)
            if vma is None or vma.start >= old:
                return mm.brk
            yield from munmap_steps(mm, new, old - new)
        elif new > old:
            if not _may_grow(mm, old, new, privileged):
                return mm.brk
            do_brk_flags(mm, old, new - old, vm_flags, above=mm.start_brk)
    except SysError:
        if mm.frames.has_stalled:
            raise
        return mm.brk
    set_brk(mm, brk)
    return brk


def set_brk(mm: MmStruct, brk: Vaddr) -> None:
    """Note where the heap ends now."""
    mm.brk = brk


def _may_grow(mm: MmStruct, old: Vaddr, new: Vaddr, privileged: bool) -> bool:
    if not vm_brk_limit_ok(mm, old, new - old, privileged=privileged):
        return False
    above = mm.vmas.find_intersection(old, new + PAGE_SIZE + STACK_GUARD_GAP_BYTES)
    return above is None or new + PAGE_SIZE <= vm_start_gap(above)


def do_brk_flags(mm: MmStruct, addr: Vaddr, length: int, vm_flags: int = 0, *, above: Vaddr = 0) -> None:
    """Map [addr, addr + length), page-aligned, as anonymous private data; the VMA before it grows if it can.

    Only a VMA that ends above `above` may grow: brk never extends a VMA that ends where the heap begins (the program's
    bss; vma_prev_limit()), while execve lets a bss extend the data before it.
    Raises SysError(ENOMEM) over a limit. Source: Linux v6.8 mm/mmap.c:do_brk_flags(), vm_brk_flags().
    """
    vm_flags |= VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT | mm.def_flags
    pages = length >> PAGE_SHIFT
    if not may_expand_vm(mm, vm_flags, pages) or mm.map_count > mm.sysctl.max_map_count:
        raise SysError(errno.ENOMEM)
    check_enough_memory(mm, pages)
    pgoff = addr >> PAGE_SHIFT
    before = mm.vmas.preceding(addr) if addr > above else None
    if before is not None and before.end == addr and can_merge_after(before, vm_flags, None, None, pgoff):
        mm.move_vma_bounds(before, before.start, addr + length)
        vma_expanded(mm, before)
    else:
        mm.insert_vma(Vma(addr, addr + length, ksm_vma_flags(mm, vm_flags) | VM_SOFTDIRTY, pgoff))
