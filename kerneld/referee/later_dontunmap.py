"""MREMAP_DONTUNMAP in newer kernels, and in maintained older kernels: the old mapping becomes an independent mapping.

Rules that replace kerneld's own while the referee runs (`known`). Answers to mm/mremap.c and mm/vma.c of Debian's
6.12.117, which has later changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import split_range
from kerneld.mm.space.pace import Steps
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import can_merge_after, can_merge_before
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Mremap
from shared.uapi.page import PAGE_SHIFT, Vaddr

MoveVma: TypeAlias = "Callable[[MmStruct, Vma, Vaddr, int, Vaddr, int, int], Steps]"
CopyVma: TypeAlias = "Callable[[MmStruct, Vma, Vaddr, Vaddr, int], Vma]"
_DONTUNMAP = Mremap.DONTUNMAP.value
_SPARE_MAPS = 3


def cuts_what_is_locked(earlier: MoveVma) -> MoveVma:
    """Source: mm/mremap.c:move_vma(): a part of a locked mapping is cut off before it is moved."""

    def move_vma(
        mm: MmStruct, vma: Vma, old_addr: Vaddr, old_len: int, new_addr: Vaddr, new_len: int, flags: int
    ) -> Steps:
        has_room = mm.map_count < mm.sysctl.max_map_count - _SPARE_MAPS
        if flags & _DONTUNMAP and vma.vm_flags & VM_LOCKED and old_len and has_room:
            vma = split_range(mm, old_addr, old_addr + old_len)[0]
        yield from earlier(mm, vma, old_addr, old_len, new_addr, new_len, flags)

    return move_vma


class _Kept:
    """Whether the current call keeps the old mapping."""

    source = False


def tells_of_dontunmap(earlier: MoveVma) -> MoveVma:
    def move_vma(
        mm: MmStruct, vma: Vma, old_addr: Vaddr, old_len: int, new_addr: Vaddr, new_len: int, flags: int
    ) -> Steps:
        _Kept.source = flags & _DONTUNMAP != 0
        try:
            yield from earlier(mm, vma, old_addr, old_len, new_addr, new_len, flags)
        finally:
            _Kept.source = False

    return move_vma


def merges_not_with_itself(earlier: CopyVma) -> CopyVma:
    """Source: mm/vma.c:copy_vma(): for a mapping that is kept, the neighbour on the other side may still grow."""

    def copy_vma(mm: MmStruct, vma: Vma, old_addr: Vaddr, addr: Vaddr, length: int) -> Vma:
        end = addr + length
        if not _may_merge_with_itself(vma, addr, end):
            return earlier(mm, vma, old_addr, addr, length)
        flags, file, traits = vma.vm_flags, vma.vm_file, vma.traits
        pgoff, pgoff_end = addr >> PAGE_SHIFT, end >> PAGE_SHIFT
        other = mm.vmas.find(addr) if vma.end == addr else mm.vmas.preceding(addr)
        if other is not None and other.start == end and can_merge_before(other, flags, None, file, pgoff_end, traits):
            mm.move_vma_bounds(other, addr, other.end)
            return other
        if other is not None and other.end == addr and can_merge_after(other, flags, None, file, pgoff, traits):
            mm.move_vma_bounds(other, other.start, end)
            return other
        return _insert_new(mm, vma, addr, end)

    return copy_vma


def merges_with_no_neighbour(earlier: CopyVma) -> CopyVma:
    """Source: mm/mmap.c:copy_vma() of v6.1.192: where it could merge with itself, no neighbour is looked at."""

    def copy_vma(mm: MmStruct, vma: Vma, old_addr: Vaddr, addr: Vaddr, length: int) -> Vma:
        if not _may_merge_with_itself(vma, addr, addr + length):
            return earlier(mm, vma, old_addr, addr, length)
        return _insert_new(mm, vma, addr, addr + length)

    return copy_vma


def _may_merge_with_itself(vma: Vma, addr: Vaddr, end: Vaddr) -> bool:
    """Return whether a mapping that is kept, and was never faulted, lies beside its new place."""
    untouched = vma.is_anonymous and vma.anon_vma is None
    return _Kept.source and untouched and (vma.end == addr or vma.start == end)


def _insert_new(mm: MmStruct, vma: Vma, addr: Vaddr, end: Vaddr) -> Vma:
    new_vma = vma.dup(addr, end, addr >> PAGE_SHIFT)
    mm.insert_vma(new_vma)
    return new_vma


def takes_its_own_offsets(earlier: MoveVma) -> MoveVma:
    """Source: mm/mremap.c:move_vma(): the old mapping then counts as never faulted, and merges at its place."""

    def move_vma(
        mm: MmStruct, vma: Vma, old_addr: Vaddr, old_len: int, new_addr: Vaddr, new_len: int, flags: int
    ) -> Steps:
        yield from earlier(mm, vma, old_addr, old_len, new_addr, new_len, flags)
        source = mm.vmas.lookup(old_addr) if flags & _DONTUNMAP else None
        if source is not None and source.is_anonymous and (source.start, source.end) == (old_addr, old_addr + old_len):
            source.pgoff = old_addr >> PAGE_SHIFT

    return move_vma
