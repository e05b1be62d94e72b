"""The merging of VMAs in newer kernels: rules that replace kerneld's own while the referee runs (`known`).

Answers to mm/vma.c of Linux v6.12, v6.16 and v6.17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from kerneld.mm.files.file import File
from kerneld.mm.space import vma_merge
from kerneld.mm.space.ksm import ksm_vma_flags
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rmap import AnonVma, dup_anon_vma
from kerneld.mm.space.vma import Vma
from shared.uapi.page import PAGE_SHIFT, Vaddr

MmapRegion: TypeAlias = "Callable[..., Vma]"


def maps_as_mergeable(earlier: MmapRegion) -> MmapRegion:
    """In a mergeable address space new memory is so before it is tried to merge.

    Source: Linux v6.17 mm/vma.c:__mmap_region(), can_set_ksm_flags_early().
    """

    def mmap_region(mm: MmStruct, addr: Vaddr, length: int, vm_flags: int, *others: Any, **how: bool) -> Vma:
        return earlier(mm, addr, length, ksm_vma_flags(mm, vm_flags), *others, **how)

    return mmap_region


def grows_as_mergeable(earlier: Callable[..., None]) -> Callable[..., None]:
    """The same of the heap. Source: Linux v6.17 mm/vma.c:do_brk_flags()."""

    def do_brk_flags(mm: MmStruct, addr: Vaddr, length: int, vm_flags: int = 0, *, above: Vaddr = 0) -> None:
        earlier(mm, addr, length, ksm_vma_flags(mm, vm_flags), above=above)

    return do_brk_flags


class _Source:
    """The VMA whose memory will merge into another VMA, during a call; None for new memory."""

    vma: Vma | None = None


def _is_fork_child(vma: Vma | None) -> bool:
    return vma is not None and vma.anon_vma is not None and len(vma.anon_vma_chain) != 1


def is_mergeable_anon_vma(one: AnonVma | None, other: AnonVma | None, vma: Vma | None) -> bool:
    """Source: Linux v6.16 mm/vma.c:is_mergeable_anon_vma(); `one` is the source's, `other` the target's."""
    if vma is None:
        return one is None or other is None or one is other
    if other is None and one is not None:
        return not _is_fork_child(_Source.vma)
    if other is not None and one is None:
        return not _is_fork_child(vma)
    return one is other


def may_begin_lower(_vma: Vma) -> bool:
    """Only who would be removed is asked. Source: Linux v6.12 mm/vma.c:can_merge_remove_vma()."""
    return True


def with_source(function: Callable[..., Vma]) -> Callable[..., Vma]:
    def wrapped(mm: MmStruct, vma: Vma, *args: Any, **others: Any) -> Vma:
        _Source.vma = vma
        try:
            return function(mm, vma, *args, **others)
        finally:
            _Source.vma = None

    return wrapped


def merge_into_neighbours(
    mm: MmStruct, start: Vaddr, end: Vaddr, vm_flags: int, file: File | None, pgoff: int
) -> Vma | None:
    """Source: Linux v6.12 mm/vma.c:vma_merge_new_range(): the VMA before the range is tried first."""
    prev, following = mm.vmas.preceding(start), mm.vmas.find(start)
    pgoff_end = pgoff + ((end - start) >> PAGE_SHIFT)
    left = prev is not None and prev.end == start and vma_merge.can_merge_after(prev, vm_flags, None, file, pgoff)
    right = (
        following is not None
        and following.start == end
        and vma_merge.can_merge_before(following, vm_flags, None, file, pgoff_end)
    )
    if left and prev is not None:
        if right and following is not None and vma_merge.can_take_in(prev, following):
            dup_anon_vma(prev, following)
            mm.remove_vma(following)
            end = following.end
        mm.move_vma_bounds(prev, prev.start, end)
        return prev
    if right and following is not None:
        mm.move_vma_bounds(following, start, following.end)
        return following
    return None
