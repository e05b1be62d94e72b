"""The scan: goes over the mergeable pages of all address spaces, and merges those with equal contents.

| page                                                  | what happens                                             |
|-------------------------------------------------------|----------------------------------------------------------|
| merged, and its item is at its stable node            | nothing                                                  |
| equal to a merged frame that may serve one more       | it maps that frame                                       |
| changed since the last scan (checksum), or new        | its checksum is noted                                    |
| of zeros, and `use_zero_pages` is set                 | it maps the zero page                                    |
| equal to a page in the unstable tree                  | its frame becomes a merged one, which both pages map     |
| equal to a page of the same huge page                 | the huge page is split; the next scan merges the pages   |
| equal to none                                         | it is put into the unstable tree                         |

Answers to Linux v6.8 mm/ksm.c: cmp_and_merge_page(), scan_get_next_rmap_item(), ksm_do_scan().
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kerneld.mm.frames.frames import PG_ANON, PG_KSM, ZERO_PFN, Frames
from kerneld.mm.ksm.advisor import advisor_start_scan, advisor_stop_scan
from kerneld.mm.ksm.contents import ZERO_CHECKSUM, calc_checksum
from kerneld.mm.ksm.items import (
    drop_last_items,
    drop_skipped_items,
    ensure_item,
    find_mergeable_vma,
    remove_rmap_item_from_tree,
    remove_slot,
    set_some_free,
)
from kerneld.mm.ksm.merge import (
    are_of_one_huge_page,
    try_to_merge_one_page,
    try_to_merge_two_pages,
    try_to_merge_with_ksm_page,
)
from kerneld.mm.ksm.stable import (
    find_stable_node,
    prune_long_chains,
    stable_tree_append,
    stable_tree_insert,
    stable_tree_search,
)
from kerneld.mm.ksm.unstable import find_anon_frame, unstable_tree_search_insert
from kerneld.mm.space.ksm_state import Ksm, MmSlot, RmapItem
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.split_folio import split_crowded_folio
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_MERGEABLE
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pfn

_LEAVES_AT_ONCE = 64
"""The most leaf tables without an anonymous page that are passed over in one step."""
_AGE_MAX = 255
IsLocked = Callable[[MmStruct], bool]
"""A function that returns whether a call holds an address space's mmap_lock for writing."""
Found = tuple[RmapItem, Pfn]


def ksm_do_scan(ksm: Ksm, frames: Frames, nr_pages: int, is_locked: IsLocked) -> Iterator[None]:
    """Scan pages, up to the end of this scan of the machine at most; yield after each, when clients may be served.

    Source: Linux v6.8 mm/ksm.c:ksm_do_scan().
    """
    left = nr_pages
    while left:
        yield from prune_long_chains(ksm, frames)
        while ksm.leaving:
            set_some_free(ksm)
            yield
        while ksm.to_split:
            yield from split_crowded_folio(frames, ksm.to_split.pop())
        if ksm.scan.slot is None and not _begin_scan(ksm):
            return
        found = _next_page(ksm, frames, is_locked)
        if found is not None:
            cmp_and_merge_page(ksm, frames, *found)
            ksm.pages_scanned += 1
            left -= 1
        elif ksm.scan.slot is None:
            return
        yield


def _begin_scan(ksm: Ksm) -> bool:
    """Begin a scan of the machine, and return whether there is anything to scan."""
    if ksm.slots.first is None:
        return False
    advisor_start_scan(ksm)
    ksm.unstable.root = None
    _go_to(ksm, ksm.slots.first)
    return True


def _go_to(ksm: Ksm, slot: MmSlot | None) -> None:
    scan = ksm.scan
    scan.slot, scan.address, scan.place, scan.has_mergeable = slot, 0, 0, False


def _next_page(ksm: Ksm, frames: Frames, is_locked: IsLocked) -> Found | None:
    """Go to the next page of the scan and return its item and frame; None: one step was made, or the scan is over.

    Source: Linux v6.8 mm/ksm.c:scan_get_next_rmap_item(): ksmd waits for mmap_lock.
    """
    scan, slot = ksm.scan, ksm.scan.slot
    assert slot is not None
    mm = slot.mm
    if is_locked(mm):
        return None
    vma = None if mm.is_dying else mm.vmas.find(scan.address)
    if vma is None:
        _end_of_mm(ksm, frames, slot)
        return None
    if not vma.vm_flags & VM_MERGEABLE:
        scan.address = vma.end
        return None
    scan.address, scan.has_mergeable = max(scan.address, vma.start), True
    if vma.anon_vma is None:
        scan.address = vma.end
        return None
    pfn = _find_page(ksm, frames, mm, vma)
    if pfn is None or not drop_skipped_items(ksm, frames, slot, scan.address):
        return None
    item = ensure_item(ksm, slot, scan.address)
    scan.address += PAGE_SIZE
    return None if should_skip_rmap_item(ksm, frames, pfn, item) else (item, pfn)


def _find_page(ksm: Ksm, frames: Frames, mm: MmStruct, vma: Vma) -> Pfn | None:
    """Move the cursor to the next anonymous page of a VMA, and return its frame; None if a step finds none."""
    scan = ksm.scan
    pfn = find_anon_frame(mm, scan.address)
    if pfn is not None:
        return pfn
    for number, leaf in enumerate(mm.page_table.walk.leaves(scan.address, vma.end), 1):
        places, pfns = mm.page_table.walk.mapped(leaf)
        at = np.flatnonzero(frames.has(pfns, PG_ANON))
        if len(at):
            scan.address = leaf.start + (int(places[at[0]]) << PAGE_SHIFT)
            return int(pfns[at[0]])
        scan.address = leaf.end
        if number == _LEAVES_AT_ONCE:
            return None
    scan.address = vma.end
    return None


def _end_of_mm(ksm: Ksm, frames: Frames, slot: MmSlot) -> None:
    """Forget the pages behind the last mergeable one, and go to the next address space, or end the scan.

    An address space that has ended, or without mergeable memory, leaves the list.
    Source: Linux v6.8 mm/ksm.c:scan_get_next_rmap_item().
    """
    has_none = slot.mm.is_dying or not ksm.scan.has_mergeable
    if not drop_last_items(ksm, frames, slot, 0 if has_none else ksm.scan.place):
        return
    following = slot.after
    if has_none:
        remove_slot(ksm, slot)
    _go_to(ksm, following)
    if following is None:
        advisor_stop_scan(ksm)
        ksm.scan.seqnr += 1


def skip_age(age: int) -> int:
    """Return how many scans pass over a page that was looked at so often in vain. Source: mm/ksm.c:skip_age()."""
    for most, skips in ((3, 1), (5, 2), (8, 4)):
        if age <= most:
            return skips
    return 8


def should_skip_rmap_item(ksm: Ksm, frames: Frames, pfn: Pfn, item: RmapItem) -> bool:
    """Return whether this scan passes over a page, because it was not merged in the last scans (`smart_scan`).

    Source: Linux v6.8 mm/ksm.c:should_skip_rmap_item().
    """
    if not ksm.settings.smart_scan or frames.flags_at[pfn] & PG_KSM:
        return False
    age = item.age
    item.age = min(age + 1, _AGE_MAX)
    if age < 3:
        return False
    if not item.remaining_skips:
        item.remaining_skips = skip_age(age)
        return False
    ksm.pages_skipped += 1
    item.remaining_skips -= 1
    remove_rmap_item_from_tree(ksm, frames, item)
    return True


def cmp_and_merge_page(ksm: Ksm, frames: Frames, item: RmapItem, pfn: Pfn) -> None:
    """Merge a page with an equal one, or note it for later: see the table above.

    Source: Linux v6.8 mm/ksm.c:cmp_and_merge_page().
    """
    own = find_stable_node(frames, pfn)
    if own is not None and item.head is own:
        return
    node = stable_tree_search(ksm, frames, pfn)
    remove_rmap_item_from_tree(ksm, frames, item)
    if node is not None:
        if try_to_merge_with_ksm_page(ksm, frames, item, pfn, node.pfn):
            stable_tree_append(ksm, item, node)
        return
    checksum = calc_checksum(frames, pfn)
    if item.oldchecksum != checksum:
        item.oldchecksum = checksum
        return
    if ksm.settings.use_zero_pages and checksum == ZERO_CHECKSUM:
        vma = find_mergeable_vma(item.mm, item.address)
        if vma is None or try_to_merge_one_page(item.mm, vma, item.address, pfn, ZERO_PFN):
            return
    match = unstable_tree_search_insert(ksm, frames, item, pfn)
    if match is not None:
        _merge_two(ksm, frames, item, pfn, *match)


def _merge_two(ksm: Ksm, frames: Frames, item: RmapItem, pfn: Pfn, tree: RmapItem, tree_pfn: Pfn) -> None:
    """Merge the pages of two items, if their contents are still equal then."""
    splits = are_of_one_huge_page(frames, pfn, tree_pfn)
    if try_to_merge_two_pages(ksm, frames, item, pfn, tree, tree_pfn):
        node = stable_tree_insert(ksm, frames, pfn)
        stable_tree_append(ksm, tree, node)
        stable_tree_append(ksm, item, node)
    elif splits:
        ksm.to_split.append(pfn)
