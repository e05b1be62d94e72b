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
from collections.abc import Generator, Iterator
from typing import TypeAlias

import numpy as np

from kerneld.errors import SysError
from kerneld.mm.calls.mlock import mlock_future_ok
from kerneld.mm.calls.mmap import may_expand_vm
from kerneld.mm.fault.populate import populate_in_pieces
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import munmap_steps
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.mm.space.pace import Pace, Steps, drain
from kerneld.mm.space.pagewalk import Leaf, Leaves, Run
from kerneld.mm.space.rmap import anon_vma_clone, dup_anon_vma, unlink_anon_vmas
from kerneld.mm.space.unmapped_area import get_unmapped_area
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import can_merge_after, can_merge_before, is_mergeable_anon_vma
from kerneld.mm.vm_flags import (
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SHARED,
)
from shared.uapi.mman import Map, Mremap
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PMD_SIZE, TASK_SIZE, Vaddr, page_align

_MAYMOVE, _FIXED, _DONTUNMAP = Mremap.MAYMOVE.value, Mremap.FIXED.value, Mremap.DONTUNMAP.value
Place: TypeAlias = Generator[None, None, Vaddr]
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
        map_flags = Map.SHARED.value if vma.vm_flags & VM_MAYSHARE else 0
        new_addr = find_new_place(mm, vma, addr, 0, new_len, map_flags, privileged)
        yield from move_vma(mm, vma, addr, old_len, new_addr, new_len, flags)
    else:
        raise SysError(errno.ENOMEM)
    yield from _populate_tail(mm, new_addr, old_len, new_len)
    return new_addr


def _populate_tail(mm: MmStruct, addr: Vaddr, old_len: int, new_len: int) -> Steps:
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
    map_flags = Map.FIXED.value if flags & _FIXED else 0
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
    return get_unmapped_area(mm, new_addr, new_len, map_flags, pmd_aligned=aligned, offset=offset, raw_io=privileged)


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
    if next(mm.vmas.overlapping(vma.end, end), None) is not None:
        return False
    try:
        get_unmapped_area(mm, vma.start, end - vma.start, Map.FIXED.value, raw_io=privileged)
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
        and can_merge_before(following, vma.vm_flags, vma.anon_vma, vma.file, vma.page_index(end))
        and is_mergeable_anon_vma(vma.anon_vma, following.anon_vma, None)
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
    if vma.vm_flags & VM_ACCOUNT:
        check_enough_memory(mm, (new_len if flags & _DONTUNMAP else new_len - old_len) >> PAGE_SHIFT)
    locked_vm, vm_flags = mm.locked_vm, vma.vm_flags
    new_vma = copy_vma(mm, vma, old_addr, new_addr, new_len)
    try:
        yield from move_page_tables(mm, old_addr, new_addr, old_len)
    except SysError:
        yield from munmap_steps(mm, new_addr, new_len)
        raise
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
        yield from munmap_steps(mm, old_addr, old_len)
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
    prev, following = mm.vmas.preceding(addr), mm.vmas.find(addr)
    merge_prev = (
        prev is not None and prev.end == addr and can_merge_after(prev, vma.vm_flags, vma.anon_vma, vma.file, pgoff)
    )
    merge_next = (
        following is not None
        and following.start == end
        and can_merge_before(following, vma.vm_flags, vma.anon_vma, vma.file, pgoff_end)
    )
    if merge_prev and prev is not None:
        if merge_next and following is not None and is_mergeable_anon_vma(prev.anon_vma, following.anon_vma, None):
            dup_anon_vma(prev, following)
            end = following.end
            mm.remove_vma(following)
        mm.move_vma_bounds(prev, prev.start, end)
        return prev
    if merge_next and following is not None:
        mm.move_vma_bounds(following, addr, following.end)
        return following
    new_vma = Vma(addr, end, vma.vm_flags, pgoff, vma.file)
    new_vma.anon_vma = vma.anon_vma
    anon_vma_clone(new_vma, vma)
    mm.insert_vma(new_vma)
    return new_vma


def move_page_tables(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr, length: int) -> Steps:
    """Move the entries of a range to another: whole leaf tables if both ranges are aligned alike, else run by run.

    Raises SysError(ENOMEM) without frames for tables; what had moved is then back.
    Source: Linux v6.8 mm/mremap.c:move_page_tables().
    """
    end, delta = old_addr + length, new_addr - old_addr
    first, last = old_addr + (-old_addr & PMD_SIZE - 1), end & -PMD_SIZE
    if first <= last and _can_realign(mm, old_addr, new_addr):
        # The first table has no other entries: the whole table can move too.
        old_addr = first = old_addr & -PMD_SIZE
    if delta & PMD_SIZE - 1 or first >= last:
        yield from _move_ptes_in_pieces(mm, old_addr, new_addr, length)
        return
    move_ptes(mm, old_addr, old_addr + delta, first - old_addr)
    moved = first
    try:
        if mm.pages.move_tables(first, last, first + delta):
            moved = last
            try:
                move_ptes(mm, last, last + delta, end - last)
            except SysError:
                mm.pages.move_tables(first + delta, last + delta, first)
                moved = first
                raise
        else:
            yield from _move_ptes_in_pieces(mm, first, first + delta, end - first)
    except SysError:
        _move_back(mm, old_addr, old_addr + delta, moved - old_addr)
        raise


def _move_ptes_in_pieces(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr, length: int) -> Steps:
    """Do the same as `move_ptes`, in parts; if one part fails, the moved parts are moved back, in parts too."""
    end, delta, pace = old_addr + length, new_addr - old_addr, Pace()
    moved = old_addr
    try:
        while moved < end:
            stop = pace.far_stop(mm.page_table.walk, moved, end)
            move_ptes(mm, moved, moved + delta, stop - moved)
            moved = stop
            if moved < end and pace.is_over():
                yield
                pace.begin()
    except SysError:
        at = old_addr
        while at < moved:
            stop = pace.far_stop(mm.page_table.walk, at + delta, moved + delta) - delta
            _move_back(mm, at, at + delta, stop - at)
            at = stop
            yield
        raise


def _can_realign(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr) -> bool:
    """Return whether a move may begin at the start of its first leaf table instead of inside the table.

    Source: Linux v6.8 mm/mremap.c:try_realign_addr(), can_align_down().
    """
    if not old_addr & PMD_SIZE - 1 or (old_addr ^ new_addr) & PMD_SIZE - 1:
        return False
    for addr in (old_addr, new_addr):
        vma, below = mm.vmas.lookup(addr), mm.vmas.preceding(addr)
        if vma is None or vma.start != addr or (below is not None and below.end > addr & -PMD_SIZE):
            return False
    return True


def move_ptes(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr, length: int) -> None:
    """Move the entries of a range to another whose distance is no multiple of 2 MiB, or that has tables already.

    A huge page moves as one entry if its new place is 2 MiB-aligned too, else it is split first. The new place gets a
    table wherever the old place has one, even an empty one.
    Raises SysError(ENOMEM) without frames for tables; what had moved is then back.
    Source: Linux v6.8 mm/mremap.c:move_page_tables(), move_ptes(), move_huge_pmd().
    """
    if not length:
        return
    delta = new_addr - old_addr
    moved = old_addr
    mm.pages.split_huge_pmds_at(old_addr, old_addr + length)

    def move_run(found: Run) -> None:
        nonlocal moved
        for run in _without_gaps(found):
            place = mm.page_table.ensure_whole(run.start + delta, run.end + delta)
            mm.pages.move_entries(run, place, (run.start + delta - place.start) >> PAGE_SHIFT)
            moved = run.end

    def move_huge(leaf: Leaf) -> bool:
        nonlocal moved
        is_done = _move_huge(mm, leaf, delta)
        moved = leaf.end if is_done else moved
        return is_done

    try:
        mm.page_table.ensure_puds(old_addr, old_addr + length, new_addr)
        mm.page_table.walk.page_range(old_addr, old_addr + length, move_run, move_huge)
    except SysError:
        _move_back(mm, old_addr, new_addr, moved - old_addr)
        raise


def _move_back(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr, length: int) -> None:
    """Undo a move of entries; this needs no memory, because the tables of the old place still exist."""
    delta = new_addr - old_addr
    for leaf in mm.page_table.walk.leaves(new_addr, new_addr + length):
        if leaf.huge:
            pmd = mm.page_table.find_pmd(leaf.start - delta)
            assert pmd is not None
            mm.pages.move_huge_pmd(leaf.low, leaf.start, pmd, leaf.start - delta)
            continue
        vaddr = leaf.start - delta
        for place in mm.page_table.walk.leaves(vaddr, leaf.end - delta):
            low = leaf.low + ((place.start - vaddr) >> PAGE_SHIFT)
            run = Leaf(place.start + delta, place.end + delta, low, low + place.high - place.low)
            mm.pages.move_entries(run, place, 0)


def _without_gaps(run: Run) -> Iterator[Run]:
    """Yield the parts of a run that each consist of neighbouring tables."""
    if isinstance(run, Leaf):
        yield run
        return
    gaps = np.flatnonzero(np.diff(run.starts) != PMD_SIZE) + 1
    for starts, tables in zip(np.split(run.starts, gaps), np.split(run.tables, gaps), strict=True):
        yield Leaves.of(starts, tables)


def _move_huge(mm: MmStruct, leaf: Leaf, delta: int) -> bool:
    """Move a huge page to its new place, or split it; return whether it has moved."""
    to_pmd = None if delta & PMD_SIZE - 1 else mm.page_table.ensure_pmd(leaf.start + delta)
    pmd = mm.page_table.find_huge_pmd(leaf.start)
    if pmd is None:  # Reclaim has split it, for a table of the new place.
        return False
    if to_pmd is None or mm.frames.ram.words[to_pmd]:  # An existing table stays, even an empty one (move_huge_pmd()).
        mm.pages.split_huge_pmd(pmd, leaf.start)
        return False
    mm.pages.move_huge_pmd(pmd, leaf.start, to_pmd, leaf.start + delta)
    return True
