"""Fault-around: a read fault of a file maps the cached pages around it too.

Answers to Linux v6.8 mm/memory.c: do_fault_around(), set_pte_range(); mm/filemap.c:filemap_map_pages().
"""

from __future__ import annotations

from kerneld.hw.paging import make_pte
from kerneld.mm.files.filemap import FAULT_AROUND_PAGES
from kerneld.mm.files.readahead import pages_around
from kerneld.mm.frames.lru import mlock_folio
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.pagewalk import FEW_ENTRIES
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SHIFT, Pfn, Vaddr


def map_pages_around(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int) -> None:
    """Map the page of a read fault, and the cached pages around it.

    Source: Linux v6.8 mm/memory.c:do_fault_around().
    """
    assert vma.file is not None
    mapping = vma.file.mapping
    index = vma.page_index(vaddr)
    low, high = window_around(vma, vaddr)
    pfns = pages_around(mapping, low, min(high, mapping.last_index()))
    pte -= index - low
    vaddr -= index - low << PAGE_SHIFT
    entries = mm.frames.ram.words[pte : pte + len(pfns)].tolist()
    if any(entries):
        pfns = [None if entry else pfn for pfn, entry in zip(pfns, entries, strict=True)]
    if len(pfns) - pfns.count(None) > FEW_ENTRIES and not vma.vm_flags & VM_LOCKED:
        mm.pages.set_cached_ptes(pte, vaddr, pfns, vma_page_prot(vma))
        return
    for at, pfn in enumerate(pfns):
        if pfn is not None:
            map_cached(mm, vma, vaddr + (at << PAGE_SHIFT), pte + at, pfn)


def window_around(vma: Vma, vaddr: Vaddr) -> tuple[int, int]:
    """Return the indexes [first, last) of a file's pages around a fault, in the same VMA and leaf table."""
    offset = vaddr >> PAGE_SHIFT & 511
    before, after = (vaddr - vma.start) >> PAGE_SHIFT, (vma.end - vaddr) >> PAGE_SHIFT
    # Without calls of min() and max(): every read fault of a file comes here.
    first = offset & -FAULT_AROUND_PAGES
    if first < offset - before:
        first = offset - before
    last = first + FAULT_AROUND_PAGES
    if last > offset + after:
        last = offset + after
    if last > 512:
        last = 512
    index = before + vma.pgoff - offset
    return index + first, index + last


def map_cached(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, pfn: Pfn) -> None:
    """Map a cached page of a file at an empty entry."""
    mm.frames.get_page(pfn)
    mm.pages.set_pte(pte, vaddr, make_pte(pfn, vma_page_prot(vma)), pfn)
    if vma.vm_flags & VM_LOCKED:
        mlock_folio(mm.frames, pfn)
