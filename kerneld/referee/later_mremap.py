"""mremap of newer kernels: a rule that replaces kerneld's own while the referee runs (`known`).

It checks everything before it changes anything, and moves several VMAs at once. Answers to Linux v6.17 mm/mremap.c.
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.calls import mremap
from kerneld.mm.calls.mmap import may_expand_vm
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import munmap_steps
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_ACCOUNT, VM_LOCKED, VM_MAYSHARE, VM_SHARED
from shared.uapi.mman import Map, Mremap
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, TASK_SIZE, Vaddr, page_align

_MAYMOVE, _FIXED, _DONTUNMAP = Mremap.MAYMOVE.value, Mremap.FIXED.value, Mremap.DONTUNMAP.value
_mremap_v6_8 = mremap.mremap_in_pieces


def mremap_in_pieces(
    mm: MmStruct, addr: Vaddr, old_len: int, new_len: int, flags: int, new_addr: Vaddr, *, privileged: bool
) -> mremap.Place:
    """Source: Linux v6.17 mm/mremap.c:do_mremap(), check_mremap_params()."""
    old_len, new_len = page_align(old_len) % (1 << 64), page_align(new_len) % (1 << 64)
    if flags & ~(_MAYMOVE | _FIXED | _DONTUNMAP) or addr & ~PAGE_MASK or not new_len or new_len > TASK_SIZE:
        raise SysError(errno.EINVAL)
    if not flags & (_FIXED | _DONTUNMAP):
        return (yield from _mremap_v6_8(mm, addr, old_len, new_len, flags, 0, privileged=privileged))
    if new_addr > TASK_SIZE - new_len or new_addr & ~PAGE_MASK or not flags & _MAYMOVE:
        raise SysError(errno.EINVAL)
    if flags & _DONTUNMAP and old_len != new_len:
        raise SysError(errno.EINVAL)
    if (addr + old_len) % (1 << 64) > new_addr and new_addr + new_len > addr:
        raise SysError(errno.EINVAL)
    if flags & _FIXED and old_len == new_len:
        return (yield from _remap_move(mm, addr, old_len, new_addr, flags, privileged))
    return (yield from _mremap_to(mm, addr, old_len, new_addr, new_len, flags, privileged))


def locked_vm_after_dontunmap(before: int, vm_flags: int, new_len: int) -> int:
    """Source: Linux v6.15 mm/mremap.c:vrm_stat_account(): the new mapping counts, and the old one goes on counting.

    It goes by the old one's flags before that is unlocked: both may be one VMA by then.
    """
    return before + (new_len >> PAGE_SHIFT if vm_flags & VM_LOCKED else 0)


def _remap_move(mm: MmStruct, addr: Vaddr, length: int, new_addr: Vaddr, flags: int, privileged: bool) -> mremap.Place:
    """Source: Linux v6.17 mm/mremap.c:remap_move(): the gaps between VMAs are kept."""
    end, target, result, last_end = addr + length, new_addr, -1, 0
    vma = mm.vmas.find(addr)
    while vma is not None and vma.start < end:
        if result < 0 and addr < vma.start:
            raise SysError(errno.EFAULT)
        if not _may_be_one_of_several(vma) and (result >= 0 or vma.end < end):
            raise SysError(errno.EFAULT)
        start, stop = max(vma.start, addr), min(end, vma.end)
        target += vma.start - last_end if result >= 0 else 0
        last_end = vma.end
        moved = yield from _mremap_to(mm, start, stop - start, target, stop - start, flags, privileged)
        result = moved if result < 0 else result
        target = moved + stop - start
        vma = mm.vmas.find(stop) if stop < end else None
    if result < 0:
        raise SysError(errno.EFAULT)
    return result


def _may_be_one_of_several(vma: Vma) -> bool:
    """Source: Linux v6.17 mm/mremap.c:vma_multi_allowed(); a segment's file has a get_unmapped_area of its own."""
    return vma.userfaultfd_ctx is None and (vma.file is None or not vma.file.is_sysv_shm)


def _mremap_to(
    mm: MmStruct, addr: Vaddr, old_len: int, new_addr: Vaddr, new_len: int, flags: int, privileged: bool
) -> mremap.Place:
    """Source: Linux v6.17 mm/mremap.c:check_prep_vma(), mremap_to()."""
    kept = min(old_len, new_len)
    vma = mm.vmas.lookup(addr)
    if vma is None:
        raise SysError(errno.EFAULT)
    if not old_len and not vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        raise SysError(errno.EINVAL)
    mremap.vma_to_resize(mm, addr, kept, new_len, flags, privileged)
    if mm.map_count + 2 >= mm.sysctl.max_map_count - 3:
        raise SysError(errno.ENOMEM)
    if flags & _FIXED:
        yield from munmap_steps(mm, new_addr, new_len)
        if mm.vmas.lookup(addr) is None:
            raise SysError(errno.EFAULT)
    if old_len > new_len:
        yield from munmap_steps(mm, addr + new_len, old_len - new_len)
    vma = mm.vmas.lookup(addr)
    if vma is None:
        raise SysError(errno.EFAULT)
    if flags & _DONTUNMAP and not may_expand_vm(mm, vma.vm_flags, kept >> PAGE_SHIFT):
        raise SysError(errno.ENOMEM)
    map_flags = Map.FIXED.value if flags & _FIXED else 0
    new_addr = mremap.find_new_place(mm, vma, addr, new_addr, new_len, map_flags, privileged)
    locked = vma.vm_flags & VM_LOCKED
    if old_len > new_len and not flags & _DONTUNMAP and vma.vm_flags & VM_ACCOUNT:
        # mm/mremap.c:vrm_calc_charge(): the kernel checks for the memory that the shrinking has just freed.
        check_enough_memory(mm, (old_len - new_len) >> PAGE_SHIFT)
    yield from mremap.move_vma(mm, vma, addr, kept, new_addr, new_len, flags)
    if locked and new_len > old_len:
        mm_populate(mm, new_addr + old_len, new_addr + new_len)
    return new_addr
