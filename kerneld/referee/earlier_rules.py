"""Rules of kernels older than v6.8, one function each, that replace kerneld's own while the referee runs (`known`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kerneld.mm.space import unmapped_area
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_SEQ_READ
from kerneld.referee.later_rules import AlignedToPmd
from shared.uapi.mman import Map
from shared.uapi.page import PMD_SIZE, Vaddr


def keeps_its_account(vma: Vma) -> bool:
    """Source: Linux v6.1 mm/mprotect.c:mprotect_fixup(): memory that is promised stays so."""
    return False


def without_map_stack(earlier: Callable[[int], int]) -> Callable[[int], int]:
    """Source: Linux v6.1 include/linux/mman.h:calc_vm_flag_bits()."""

    def calc_vm_flag_bits(flags: int) -> int:
        return earlier(flags & ~Map.STACK.value)

    return calc_vm_flag_bits


def aligns_no_anonymous_memory(earlier: AlignedToPmd) -> AlignedToPmd:
    """Source: Linux v6.1 mm/mmap.c:get_unmapped_area(): only a file system asks for a boundary."""

    def aligned_to_pmd(mm: MmStruct, addr: Vaddr, length: int, flags: int, offset: int | None) -> Vaddr | None:
        return None if offset is None else earlier(mm, addr, length, flags, offset)

    return aligned_to_pmd


def aligns_upwards(earlier: AlignedToPmd) -> AlignedToPmd:
    """Source: Linux v6.1 mm/huge_memory.c:__thp_get_unmapped_area(): on a boundary already, it stays there."""

    def aligned_to_pmd(mm: MmStruct, addr: Vaddr, length: int, flags: int, offset: int | None) -> Vaddr | None:
        found = earlier(mm, addr, length, flags, offset)
        if found is None or found == addr:
            return found
        # The search that the earlier rule has begun with, once more.
        on_boundary = not (unmapped_area._topdown(mm, addr, length + PMD_SIZE, flags) - (offset or 0)) % PMD_SIZE
        return found - PMD_SIZE if on_boundary else found

    return aligned_to_pmd


def moves_from_its_start(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr) -> bool:
    """Source: Linux v6.1 mm/mremap.c:move_page_tables(): a table moves whole only if the range covers it."""
    return False


def touches_the_heap(mm: MmStruct, vma: Vma) -> bool:
    """Source: Linux v6.1 fs/proc/task_mmu.c:show_map_vma(): what ends where it begins has its name too."""
    return vma.start <= mm.brk and vma.end >= mm.start_brk


def merges_no_attach(earlier: Callable[..., bool]) -> Callable[..., bool]:
    """What has a close operation merges with nothing. Source: Linux v6.3 mm/mmap.c:is_mergeable_vma()."""

    def mergeable(vma: Vma, *properties: Any) -> bool:
        return not vma.has_close and earlier(vma, *properties)

    return mergeable


def has_recency(vma: Vma) -> bool:
    """Source: Linux v6.1 mm/memory.c:zap_pte_range(), mm/rmap.c:folio_referenced_one()."""
    return not vma.vm_flags & VM_SEQ_READ
