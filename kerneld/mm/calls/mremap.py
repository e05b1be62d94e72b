"""mremap: shrink, grow in place, move. Page tables move, frames stay.

Answers to Linux v6.8 mm/mremap.c: SYSCALL_DEFINE5(mremap), mremap_to(), vma_to_resize(), move_vma(), and
mm/mmap.c:copy_vma().

| case                                         | what happens                                                        |
|----------------------------------------------|---------------------------------------------------------------------|
| FIXED or DONTUNMAP                           | always a move; FIXED first unmaps old mappings at the new place     |
| new length = old                             | nothing                                                             |
| shorter                                      | the tail is unmapped, in all its VMAs                               |
| longer, at the VMA's end, room behind it     | the VMA grows, and merges with the next if possible                 |
| longer otherwise                             | with MAYMOVE it moves, else ENOMEM                                  |
| old length 0, shared                         | a second mapping of the same pages                                  |
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import TypeAlias

from kerneld.errors import SysError
from kerneld.mm.calls.mlock import mlock_future_ok
from kerneld.mm.calls.mmap import may_expand_vm
from kerneld.mm.calls.move_page_tables import move_page_tables
from kerneld.mm.fault.populate import populate_in_pieces
from kerneld.mm.ksm.unmerge import unmerge_in_pieces
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import munmap_steps
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.mm.space.pace import Steps, WaitingSteps, drain
from kerneld.mm.space.rmap import anon_vma_clone, dup_anon_vma, unlink_anon_vmas
from kerneld.mm.space.unmapped_area import get_unmapped_area
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import can_merge_after, can_merge_before, can_take_in, userfaultfd_drop
from kerneld.mm.space.wait import Wait
from kerneld.mm.vm_flags import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_PFNMAP,
    VM_SHARED,
)
from shared.uapi.mman import Map, Mremap
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, TASK_SIZE, Vaddr, page_align

_MAYMOVE, _FIXED, _DONTUNMAP = Mremap.MAYMOVE.value, Mremap.FIXED.value, Mremap.DONTUNMAP.value
_MAP_SHARED, _MAP_FIXED = Map.SHARED.value, Map.FIXED.value
Place: TypeAlias = Generator[Wait | None, None, Vaddr]
"""A call in pieces that returns an address."""
_SPARE_MAPS = 3
"""Number of additional VMAs that a move may need before it gives one back."""


def do_mremap(
    mm: MmStruct, addr: Vaddr, old_len: int, new_len: int, flags: int, new_addr: Vaddr, *, privileged: bool
) -> Vaddr:
    """Change the size or the place of a mapping, and return its address: the same as `mremap_in_pieces`, at once."""
    return drain(mremap_in_pieces(mm, addr, old_len, new_len, flags, new_addr, privileged=privileged))


def mremap_in_pieces(
    mm: MmStruct, addr: Vaddr, old_len: int, new_len: int, flags: int, new_addr: Vaddr, *, privileged: bool
) -> Place:
    """Change the size or the place of a mapping and return its address; lengths in bytes are rounded up to pages.

    Yields when other clients may be served. The caller must keep the address space alive. A mapping that is being moved
    is at both places meanwhile, and each of its pages at one of them.

    Raises SysError(EINVAL) for contradicting flags, an unaligned address, a new length of 0, overlapping places, or an
    old length of 0 of private memory; EFAULT if the old range is not inside one VMA; ENOMEM without room, over a
    limit, or if it cannot grow and must not move; EAGAIN over RLIMIT_MEMLOCK.
    """
    if flags & ~(_MAYMOVE | _FIXED | _DONTUNMAP) or (flags & (_FIXED | _DONTUNMAP) and not flags & _MAYMOVE):
        raise SysError(errno.EINVAL)
    if (flags & _DONTUNMAP and old_len != new_len) or addr & ~PAGE_MASK:
        raise SysError(errno.EINVAL)
    old_len, new_len = page_align(old_len) % (1 << 64), page_align(new_len) % (1 << 64)
    if not new_len:
        raise SysError(errno.EINVAL)
    vma = mm.vmas.lookup(addr)
    if vma is None:
        raise SysError(errno.EFAULT)
    if flags & (_FIXED | _DONTUNMAP):
        return (yield from _mremap_to(mm, addr, old_len, new_addr, new_len, flags, privileged))
    if old_len >= new_len:
        if old_len > new_len:
            yield from munmap_steps(mm, addr + new_len, old_len - new_len)
        return addr
    vma = vma_to_resize(mm, addr, old_len, new_len, flags, privileged)
    if old_len == vma.end - addr and vma_expandable(mm, vma, new_len - old_len, privileged):
        _expand(mm, vma, new_len - old_len)
        new_addr = addr
    elif flags & _MAYMOVE:
        map_flags = _MAP_SHARED if vma.vm_flags & VM_MAYSHARE else 0
        new_addr = find_new_place(mm, vma, addr, 0, new_len, map_flags, privileged)
        yield from move_vma(mm, vma, addr, old_len, new_addr, new_len, flags)
    else:
        raise SysError(errno.ENOMEM)
    yield from _populate_tail(mm, new_addr, old_len, new_len)
    return new_addr


def _populate_tail(mm: MmStruct, addr: Vaddr, old_len: int, new_len: int) -> WaitingSteps:
    vma = mm.vmas.lookup(addr)
    if vma is not None and vma.vm_flags & VM_LOCKED and new_len > old_len:
        yield from populate_in_pieces(mm, addr + old_len, addr + new_len, ignore_errors=True)


def _mremap_to(
    mm: MmStruct, addr: Vaddr, old_len: int, new_addr: Vaddr, new_len: int, flags: int, privileged: bool
) -> Place:
    """Source: Linux v6.8 mm/mremap.c:mremap_to()."""
    if new_addr & ~PAGE_MASK or new_len > TASK_SIZE or new_addr > TASK_SIZE - new_len:
        raise SysError(errno.EINVAL)
    if (addr + old_len) % (1 << 64) > new_addr and new_addr + new_len > addr:
        raise SysError(errno.EINVAL)
    if mm.map_count + 2 >= mm.sysctl.max_map_count - _SPARE_MAPS:
        raise SysError(errno.ENOMEM)
    if flags & _FIXED:
        yield from munmap_steps(mm, new_addr, new_len)
    if old_len > new_len:
        yield from munmap_steps(mm, addr + new_len, old_len - new_len)
        old_len = new_len
    vma = vma_to_resize(mm, addr, old_len, new_len, flags, privileged)
    if flags & _DONTUNMAP and not may_expand_vm(mm, vma.vm_flags, old_len >> PAGE_SHIFT):
        raise SysError(errno.ENOMEM)
    map_flags = _MAP_FIXED if flags & _FIXED else 0
    new_addr = find_new_place(mm, vma, addr, new_addr, new_len, map_flags, privileged)
    yield from move_vma(mm, vma, addr, old_len, new_addr, new_len, flags)
    yield from _populate_tail(mm, new_addr, old_len, new_len)
    return new_addr


def find_new_place(
    mm: MmStruct, vma: Vma, addr: Vaddr, new_addr: Vaddr, new_len: int, map_flags: int, privileged: bool
) -> Vaddr:
    """Return the new address for the mapping at `addr`, which moves. Raises as `get_unmapped_area` does."""
    aligned = vma.file is None or not vma.file.mapping.is_shmem
    offset = None if vma.file is None else vma.page_index(addr) << PAGE_SHIFT
    return get_unmapped_area(
        mm,
        new_addr,
        new_len,
        map_flags,
        pmd_aligned=aligned,
        offset=offset,
        raw_io=privileged,
        accessible=vma.vm_flags & VM_ACCESS_FLAGS != 0,
    )


def vma_to_resize(mm: MmStruct, addr: Vaddr, old_len: int, new_len: int, flags: int, privileged: bool) -> Vma:
    """Return the VMA of a mapping that may be resized.

    Raises as `do_mremap` says. Source: mm/mremap.c:vma_to_resize().
    """
    vma = mm.vmas.lookup(addr)
    if vma is None:
        raise SysError(errno.EFAULT)
    if not old_len and not vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        raise SysError(errno.EINVAL)
    if flags & _DONTUNMAP and vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise SysError(errno.EINVAL)
    if old_len > vma.end - addr:
        raise SysError(errno.EFAULT)
    if new_len == old_len:
        return vma
    if vma.page_index(addr) + (new_len >> PAGE_SHIFT) >= 1 << 64:
        raise SysError(errno.EINVAL)
    if vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise SysError(errno.EFAULT)
    if not mlock_future_ok(mm, vma.vm_flags, new_len - old_len, privileged):
        raise SysError(errno.EAGAIN)
    if not may_expand_vm(mm, vma.vm_flags, (new_len - old_len) >> PAGE_SHIFT):
        raise SysError(errno.ENOMEM)
    return vma


def vma_expandable(mm: MmStruct, vma: Vma, delta: int, privileged: bool) -> bool:
    """Return whether `delta` bytes behind a VMA are free. Source: Linux v6.8 mm/mremap.c:vma_expandable()."""
    end = vma.end + delta
    if mm.vmas.find_intersection(vma.end, end) is not None:
        return False
    try:
        accessible = vma.vm_flags & VM_ACCESS_FLAGS != 0
        get_unmapped_area(mm, vma.start, end - vma.start, _MAP_FIXED, raw_io=privileged, accessible=accessible)
    except SysError:
        return False
    return True


def _expand(mm: MmStruct, vma: Vma, delta: int) -> None:
    """Source: Linux v6.8 mm/mmap.c:vma_merge_extend(): the extension merges with the VMA, and maybe with the next."""
    end = vma.end + delta
    if vma.vm_flags & VM_ACCOUNT:
        check_enough_memory(mm, delta >> PAGE_SHIFT)
    following = mm.vmas.following(vma)
    if (
        following is not None
        and following.start == end
        and can_merge_before(following, vma.vm_flags, vma.anon_vma, vma.vm_file, vma.page_index(end), vma.traits)
        and can_take_in(vma, following)
    ):
        dup_anon_vma(vma, following)
        end = following.end
        mm.remove_vma(following)
    mm.move_vma_bounds(vma, vma.start, end)


def move_vma(mm: MmStruct, vma: Vma, old_addr: Vaddr, old_len: int, new_addr: Vaddr, new_len: int, flags: int) -> Steps:
    """Move [old_addr, old_addr + old_len) of a VMA to a free place of `new_len` bytes, in pieces.

    Raises SysError(ENOMEM) with too many VMAs or without frames for page tables; the mapping is then where it was.
    Source: Linux v6.8 mm/mremap.c:move_vma().
    """
    if mm.map_count >= mm.sysctl.max_map_count - _SPARE_MAPS:
        raise SysError(errno.ENOMEM)
    mm.frames.kernel_objects.check_room(mm.owner, _SPARE_MAPS)
    if vma.vm_flags & VM_MERGEABLE:
        # At the new place a merged page could meet another item of the scan.
        yield from unmerge_in_pieces(mm, vma, old_addr, old_addr + old_len)
    if vma.vm_flags & VM_ACCOUNT:
        check_enough_memory(mm, (new_len if flags & _DONTUNMAP else new_len - old_len) >> PAGE_SHIFT)
    locked_vm, vm_flags = mm.locked_vm, vma.vm_flags
    new_vma = copy_vma(mm, vma, old_addr, new_addr, new_len)
    try:
        yield from move_page_tables(mm, old_addr, new_addr, old_len)
    except SysError:
        yield from munmap_steps(mm, new_addr, new_len, writes=False)
        raise
    if new_vma.userfaultfd_ctx is not None:
        userfaultfd_drop(new_vma, mm)
    if flags & _DONTUNMAP:
        source = mm.vmas.lookup(old_addr)
        assert source is not None
        mm.set_vma_flags(source, source.vm_flags & ~VM_LOCKED_MASK)
        mm.keep_locked_vm(locked_vm_after_dontunmap(locked_vm, vm_flags, new_len))
        if source is not new_vma and source.start == old_addr and source.end == old_addr + old_len:
            unlink_anon_vmas(source)
    elif old_len:
        # For a moment the mapping exists twice; this does not count as a peak (Linux keeps mm->hiwater_vm here too).
        hiwater_vm = mm.hiwater_vm
        yield from munmap_steps(mm, old_addr, old_len, writes=False)
        mm.hiwater_vm = hiwater_vm


def locked_vm_after_dontunmap(before: int, _vm_flags: int, new_len: int) -> int:
    """Return `locked_vm`, in pages, after a move that keeps the old mapping, all unlocked; `before` is the old value.

    Source: Linux v6.8 mm/mremap.c:move_vma(): "we don't need to touch locked_vm". If only a part of a mapping moves,
    the rest stays counted for good, although none of it is locked.
    """
    return before


def copy_vma(mm: MmStruct, vma: Vma, old_addr: Vaddr, addr: Vaddr, length: int) -> Vma:
    """Make the VMA for the new place, and merge it with its neighbours if possible.

    Anonymous memory that was never faulted takes the offsets of its new place, to merge there.
    Source: Linux v6.8 mm/mmap.c:copy_vma().
    """
    end = addr + length
    untouched = vma.is_anonymous and vma.anon_vma is None
    pgoff = addr >> PAGE_SHIFT if untouched else vma.page_index(old_addr)
    pgoff_end = pgoff + (length >> PAGE_SHIFT)
    prev, following = mm.vmas.around(addr)
    merge_prev = (
        prev is not None
        and prev.end == addr
        and can_merge_after(prev, vma.vm_flags, vma.anon_vma, vma.vm_file, pgoff, vma.traits)
    )
    merge_next = (
        following is not None
        and following.start == end
        and can_merge_before(following, vma.vm_flags, vma.anon_vma, vma.vm_file, pgoff_end, vma.traits)
    )
    if merge_prev and prev is not None:
        if merge_next and following is not None and can_take_in(prev, following):
            dup_anon_vma(prev, following)
            end = following.end
            mm.remove_vma(following)
        mm.move_vma_bounds(prev, prev.start, end)
        return prev
    if merge_next and following is not None:
        mm.move_vma_bounds(following, addr, following.end)
        return following
    new_vma = vma.dup(addr, end, pgoff)
    new_vma.anon_vma = vma.anon_vma
    anon_vma_clone(new_vma, vma)
    mm.insert_vma(new_vma)
    return new_vma
