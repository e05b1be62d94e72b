"""A balanced search tree whose nodes are the caller's objects, and whose order is the caller's as well.

The caller goes down the tree, compares as it likes, and links a new node where its way ended. So a tree may be in an
order that has changed since: it is still a tree, and it is still balanced. A node knows the node above it, so it can be
removed without a search. Linux has `struct rb_root` for this (lib/rbtree.c). A treap takes fewer lines: each node has
a random rank, and a node's rank is at least that of the nodes below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Generic, TypeVar

_ranks = Random(0)


class TreapNode:
    """What an object needs to be in a tree; it is in one tree at a time."""

    __slots__ = ("above", "left", "rank", "right")

    above: TreapNode | None
    left: TreapNode | None
    right: TreapNode | None
    rank: int

    def forget_links(self) -> None:
        """Let go of the other nodes of a tree that nobody uses any more."""
        self.above = self.left = self.right = None


Node = TypeVar("Node", bound=TreapNode)


class Treap(Generic[Node]):
    """One tree."""

    def __init__(self) -> None:
        self.root: TreapNode | None = None

    def link(self, node: Node, above: Node | None, *, is_left: bool) -> None:
        """Add a node below `above`, on the side where `above` has no node yet; None: the tree is empty."""
        node.above, node.left, node.right, node.rank = above, None, None, _ranks.getrandbits(32)
        if above is None:
            self.root = node
        elif is_left:
            above.left = node
        else:
            above.right = node
        while node.above is not None and node.above.rank < node.rank:
            self._rotate_up(node)

    def erase(self, node: Node) -> None:
        """Remove a node of this tree."""
        while node.left is not None or node.right is not None:
            left, right = node.left, node.right
            self._rotate_up(right if left is None or (right is not None and right.rank > left.rank) else left)
        self._put_at(node, None)
        node.above = None

    def replace(self, old: Node, new: Node) -> None:
        """Put a node that is in no tree at the place of one of this tree."""
        new.above, new.left, new.right, new.rank = old.above, old.left, old.right, old.rank
        for below in (new.left, new.right):
            if below is not None:
                below.above = new
        self._put_at(old, new)
        old.forget_links()

    def _put_at(self, node: TreapNode, new: TreapNode | None) -> None:
        """Let what is above a node lead to `new` instead."""
        above = node.above
        if above is None:
            self.root = new
        elif above.left is node:
            above.left = new
        else:
            above.right = new

    def _rotate_up(self, node: TreapNode | None) -> None:
        """Let a node and the one above it change places; the order stays."""
        assert node is not None
        above = node.above
        assert above is not None
        self._put_at(above, node)
        node.above, above.above = above.above, node
        if above.left is node:
            above.left, node.right, moved = node.right, above, node.right
        else:
            above.right, node.left, moved = node.left, above, node.left
        if moved is not None:
            moved.above = above

    def __iter__(self) -> Iterator[Node]:
        """Yield the nodes in order."""
        way: list[TreapNode] = []
        node = self.root
        while way or node is not None:
            while node is not None:
                way.append(node)
                node = node.left
            node = way.pop()
            yield node  # type: ignore[misc]
            node = node.right
