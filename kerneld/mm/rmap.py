"""Reverse mapping of anonymous memory: which VMAs may map a frame.

Owns `AnonVma` and the chains from VMAs to them. A VMA that has faulted an anonymous page in has an `anon_vma`; its
chain holds that one and those it inherited by fork, so that from a frame's anon_vma all VMAs that may map it are found.
Knows no page table. Answers to Linux v6.8 mm/rmap.c and include/linux/rmap.h.

Invariant: `vma in anon_vma.vmas` exactly where `anon_vma in vma.anon_vma_chain`; a VMA's own anon_vma is in its chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerneld.mm.frames import Frames
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS, VM_SOFTDIRTY

if TYPE_CHECKING:
    from kerneld.mm.vma import Vma


class AnonVma:
    """The anonymous pages of a family of VMAs (Linux: struct anon_vma)."""

    __slots__ = ("__weakref__", "num_active_vmas", "num_children", "number", "parent", "vmas")

    def __init__(self, frames: Frames, parent: AnonVma | None = None) -> None:
        self.number = frames.register_mapping(self)
        self.parent = parent
        self.vmas: set[Vma] = set()
        self.num_children = 0
        """anon_vmas whose parent this is; a root counts itself (Linux: anon_vma->num_children)."""
        self.num_active_vmas = 0
        """VMAs whose own anon_vma this is."""
        (parent or self).num_children += 1


def anon_vma_root(anon_vma: AnonVma) -> AnonVma:
    """Return the oldest ancestor of an anon_vma: the one to which all VMAs of the family are chained."""
    while anon_vma.parent is not None:
        anon_vma = anon_vma.parent
    return anon_vma


def _chain(vma: Vma, anon_vma: AnonVma) -> None:
    if anon_vma not in vma.anon_vma_chain:
        vma.anon_vma_chain = (*vma.anon_vma_chain, anon_vma)
        anon_vma.vmas.add(vma)


def anon_vma_prepare(vma: Vma, near: tuple[Vma | None, Vma | None], frames: Frames) -> AnonVma:
    """Return the VMA's anon_vma, taking a neighbour's where the two VMAs could be merged but for it, else a new one.

    `near` is the previous and the next VMA. Source: Linux v6.8 mm/rmap.c:__anon_vma_prepare().
    """
    if vma.anon_vma is None:
        anon_vma = _find_mergeable_anon_vma(vma, near) or AnonVma(frames)
        vma.anon_vma = anon_vma
        _chain(vma, anon_vma)
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
        and len(old.anon_vma_chain) == 1
    ):
        return old.anon_vma
    return None


def anon_vma_clone(to: Vma, source: Vma) -> None:
    """Chain every anon_vma of `source` to `to`, which keeps or gets none of its own.

    On behalf of a fork (`to` has no anon_vma while `source` has), an anon_vma without users may be reused as `to`'s
    own.
    Source: Linux v6.8 mm/rmap.c:anon_vma_clone().
    """
    for anon_vma in source.anon_vma_chain:
        _chain(to, anon_vma)
        unused = anon_vma.num_children <= 1 and anon_vma.num_active_vmas == 0
        if unused and to.anon_vma is None and source.anon_vma is not None:
            to.anon_vma = anon_vma
    if to.anon_vma is not None:
        to.anon_vma.num_active_vmas += 1


def anon_vma_fork(child: Vma, parent: Vma, frames: Frames) -> None:
    """Attach a forked VMA to its parent's anon_vmas and give it one of its own.

    Source: Linux v6.8 mm/rmap.c:anon_vma_fork().
    """
    child.anon_vma = None
    if parent.anon_vma is None:
        return
    anon_vma_clone(child, parent)
    if child.anon_vma is None:
        anon_vma = AnonVma(frames, parent.anon_vma)
        child.anon_vma = anon_vma
        _chain(child, anon_vma)
        anon_vma.num_active_vmas += 1


def dup_anon_vma(to: Vma, source: Vma) -> None:
    """Let a VMA that grows over `source` take its anon_vma where it has none.

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
    """Take a VMA that goes out of its anon_vmas. Source: Linux v6.8 mm/rmap.c:unlink_anon_vmas()."""
    if vma.anon_vma is not None:
        vma.anon_vma.num_active_vmas -= 1
    for anon_vma in vma.anon_vma_chain:
        anon_vma.vmas.discard(vma)
        if not anon_vma.vmas and anon_vma.parent is not None:
            anon_vma.parent.num_children -= 1
            anon_vma.parent = None
    vma.anon_vma = None
    vma.anon_vma_chain = ()
