"""Reverse mapping of anonymous memory: which VMAs may map a frame.

Owns `AnonVma` and the chains from VMAs to them. A VMA that has faulted an anonymous page in has an `anon_vma`; its
chain holds this anon_vma and the inherited ones (fork), so that a frame's anon_vma leads to all VMAs that may map it.
Knows no page table. Answers to Linux v6.8 mm/rmap.c and include/linux/rmap.h.

Chains share their common beginning. A new anon_vma is put at the end of one chain, and every chain that contains it
contains all anon_vmas before it. So each anon_vma has a link to the one before it, `previous`, and a VMA has a link to
the last one of its chain, `chain_top`. Seen from the root, the links are a tree: a frame of an anon_vma may be mapped
by the VMAs whose chains end in this anon_vma or in one after it. So a fork makes one anon_vma for each VMA, in every
generation; Linux copies the chain (struct anon_vma_chain), and its memory grows with the square of the generations.

A search for the VMAs of a page goes down this tree, and only where the page may be: each anon_vma notes the pages that
it and those after it have covered, `first` to `last`. A family may have millions of VMAs: 60,000 in each fork.

Invariant: an anon_vma is in its `previous` one's `following` exactly while a chain ends in it or in one after it; its
bounds cover the VMAs whose chains end in it, and the bounds of those after it; a VMA's own anon_vma is in its chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from kerneld.mm.frames.frames import Frames
from kerneld.mm.intervals import Intervals
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS, VM_SOFTDIRTY
from shared.uapi.page import PAGE_SHIFT

if TYPE_CHECKING:
    from kerneld.mm.space.vma import Vma

Item = TypeVar("Item")
_link_orders = count(1)


class AnonVma:
    """The anonymous pages of a family of VMAs (Linux: struct anon_vma)."""

    __slots__ = (
        "__weakref__", "ending", "first", "following", "last", "num_active_vmas", "num_children", "number", "parent",
        "previous",
    )  # fmt: skip

    def __init__(
        self, frames: Frames, vma: Vma, parent: AnonVma | None = None, previous: AnonVma | None = None
    ) -> None:
        """`vma` is the first whose chain will end here; `previous` is the end of the chain that it is put behind."""
        self.number = frames.register_mapping(self)
        self.parent = parent
        self.previous = previous
        self.ending: Vma | Intervals[Vma, None] | None = None
        """The VMAs whose chains end here: several, or the VMA itself if it is only one, as it nearly always is."""
        self.following: AnonVma | Intervals[AnonVma, None] | None = None
        """The anon_vmas right after this one: those with this one as their `previous`."""
        self.first, self.last = _offsets(vma)
        """The page offsets [first, last) that the VMAs in the tree from here on have, or have had."""
        self.num_children = 0
        """Number of anon_vmas with this one as their parent; a root counts itself (Linux: anon_vma->num_children)."""
        self.num_active_vmas = 0
        """Number of VMAs that have this one as their own anon_vma."""
        (parent or self).num_children += 1
        if previous is not None:
            previous.following = _with(previous.following, self, _AnonVmas)
            if self.first < previous.first or previous.last < self.last:
                previous.cover(self.first, self.last)

    @property
    def vmas(self) -> list[Vma]:
        """Every VMA that has this anon_vma in its chain, and so may map its frames."""
        return self.overlapping(self.first, self.last)

    def overlapping(self, first: int, last: int) -> list[Vma]:
        """Return those of them that have a page offset of [first, last), in no order."""
        found: list[Vma] = []
        left = [self]
        while left:
            anon_vma = left.pop()
            if anon_vma.first < last and first < anon_vma.last:
                ending, following = anon_vma.ending, anon_vma.following
                if isinstance(ending, Intervals):
                    found += ending.overlapping(first, last)
                elif ending is not None and ending.pgoff < last and first < ending.pgoff + ending.nr_pages:
                    found.append(ending)
                if isinstance(following, Intervals):
                    left += following.overlapping(first, last)
                elif following is not None:
                    left.append(following)
        return found

    def cover(self, first: int, last: int) -> None:
        """Note that a VMA in the tree from here on has the page offsets [first, last)."""
        anon_vma: AnonVma | None = self
        while anon_vma is not None and not (anon_vma.first <= first and last <= anon_vma.last):
            siblings = None if anon_vma.previous is None else anon_vma.previous.following
            if isinstance(siblings, Intervals):
                siblings.remove(anon_vma)
            anon_vma.first, anon_vma.last = min(anon_vma.first, first), max(anon_vma.last, last)
            if isinstance(siblings, Intervals):
                siblings.insert(anon_vma)
            anon_vma = anon_vma.previous

    @property
    def is_singular(self) -> bool:
        """Whether a chain that ends here has no other (Linux: list_is_singular(&vma->anon_vma_chain))."""
        return self.previous is None

    def chain(self) -> Iterator[AnonVma]:
        """Yield the chain that ends here, the last one first."""
        anon_vma: AnonVma | None = self
        while anon_vma is not None:
            yield anon_vma
            anon_vma = anon_vma.previous


class _Vmas(Intervals["Vma", None]):
    def bounds(self, item: Vma) -> tuple[int, int]:
        return _offsets(item)


class _AnonVmas(Intervals[AnonVma, None]):
    def bounds(self, item: AnonVma) -> tuple[int, int]:
        return item.first, item.last


def _offsets(vma: Vma) -> tuple[int, int]:
    return vma.pgoff, vma.pgoff + (vma.end - vma.start >> PAGE_SHIFT)


def _with(
    items: Item | Intervals[Item, None] | None, item: Item, several: type[Intervals[Item, None]]
) -> Item | Intervals[Item, None]:
    if items is None:
        return item
    if not isinstance(items, Intervals):
        first, items = items, several()
        items[first] = None
    items[item] = None
    return items


def _without(items: Item | Intervals[Item, None] | None, item: Item) -> Item | Intervals[Item, None] | None:
    if not isinstance(items, Intervals):
        return None if items is item else items
    del items[item]
    return items or None


def anon_vma_root(anon_vma: AnonVma) -> AnonVma:
    """Return the oldest ancestor of an anon_vma: the one in the chain of all VMAs of the family."""
    while anon_vma.parent is not None:
        anon_vma = anon_vma.parent
    return anon_vma


def _end_chain(vma: Vma, anon_vma: AnonVma) -> None:
    vma.chain_top = anon_vma
    anon_vma.ending = vma if anon_vma.ending is None else _with(anon_vma.ending, vma, _Vmas)
    _put_last(vma, anon_vma)


def pre_update_vma(vma: Vma) -> None:
    """Prepare a VMA's anon_vmas for other bounds of the VMA.

    Source: Linux v6.8 mm/mmap.c:anon_vma_interval_tree_pre_update_vma().
    """
    if vma.chain_top is not None and isinstance(vma.chain_top.ending, Intervals):
        vma.chain_top.ending.remove(vma)


def post_update_vma(vma: Vma) -> None:
    """Note a VMA's new bounds in its anon_vmas. A walk comes to it after all VMAs with the same page offset.

    Source: Linux v6.8 mm/mmap.c:anon_vma_interval_tree_post_update_vma(), vma_complete().
    """
    top = vma.chain_top
    if top is not None:
        if isinstance(top.ending, Intervals):
            top.ending.insert(vma)
        _put_last(vma, top)


def _put_last(vma: Vma, top: AnonVma) -> None:
    """Have `top`, the end of a VMA's chain, cover the VMA, and a walk come to the VMA last."""
    first = vma.pgoff
    last = first + (vma.end - vma.start >> PAGE_SHIFT)
    if first < top.first or top.last < last:
        top.cover(first, last)
    vma.link_order = next(_link_orders)


def anon_vma_prepare(vma: Vma, near: tuple[Vma | None, Vma | None], frames: Frames) -> AnonVma:
    """Return the VMA's anon_vma. A VMA without one gets a neighbour's if the two could then be merged, else a new one.

    `near` is the previous and the next VMA. Source: Linux v6.8 mm/rmap.c:__anon_vma_prepare().
    """
    if vma.anon_vma is None:
        anon_vma = _find_mergeable_anon_vma(vma, near) or AnonVma(frames, vma)
        vma.anon_vma = anon_vma
        _end_chain(vma, anon_vma)
        anon_vma.num_active_vmas += 1
    return vma.anon_vma


def _find_mergeable_anon_vma(vma: Vma, near: tuple[Vma | None, Vma | None]) -> AnonVma | None:
    """Source: Linux v6.8 mm/mmap.c:find_mergeable_anon_vma(): the next VMA is asked first."""
    previous, following = near
    if following is not None:
        anon_vma = _reusable_anon_vma(following, vma, following)
        if anon_vma is not None:
            return anon_vma
    return _reusable_anon_vma(previous, previous, vma) if previous is not None else None


def _reusable_anon_vma(old: Vma, low: Vma, high: Vma) -> AnonVma | None:
    """Source: Linux v6.8 mm/mmap.c:reusable_anon_vma() and anon_vma_compatible(): protections may differ."""
    if (
        low.end == high.start
        and low.file is high.file
        and not (low.vm_flags ^ high.vm_flags) & ~(VM_ACCESS_FLAGS | VM_SOFTDIRTY)
        and high.pgoff == low.pgoff + low.nr_pages
        and old.anon_vma is not None
        and old.chain_top is old.anon_vma
        and old.chain_top.is_singular
    ):
        return old.anon_vma
    return None


def anon_vma_clone(to: Vma, source: Vma) -> None:
    """Give `to`, which has no chain, the chain of `source`; its own anon_vma does not change.

    Source: Linux v6.8 mm/rmap.c:anon_vma_clone().
    """
    if source.chain_top is not None:
        _end_chain(to, source.chain_top)
    if to.anon_vma is not None:
        to.anon_vma.num_active_vmas += 1


def _find_reusable(top: AnonVma) -> AnonVma | None:
    """Return the oldest anon_vma of a chain that is no VMA's own any more and has at most one child, or None."""
    found = None
    for anon_vma in top.chain():
        if anon_vma.num_children <= 1 and anon_vma.num_active_vmas == 0:
            found = anon_vma
    return found


def anon_vma_fork(child: Vma, parent: Vma, frames: Frames) -> None:
    """Attach a forked VMA to its parent's anon_vmas, and give it a new own anon_vma, or one of them without users.

    Source: Linux v6.8 mm/rmap.c:anon_vma_fork(), anon_vma_clone().
    """
    child.anon_vma = None
    if parent.anon_vma is None or parent.chain_top is None:
        return
    child.anon_vma = _find_reusable(parent.chain_top)
    if child.anon_vma is not None:
        _end_chain(child, parent.chain_top)
    else:
        child.anon_vma = AnonVma(frames, child, parent.anon_vma, parent.chain_top)
        _end_chain(child, child.anon_vma)
    child.anon_vma.num_active_vmas += 1


def dup_anon_vma(to: Vma, source: Vma) -> None:
    """Give the anon_vma of `source` to a VMA that grows over it and has none.

    Source: Linux v6.8 mm/mmap.c:dup_anon_vma().
    """
    if source.anon_vma is not None and to.anon_vma is None:
        to.anon_vma = source.anon_vma
        anon_vma_clone(to, source)


def split_anon_vma(new: Vma, old: Vma) -> None:
    """Give the other half of a split VMA the same anon_vma and chain. Source: Linux v6.8 mm/mmap.c:__split_vma()."""
    new.anon_vma = old.anon_vma
    anon_vma_clone(new, old)


def unlink_anon_vmas(vma: Vma) -> None:
    """Take a VMA that is being removed out of its anon_vmas. Source: Linux v6.8 mm/rmap.c:unlink_anon_vmas()."""
    if vma.anon_vma is not None:
        vma.anon_vma.num_active_vmas -= 1
    top, vma.anon_vma, vma.chain_top = vma.chain_top, None, None
    if top is None:
        return
    top.ending = _without(top.ending, vma)
    while top is not None and top.ending is None and top.following is None:
        if top.parent is not None:
            top.parent.num_children -= 1
            top.parent = None
        gone, top = top, top.previous
        gone.previous = None
        if top is not None:
            top.following = _without(top.following, gone)
