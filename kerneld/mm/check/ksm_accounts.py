"""The accounts of KSM, recomputed from nothing: its counters, its trees, and the frames that they name.

This is a part of the invariants (`kerneld.mm.check.invariants`), in its own file because of its length. Raises
KernelBug with the first error. An item of an address space that has ended stays until the scan comes to it, as in
Linux; so the items are those of all slots, not of all address spaces.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from kerneld.errors import KernelBug
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_KSM, Frames
from kerneld.mm.frames.huge_frames import PG_LARGE
from kerneld.mm.ksm.contents import page_bytes
from kerneld.mm.space.ksm_state import Ksm, RmapItem, StableNode
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.treap import Treap, TreapNode


def check_ksm(frames: Frames, mms: Iterable[MmStruct]) -> None:
    """Check what KSM knows against the frames and the address spaces `mms` of the machine. Raises KernelBug."""
    mms = list(mms)
    zeros = sum(mm.rss.ksm_zero_pages for mm in mms)
    _require(frames.ksm_zero_pages == zeros, f"ksm_zero_pages is {frames.ksm_zero_pages}, address spaces have {zeros}")
    _check_merged_frames(frames)
    ksm = frames.ksm
    if ksm is None:
        return
    slots = {slot.mm: slot for slot in ksm.slots}
    _require(len(slots) == len(ksm.slots), "an address space is on KSM's list twice")
    _require(all(mm.ksm_slot is slots.get(mm) for mm in mms), "an address space and KSM's list do not agree")
    scan = ksm.scan.slot
    _require(scan is None or scan in ksm.slots, "KSM scans an address space that is not on its list")
    items = [item for slot in ksm.slots for item in slot.items]
    for slot in ksm.slots:
        pages = [item.address for item in slot.items]
        _require(pages == sorted(set(pages)), "the items of an address space are not in order")
        merging = sum(item.head is not None for item in slot.items)
        _require(slot.mm.ksm_rmap_items == len(pages), f"ksm_rmap_items is {slot.mm.ksm_rmap_items}, not {len(pages)}")
        _require(slot.mm.ksm_merging_pages == merging, f"ksm_merging_pages is {slot.mm.ksm_merging_pages}")
    _check_trees(frames, ksm, items)


def _check_merged_frames(frames: Frames) -> None:
    merged = np.flatnonzero(frames.has(slice(None), PG_KSM))
    _require(frames.has_merged or not len(merged), "a frame is merged, and none has ever been")
    kinds = frames.flags[merged] & np.uint32(PG_ANON | PG_ANON_EXCLUSIVE | PG_LARGE)
    _require(bool((kinds == PG_ANON).all()), "a merged frame is exclusive, of a huge page, or not anonymous")
    for pfn in merged.tolist():
        node = frames.find_mapping(pfn)
        named = node.pfn if isinstance(node, StableNode) else None
        _require(named == pfn or not frames.mapping_at[pfn], f"merged frame {pfn:#x} is not that of its node")


def _check_trees(frames: Frames, ksm: Ksm, items: list[RmapItem]) -> None:
    tops = list(_checked(ksm.stable))
    chains = [top for top in tops if top.dups is not None]
    dups = [dup for chain in chains for dup in chain.dups or ()]
    nodes = [top for top in tops if top.dups is None] + dups
    _require(all(dup.chain is chain for chain in chains for dup in chain.dups or ()), "a node is at another chain")
    for node in nodes:
        _require(all(item.head is node for item in node.items), "an item is at another node than the one that has it")
    attached = [item for node in nodes for item in node.items]
    _require(all(node.has_left for node in ksm.leaving), "a node whose items are to be set free has not left")
    leaving = {item for node in ksm.leaving for item in node.items}
    _require(
        leaving | set(attached) == {item for item in items if item.head is not None}, "an item's node does not have it"
    )
    unstable = list(_checked(ksm.unstable))
    waiting = [item for item in items if item.seqnr is not None]
    _require(
        {item for item in waiting if item.seqnr == ksm.scan.seqnr} == set(unstable) or ksm.scan.slot is None,
        "the unstable tree has other items than this scan has put there",
    )
    shared = sum(bool(node.items) for node in nodes)
    counted = {
        "rmap_items": len(items),
        "pages_shared": shared,
        "pages_sharing": len(attached) - shared,
        "pages_unshared": len(waiting),
        "stable_node_chains": len(chains),
        "stable_node_dups": len(dups),
    }
    for name, number in counted.items():
        _require(getattr(ksm, name) == number, f"{name} of KSM is {getattr(ksm, name)}, there are {number}")
    _check_contents(frames, tops)


def _check_contents(frames: Frames, tops: list[StableNode]) -> None:
    """Check that the contents in the stable tree are in order, and that a chain has only one content."""
    before = b""
    for top in tops:
        nodes = [top] if top.dups is None else list(top.dups)
        found = {page_bytes(frames, node.pfn) for node in nodes if node.is_current(frames)}
        _require(len(found) <= 1, "the frames of a chain differ")
        for contents in found:
            _require(before < contents or not before, "the stable tree is not in order")
            before = contents


def _checked(tree: Treap[TreapNode] | Treap[StableNode] | Treap[RmapItem]) -> list:  # type: ignore[type-arg]
    """Return the nodes of a tree in order, after a look at its links and ranks."""
    nodes = list(tree)
    for node in nodes:
        for below in (node.left, node.right):
            ok = below is None or (below.above is node and below.rank <= node.rank)
            _require(ok, "a tree of KSM is badly linked")
    return list(itertools.chain(nodes))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise KernelBug(message)
