"""Frames that are given in advance: to native programs, for pages that they will probably write to next.

Such a frame belongs to no entry yet. When the program has taken the page, the entry gets the frame; else it is free
again. Owns the set of these frames. Knows no address space. Linux has nothing equal: a processor's list of free pages
(mm/page_alloc.c: per_cpu_pages) is the nearest; its pages do not count as free either.

Invariants: such a frame has one reference, of no entry and no cache, and no flags; it is in no free block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kerneld.mm.frames.buddy import OutOfFrames
from shared.uapi.page import Pfn

if TYPE_CHECKING:
    from kerneld.mm.frames.frames import Frames

_PLENTY = 2048
"""Frames are given only if so many more are free than the background pass of reclaim wants."""
_ORDER = 6
MANY = 8
"""From this number of frames on numpy is quicker than a loop."""


class GivenFrames:
    """The frames of one machine that are given in advance."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.pfns: set[Pfn] = set()

    def take(self) -> list[Pfn]:
        """Return 64 frames of zeros; none where memory is not plenty."""
        frames, buddy = self._frames, self._frames.buddy
        if frames.alloc_hook is not None or buddy.nr_free < frames.watermark_high + _PLENTY:
            return []
        try:
            first = buddy.alloc_block(_ORDER)
        except OutOfFrames:
            return []
        end = first + (1 << _ORDER)
        frames.ram.clear_pages(np.arange(first, end, dtype=np.int64))
        # The program may write to them from now on.
        frames.ram.written[first:end] = True
        frames.refcount[first:end] = 1
        self.pfns.update(range(first, end))
        return list(range(first, end))

    def use(self, pfns: list[Pfn], flags: int) -> None:
        """Note that entries are about to get these frames, with these PG_ flags: as if they had just been allocated."""
        frames = self._frames
        self.pfns.difference_update(pfns)
        if len(pfns) < MANY:
            for pfn in pfns:
                frames.flags_at[pfn] = flags
                frames.stamp_one(pfn)
            return
        block = np.array(pfns, dtype=np.int64)
        frames.flags[block] = flags
        frames.stamp(block)

    def put_back(self, pfns: list[Pfn]) -> None:
        """Free frames that nobody has taken."""
        if pfns:
            block = np.array(sorted(pfns), dtype=np.int64)
            self.pfns.difference_update(pfns)
            self._frames.refcount[block] = 0
            self._frames.buddy.free_many(block if self._frames.loans is None else self._frames.loans.keep(block))
