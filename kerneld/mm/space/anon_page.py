"""A new page of anonymous memory, and the anon_vma that it needs.

The module is apart from the faults because `kerneld.mm.fault.populate`, `thp` and `collapse` make such pages too.
Answers to Linux v6.8 mm/rmap.c:__anon_vma_prepare(), folio_add_new_anon_rmap().
"""

from __future__ import annotations

from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_LRU, PG_SWAPBACKED, PG_UNEVICTABLE
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rmap import anon_vma_prepare
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import Pfn, Vaddr

ANON_FLAGS = PG_ANON | PG_SWAPBACKED | PG_ANON_EXCLUSIVE | PG_LRU
LOCKED_ANON_FLAGS = ANON_FLAGS | PG_UNEVICTABLE


def anon_flags(vma: Vma) -> int:
    """Return the PG_ flags of a new anonymous frame of a VMA. Source: Linux v6.8 mm/swap.c:folio_add_lru_vma()."""
    return LOCKED_ANON_FLAGS if vma.vm_flags & VM_LOCKED else ANON_FLAGS


def prepare_anon_vma(mm: MmStruct, vma: Vma) -> int:
    """Make sure that the VMA has an anon_vma and return its number, which its frames carry as their mapping."""
    if vma.anon_vma is None:
        anon_vma_prepare(vma, mm.vmas.neighbours(vma), mm.frames)
    assert vma.anon_vma is not None
    return vma.anon_vma.number


def new_anon_page(mm: MmStruct, vma: Vma, vaddr: Vaddr, *, zero: bool = True) -> Pfn:
    """Return a new frame that belongs to the VMA's anonymous memory alone. Raises SysError(ENOMEM).

    Source: Linux v6.8 mm/rmap.c:folio_add_new_anon_rmap().
    """
    anon_vma = vma.anon_vma
    number = prepare_anon_vma(mm, vma) if anon_vma is None else anon_vma.number
    frames = mm.frames
    pfn = frames.alloc_page(LOCKED_ANON_FLAGS if vma.vm_flags & VM_LOCKED else ANON_FLAGS, zero=zero)
    frames.mapping_at[pfn] = number
    frames.index_at[pfn] = vma.page_index(vaddr)
    return pfn


def use_given_pages(mm: MmStruct, vma: Vma, start: Vaddr, numbers: list[int], pfns: list[Pfn]) -> None:
    """Make frames that were given in advance pages of the VMA's anonymous memory, as `new_anon_page` does.

    The pages have these numbers from `start` on.
    """
    anon_vma, first = prepare_anon_vma(mm, vma), vma.page_index(start)
    mm.frames.given.use(pfns, anon_flags(vma), anon_vma, [first + number for number in numbers])
