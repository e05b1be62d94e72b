"""Frames that are given in advance: to native programs, for pages that they will probably write to next.

Such a frame belongs to no entry yet. When the program has taken the page, the entry gets the frame; else it is free
again. Owns the set of these frames. Knows no address space. Linux has nothing equal: a processor's list of free pages
(mm/page_alloc.c: per_cpu_pages) is the nearest; its pages do not count as free either.

Invariants: such a frame has one reference, of no entry and no cache, and no flags; it is in no free block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shared.uapi.page import Pfn

if TYPE_CHECKING:
    from kerneld.mm.frames.frames import Frames

_PLENTY = 2048
"""Frames are given only if so many more are free than the background pass of reclaim wants."""
_AT_ONCE = 64


class GivenFrames:
    """The frames of one machine that are given in advance."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.pfns: set[Pfn] = set()
        self.stamps = range(0)
        """The time by the clock of the LRU lists, for the next frames that are used; none: it is now."""

    def are_plenty(self) -> bool:
        """Return whether so many frames are free that nothing will be reclaimed soon."""
        frames = self._frames
        return frames.alloc_hook is None and frames.free_pages >= frames.watermark_high + _PLENTY

    def take(self) -> list[Pfn]:
        """Return 64 frames of zeros; none where memory is not plenty."""
        frames = self._frames
        if not self.are_plenty():
            return []
        pfns = frames.alloc_pages(_AT_ONCE)
        # The program may write to them from now on.
        frames.ram.written[pfns] = True
        taken: list[Pfn] = pfns.tolist()
        self.pfns.update(taken)
        return taken

    def use(self, pfns: list[Pfn], flags: int, mapping: int, indexes: list[int]) -> None:
        """Note that entries are about to get these frames, as if they had just been allocated.

        They have these PG_ flags, the mapping with this number, and these indexes in it.
        """
        frames = self._frames
        self.pfns.difference_update(pfns)
        if len(self.stamps) >= len(pfns) and self.stamps.stop <= frames.lru_clock + 1:
            frames.lru[pfns] = self.stamps[: len(pfns)]
            self.stamps = self.stamps[len(pfns) :]
        else:
            frames.stamp(np.array(pfns, dtype=np.int64))
        for pfn, index in zip(pfns, indexes, strict=True):
            frames.flags_at[pfn] = flags
            frames.mapping_at[pfn] = mapping
            frames.index_at[pfn] = index

    def put_back(self, pfns: list[Pfn]) -> None:
        """Free frames that nobody has taken."""
        if pfns:
            self.pfns.difference_update(pfns)
            self._frames.put_pages(np.array(pfns, dtype=np.int64))
