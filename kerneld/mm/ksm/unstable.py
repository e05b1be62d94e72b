"""The unstable tree: pages in the order of the contents that they had when they came.

Their contents may change, and then the tree is out of order: a search may miss an equal page, until the next scan
builds the tree anew. Only pages whose checksum was the same in two scans come in.
Answers to Linux v6.8 mm/ksm.c:unstable_tree_search_insert(), get_mergeable_page().
"""

from __future__ import annotations

from kerneld.hw.paging import PTE_SPECIAL, pte_pfn, pte_present
from kerneld.mm.frames.frames import PG_ANON, Frames
from kerneld.mm.ksm.contents import page_bytes
from kerneld.mm.ksm.items import find_mergeable_vma
from kerneld.mm.space.ksm_state import Ksm, RmapItem
from kerneld.mm.space.mm import MmStruct
from shared.uapi.page import PAGE_SIZE, Pfn, Vaddr


def find_anon_frame(mm: MmStruct, address: Vaddr) -> Pfn | None:
    """Return the anonymous frame that a page is mapped to, or None. Source: Linux v6.8 mm/gup.c:follow_page()."""
    words = mm.frames.ram.words
    pte = mm.page_table.find_pte(address)
    if pte is not None:
        entry = words[pte]
        if not pte_present(entry) or entry & PTE_SPECIAL:
            return None
        pfn = pte_pfn(entry)
        return pfn if mm.frames.flags_at[pfn] & PG_ANON else None
    for leaf in mm.page_table.walk.leaves(address, address + PAGE_SIZE):
        _, pfns = mm.page_table.walk.mapped(leaf)
        if len(pfns):
            return int(pfns[0])
    return None


def unstable_tree_search_insert(ksm: Ksm, frames: Frames, item: RmapItem, pfn: Pfn) -> tuple[RmapItem, Pfn] | None:
    """Return an item with the contents of this frame, and its frame; or put the frame's item into the tree: None.

    Nothing is put in if the search meets a page that has gone, or the same frame, which a child has.
    Source: Linux v6.8 mm/ksm.c:unstable_tree_search_insert().
    """
    contents = page_bytes(frames, pfn)
    above, is_left = None, False
    at = ksm.unstable.root
    while at is not None:
        assert isinstance(at, RmapItem)
        there = None if find_mergeable_vma(at.mm, at.address) is None else find_anon_frame(at.mm, at.address)
        if there is None or there == pfn:
            return None
        other = page_bytes(frames, there)
        if contents == other:
            return at, there
        above, is_left = at, contents < other
        at = at.left if is_left else at.right
    item.seqnr = ksm.scan.seqnr
    ksm.unstable.link(item, above, is_left=is_left)
    ksm.pages_unshared += 1
    return None
