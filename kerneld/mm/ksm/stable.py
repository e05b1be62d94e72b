"""The stable tree: the merged frames in the order of their contents.

The contents cannot change, because no entry of a merged frame is writable. A frame serves at most `max_page_sharing`
pages, so that a walk over its entries does not take long. For more pages there are more frames with the same
contents: their nodes ("dups") hang at a chain, which has their place in the tree.
Answers to Linux v6.8 mm/ksm.c: stable_tree_search(), stable_tree_insert(), stable_tree_append(), stable_node_dup().
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from itertools import islice
from time import monotonic

from kerneld.mm.frames.frames import PG_KSM, Frames
from kerneld.mm.ksm.contents import page_bytes
from kerneld.mm.ksm.items import MOST_DROPPED, ksm_page_of, remove_node_from_stable_tree, set_some_free
from kerneld.mm.space.ksm_state import Ksm, RmapItem, StableNode
from kerneld.mm.space.pace import Pace, Steps
from shared.uapi.page import Pfn


def find_stable_node(frames: Frames, pfn: Pfn) -> StableNode | None:
    """Return the node of a merged frame; None for other frames. Source: Linux v6.8 mm/ksm.c:page_stable_node()."""
    node = frames.find_mapping(pfn) if frames.flags_at[pfn] & PG_KSM else None
    return node if isinstance(node, StableNode) else None


def may_serve_one_more(ksm: Ksm, node: StableNode, ahead: int = 0) -> bool:
    """Return whether a node serves a page and may serve another one, after `ahead` more.

    Source: Linux v6.8 mm/ksm.c:is_page_sharing_candidate().
    """
    return len(node.items) > 0 and len(node.items) + ahead < ksm.settings.max_page_sharing


def stable_tree_search(ksm: Ksm, frames: Frames, pfn: Pfn) -> StableNode | None:
    """Return the node of a merged frame with the contents of this one, and with room for one more page, or None.

    A frame that is merged itself is its own result, also without room: a child has it. Stale nodes on the way go.
    Source: Linux v6.8 mm/ksm.c:stable_tree_search().
    """
    own = find_stable_node(frames, pfn)
    if own is not None:
        return own
    _, node, side = _descend(ksm, frames, page_bytes(frames, pfn), prunes=True)
    return node if node is not None and not side and may_serve_one_more(ksm, node) else None


def _descend(
    ksm: Ksm, frames: Frames, contents: bytes, *, prunes: bool
) -> tuple[StableNode | None, StableNode | None, int]:
    """Return where contents are in the tree, or belong: the last node of the way; itself, or the choice from a chain.

    The third is 0 if that node has the contents; else the side below it: -1 or 1. (None, None, 0): the tree is empty.
    A stale node changes the tree when it goes, so the search begins again.
    """
    while True:
        above, chosen, side = None, None, 0
        at = ksm.stable.root
        while at is not None:
            assert isinstance(at, StableNode)
            node = _choose(ksm, frames, at, prunes=prunes) if at.dups is not None else at
            if node is None or not ksm_page_of(ksm, frames, node):
                break
            # A chain of one has gone, and this node has its place.
            above = at = at if node.chain is not None else node
            chosen, there = node, page_bytes(frames, node.pfn)
            if contents == there:
                return above, chosen, 0
            side = -1 if contents < there else 1
            at = at.left if side < 0 else at.right
        else:
            return above, chosen, side


def _choose(ksm: Ksm, frames: Frames, chain: StableNode, *, prunes: bool) -> StableNode | None:
    """Return the node of a chain that is to serve the next page: the fullest with room, else any; None: none is left.

    Usually the first with room is taken. From time to time all are looked at, and stale ones go. A chain with one node
    is replaced by the node, and a chain without nodes goes. Source: Linux v6.8 mm/ksm.c:stable_node_dup().
    Differs from Linux: one search looks at 512 nodes at most. The scan looks at all of a longer chain, in pieces.
    """
    assert chain.dups is not None
    now, delay = monotonic(), ksm.settings.stable_node_chains_prune_millisecs / 1000
    prunes = prunes and now >= chain.prune_at + delay
    if prunes:
        chain.prune_at = now
        if len(chain.dups) > MOST_DROPPED:
            ksm.to_prune.append(chain)
            prunes = False
    found = None
    while chain.dups and found is None:
        found = _best(ksm, frames, None, islice(reversed(chain.dups), MOST_DROPPED), looks_at_all=prunes)
    if found is None:
        _drop_chain(ksm, chain, None)
    elif len(chain.dups) == 1:
        _drop_chain(ksm, chain, found)
    else:
        _put_first(ksm, chain, found)
    return found


def _best(
    ksm: Ksm, frames: Frames, found: StableNode | None, dups: Iterable[StableNode], *, looks_at_all: bool
) -> StableNode | None:
    """Return the fullest node with room of `found` and these nodes of a chain, else any; stale ones go."""
    for dup in list(dups):
        if not ksm_page_of(ksm, frames, dup):
            continue
        if found is None or _is_better(ksm, dup, found):
            found = dup
            if not looks_at_all and may_serve_one_more(ksm, found):
                break
    return found


def _put_first(ksm: Ksm, chain: StableNode, found: StableNode) -> None:
    """Let a node be the first that is tried, if it may serve more than one page more."""
    assert chain.dups is not None
    if next(reversed(chain.dups)) is not found and may_serve_one_more(ksm, found, ahead=1):
        del chain.dups[found]
        chain.dups[found] = None


def prune_long_chains(ksm: Ksm, frames: Frames) -> Steps:
    """Look at all nodes of the chains whose time for that has come; yield when other clients may be served.

    Source: Linux v6.8 mm/ksm.c:stable_node_dup(), with prune_stale_stable_nodes.
    """
    while ksm.to_prune:
        chain = ksm.to_prune.pop()
        found: StableNode | None = None
        dups = list(reversed(chain.dups or ()))
        for first in range(0, len(dups), MOST_DROPPED):
            here = [dup for dup in dups[first : first + MOST_DROPPED] if dup.chain is chain]
            if found is not None and found.chain is not chain:
                found = None
            found = _best(ksm, frames, found, here, looks_at_all=True)
            yield
        if found is not None and found.chain is chain:
            _put_first(ksm, chain, found)


def _is_better(ksm: Ksm, dup: StableNode, found: StableNode) -> bool:
    return may_serve_one_more(ksm, dup) and (not may_serve_one_more(ksm, found) or len(dup.items) > len(found.items))


def _drop_chain(ksm: Ksm, chain: StableNode, last: StableNode | None) -> None:
    """Remove a chain from the tree; its last node takes its place."""
    assert chain.dups is not None
    if last is None:
        ksm.stable.erase(chain)
    else:
        ksm.stable.replace(chain, last)
        last.chain = None
        ksm.stable_node_dups -= 1
    chain.dups = {}
    ksm.stable_node_chains -= 1


def stable_tree_insert(ksm: Ksm, frames: Frames, pfn: Pfn) -> StableNode:
    """Make a node for a frame that has just become merged, and return it.

    Source: Linux v6.8 mm/ksm.c:stable_tree_insert().
    """
    above, _, side = _descend(ksm, frames, page_bytes(frames, pfn), prunes=False)
    node = StableNode(frames, pfn)
    if above is None or side:
        ksm.stable.link(node, above, is_left=side < 0)
    else:
        chain = above if above.dups is not None else _make_chain(ksm, frames, above)
        _add_dup(ksm, node, chain)
    frames.mapping_at[pfn] = node.number
    return node


def _make_chain(ksm: Ksm, frames: Frames, node: StableNode) -> StableNode:
    """Put a chain at the place of a node. Source: Linux v6.8 mm/ksm.c:alloc_stable_node_chain()."""
    chain = StableNode(frames, 0)
    chain.dups = {}
    chain.prune_at = monotonic()
    ksm.stable_node_chains += 1
    ksm.stable.replace(node, chain)
    _add_dup(ksm, node, chain)
    return chain


def _add_dup(ksm: Ksm, node: StableNode, chain: StableNode) -> None:
    assert chain.dups is not None
    chain.dups[node] = None
    node.chain = chain
    ksm.stable_node_dups += 1


def stable_tree_append(ksm: Ksm, item: RmapItem, node: StableNode) -> None:
    """Note that a node's frame serves one more page. Source: Linux v6.8 mm/ksm.c:stable_tree_append()."""
    if node.items:
        ksm.pages_sharing += 1
    else:
        ksm.pages_shared += 1
    node.items[item] = None
    item.head = node
    item.mm.ksm_merging_pages += 1


def remove_all_stable_nodes(ksm: Ksm, frames: Frames) -> Generator[None, None, bool]:
    """Remove the nodes whose frames are not mapped any more, up to one that is; return whether none is left.

    Yields when other clients may be served; the caller keeps ksmd out (`Ksm.is_held`).
    Source: Linux v6.8 mm/ksm.c:remove_all_stable_nodes(), remove_stable_node().
    """
    pace = Pace()
    while isinstance(top := ksm.stable.root, StableNode):
        for node in [top] if top.dups is None else list(islice(reversed(top.dups), MOST_DROPPED)):
            if ksm_page_of(ksm, frames, node):
                if frames.mapcount_at[node.pfn]:
                    return False
                frames.mapping_at[node.pfn] = 0
                remove_node_from_stable_tree(ksm, node)
        if top.dups is not None and not top.dups:
            _drop_chain(ksm, top, None)
        while ksm.leaving:
            yield
            set_some_free(ksm)
        if pace.is_over():
            yield
            pace.begin()
    return True
