"""Fault-around: a read fault of a file maps the cached pages around it too.

Answers to Linux v6.8 mm/memory.c: do_fault_around(), set_pte_range(); mm/filemap.c:filemap_map_pages().
"""

from __future__ import annotations

import numpy as np

from kerneld.hw.paging import make_pte
from kerneld.mm.files.filemap import FAULT_AROUND_PAGES
from kerneld.mm.frames.lru import mlock_folio
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.pagewalk import FEW_ENTRIES, Leaf
from kerneld.mm.space.rss import Rss, rss_kind
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
    high = min(high, mapping.last_index())
    mapping.read_around(low, high)
    find_page, is_uptodate = mapping.pages.get, mapping.host.is_uptodate
    are_all = mapping.host.are_all_uptodate
    found = []
    for i, entry in enumerate(mm.frames.ram.words[pte + low - index : pte + max(low, high) - index].tolist(), low):
        if not entry and (pfn := find_page(i)) is not None and (are_all or is_uptodate(i)):
            found.append((i - index, pfn))
    if len(found) > FEW_ENTRIES and not vma.vm_flags & VM_LOCKED:
        _map_many_cached(mm, vma, vaddr, pte, found)
        return
    for offset, pfn in found:
        map_cached(mm, vma, vaddr + (offset << PAGE_SHIFT), pte + offset, pfn)


def _map_many_cached(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, found: list[tuple[int, Pfn]]) -> None:
    """Map pages of a file: the distance in pages from `vaddr`, in order, and the frame of each.

    Source: Linux v6.8 mm/memory.c:set_pte_range().
    """
    first, last = found[0][0], found[-1][0] + 1
    pfns = np.array([pfn for _, pfn in found], dtype=np.int64)
    prot = vma_page_prot(vma)
    entries = [0] * (last - first)
    for offset, pfn in found:
        entries[offset - first] = make_pte(pfn, prot)
    mm.frames.get_pages(pfns)
    run = Leaf(vaddr + (first << PAGE_SHIFT), vaddr + (last << PAGE_SHIFT), pte + first, pte + last)
    kind = Rss(rss_kind(mm.frames.flags_at[found[0][1]]))
    mm.pages.set_ptes(run, np.array(entries, dtype=np.uint64), pfns, kind)


def window_around(vma: Vma, vaddr: Vaddr) -> tuple[int, int]:
    """Return the indexes [first, last) of a file's pages around a fault, in the same VMA and leaf table."""
    index = vma.page_index(vaddr)
    offset = vaddr >> PAGE_SHIFT & 511
    first = max(offset & -FAULT_AROUND_PAGES, offset - min(offset, index - vma.pgoff))
    last = min(first + FAULT_AROUND_PAGES, 512, offset + ((vma.end - vaddr) >> PAGE_SHIFT))
    return index - (offset - first), index + last - offset


def map_cached(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, pfn: Pfn) -> None:
    """Map a cached page of a file at an empty entry."""
    mm.frames.get_page(pfn)
    mm.pages.set_pte(pte, vaddr, make_pte(pfn, vma_page_prot(vma)), pfn)
    if vma.vm_flags & VM_LOCKED:
        mlock_folio(mm.frames, pfn)
