"""The VMAs that map one inode, a search for the VMAs that map given pages, and a walk over them in pieces.

Knows only bounds. Answers to Linux v6.8 include/linux/fs.h (address_space.i_mmap) and mm/rmap.c:rmap_walk_file().
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from kerneld.mm.intervals import Intervals

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma

    _MmOfVma = Intervals[Vma, MmStruct]
else:
    _MmOfVma = Intervals

_WALKED_AT_ONCE = 1024
CROWD = 512
"""Reclaim does not look at the entries of a page that more VMAs than this may map: see `kerneld.mm.reclaim.vmscan`."""


class IMmap(_MmOfVma):
    """Each VMA with its address space (Linux: mapping->i_mmap)."""

    def __init__(self) -> None:
        super().__init__()
        self._walks: list[deque[Vma]] = []
        """For each walk that has begun, the VMAs to which entries may have come since."""

    def bounds(self, item: Vma) -> tuple[int, int]:
        """Return the pages of the file that a VMA maps."""
        return item.pgoff, item.pgoff + item.nr_pages

    def is_crowded(self, first: int, last: int) -> bool:
        """Return whether so many VMAs may map a page of [first, last) that a look at all takes long."""
        return len(self) > CROWD and self.has_more(first, last, CROWD)

    def may_get_entries(self, vma: Vma) -> None:
        """Note that entries that are elsewhere may come to a VMA: it is new, has other bounds, or is moved to.

        Called before the first entry comes.
        """
        for coming in self._walks:
            coming.append(vma)

    def walk(self, first: int, last: int) -> Iterator[list[Vma]]:
        """Yield the VMAs that map a page of [first, last), some at a time; meanwhile VMAs may come, go and change.

        An entry that was there when the walk began is in a yielded VMA when that is yielded, unless it has been
        cleared before. Linux holds mapping->i_mmap_rwsem instead, which mremap, munmap and fork wait for. It holds
        because a VMA to which an entry moves comes (again) behind the VMA from which it moves, and a child's VMA behind
        its parent's.
        """
        coming: deque[Vma] = deque()
        self._walks.append(coming)
        try:
            for part in self.overlapping_in_parts(first, last, _WALKED_AT_ONCE):
                yield [vma for vma in part if vma in self]
            while coming:
                part = list(islice(coming, _WALKED_AT_ONCE))
                for _ in part:
                    coming.popleft()
                yield [vma for vma in self._those_in(part, first, last) if vma in self]
        finally:
            # The lists may be equal, but only one is this.
            with contextlib.suppress(StopIteration):
                del self._walks[next(at for at, each in enumerate(self._walks) if each is coming)]
