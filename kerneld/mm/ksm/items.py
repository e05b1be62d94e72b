"""The items of scanned pages: made, taken out of the trees, and dropped; and stable nodes that have become stale.

Each function keeps the counters of /sys/kernel/mm/ksm and of the address spaces right.
Answers to Linux v6.8 mm/ksm.c: alloc_rmap_item() to remove_trailing_rmap_items().
"""

from __future__ import annotations

from kerneld.mm.frames.frames import Frames
from kerneld.mm.space.ksm_state import Ksm, MmSlot, RmapItem, StableNode
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_MERGEABLE
from shared.uapi.page import Vaddr

MOST_DROPPED = 512
"""The items that one step drops or sets free at most: it takes about a millisecond."""


def find_mergeable_vma(mm: MmStruct, address: Vaddr) -> Vma | None:
    """Return the VMA of a page that may be merged, or None. Source: Linux v6.8 mm/ksm.c:find_mergeable_vma()."""
    vma = None if mm.is_dying else mm.vmas.lookup(address)
    return vma if vma is not None and vma.vm_flags & VM_MERGEABLE and vma.anon_vma is not None else None


def ksm_page_of(ksm: Ksm, frames: Frames, node: StableNode) -> bool:
    """Return whether a node's frame is still merged; if not, the node is removed with everything at it.

    Source: Linux v6.8 mm/ksm.c:get_ksm_page().
    """
    if node.is_current(frames):
        return True
    remove_node_from_stable_tree(ksm, node)
    return False


def remove_node_from_stable_tree(ksm: Ksm, node: StableNode) -> None:
    """Remove a node, no chain, that no frame has any more. The scan sets its items free, step by step.

    Differs from Linux: there all items are set free at once, and other tasks run on other processors meanwhile.
    Source: Linux v6.8 mm/ksm.c:remove_node_from_stable_tree().
    """
    if node.items:
        ksm.pages_shared -= 1
        ksm.pages_sharing -= len(node.items) - 1
        ksm.leaving.append(node)
    node.has_left = True
    unlink_node(ksm, node)


def set_some_free(ksm: Ksm) -> None:
    """Set items of removed nodes free, as many as one step takes."""
    left = MOST_DROPPED
    while ksm.leaving and left:
        items = ksm.leaving[-1].items
        while items and left:
            _set_free(items.popitem()[0])
            left -= 1
        if not items:
            ksm.leaving.pop()


def unlink_node(ksm: Ksm, node: StableNode) -> None:
    """Take a node out of its chain, or out of the tree. Source: Linux v6.8 mm/ksm.c:stable_node_dup_del()."""
    if node.chain is None:
        ksm.stable.erase(node)
        return
    assert node.chain.dups is not None
    del node.chain.dups[node]
    node.chain = None
    ksm.stable_node_dups -= 1


def _set_free(item: RmapItem) -> None:
    item.mm.ksm_merging_pages -= 1
    item.anon_vma = item.head = None


def remove_rmap_item_from_tree(ksm: Ksm, frames: Frames, item: RmapItem) -> None:
    """Take an item away from its stable node, or out of the unstable tree.

    The unstable tree is emptied at the end of a scan as a whole: an item of the scan before is not in it any more.
    Source: Linux v6.8 mm/ksm.c:remove_rmap_item_from_tree().
    """
    node = item.head
    if node is not None:
        is_served = not node.has_left and ksm_page_of(ksm, frames, node)
        del node.items[item]
        _set_free(item)
        if is_served and node.items:
            ksm.pages_sharing -= 1
        elif is_served:
            ksm.pages_shared -= 1
    elif item.seqnr is not None:
        if item.seqnr == ksm.scan.seqnr:
            ksm.unstable.erase(item)
        ksm.pages_unshared -= 1
        item.seqnr = None


def drop_items(ksm: Ksm, frames: Frames, slot: MmSlot, first: int, last: int) -> None:
    """Forget the items of an address space with these numbers, [first, last): there is no mergeable page any more.

    Source: Linux v6.8 mm/ksm.c:remove_trailing_rmap_items(), free_rmap_item().
    """
    gone = slot.items[first:last]
    for item in gone:
        remove_rmap_item_from_tree(ksm, frames, item)
        item.forget_links()
    del slot.items[first:last]
    ksm.rmap_items -= len(gone)
    slot.mm.ksm_rmap_items -= len(gone)


def drop_last_items(ksm: Ksm, frames: Frames, slot: MmSlot, first: int) -> bool:
    """Drop the items of an address space from a number on, the last ones first, as many as one step takes.

    Return whether all are dropped.
    """
    last = len(slot.items)
    drop_items(ksm, frames, slot, max(first, last - MOST_DROPPED), last)
    return len(slot.items) <= first


def drop_skipped_items(ksm: Ksm, frames: Frames, slot: MmSlot, address: Vaddr) -> bool:
    """Drop the items between the cursor and an address, which the scan has not met, as many as one step takes.

    Return whether all are dropped.
    """
    items, place = slot.items, ksm.scan.place
    last, most = place, min(len(items), place + MOST_DROPPED)
    while last < most and items[last].address < address:
        last += 1
    if last > place:
        drop_items(ksm, frames, slot, place, last)
    return last - place < MOST_DROPPED


def ensure_item(ksm: Ksm, slot: MmSlot, address: Vaddr) -> RmapItem:
    """Return the item of a page at the cursor, which goes behind it.

    Source: Linux v6.8 mm/ksm.c:get_next_rmap_item().
    """
    items, place = slot.items, ksm.scan.place
    if place == len(items) or items[place].address != address:
        items.insert(place, RmapItem(slot.mm, address))
        ksm.rmap_items += 1
        slot.mm.ksm_rmap_items += 1
    ksm.scan.place = place + 1
    return items[place]


def remove_slot(ksm: Ksm, slot: MmSlot) -> None:
    """Take an address space, without items, off the list: it has ended, or has no mergeable memory.

    Source: Linux v6.8 mm/ksm.c:scan_get_next_rmap_item().
    """
    ksm.slots.remove(slot)
    slot.mm.ksm_slot = None
    slot.mm.merge_any = False
