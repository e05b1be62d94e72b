"""Pages that very many VMAs may map: their entries are removed in pieces, while other clients are served.

A search for all of these entries would take longer than a turn, so a reclaim leaves such pages to the background pass
(`kerneld.mm.reclaim.vmscan`). On Linux the search is as long, and other tasks run meanwhile. Between two pieces an
anonymous page is in the swap cache, and some of its entries are swap entries already: a fault there maps the page
again. Answers to Linux v6.8 mm/rmap.c:try_to_unmap().

Differs from Linux: the entries are removed before anybody has asked whether they were used. A page that was used stays
in its cache, and is judged when it comes to the tail of its list again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerneld.hw.distinct import distinct
from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY
from kerneld.hw.scalars import u64
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import (
    PG_ANON,
    PG_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_KSM,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    Frames,
    Pfns,
)
from kerneld.mm.frames.huge_frames import PG_LARGE
from kerneld.mm.frames.lru import mlock_folios
from kerneld.mm.frames.swap_state import add_to_swap
from kerneld.mm.reclaim.shrink import keep_soft_dirty, reclaim_pages, swap_entries
from kerneld.mm.space.ksm_state import StableNode
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.rmap import AnonVma
from kerneld.mm.space.rmap_walk import Mapped, entries_in, entries_of_item
from kerneld.mm.space.split_folio import split_crowded_folio
from kerneld.mm.space.truncate import unmap_mapping_in_pieces
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import Pfn

CROWD = 64
"""A frame that so many entries map is one of a crowd: the search for a batch finds four times as many."""
_EVER = PG_ANON | PG_SWAPBACKED
_NEVER = PG_KSM | PG_LARGE | PG_UNEVICTABLE
_GOES = PG_SWAPCACHE | PG_UNEVICTABLE


class Crowded:
    """The frames of one machine whose entries a reclaim has not looked for, because there may be very many."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.pfns: list[int] = []
        self._removed = 0

    def take_progress(self) -> int:
        """Return how many entries of anonymous pages have been removed since the last call.

        No frame need be free yet.
        """
        removed, self._removed = self._removed, 0
        return removed

    def unmap(self) -> Iterator[int]:
        """Unmap these pages in pieces, and note which were in use. A huge page is split.

        Anonymous pages that were not in use are reclaimed. Yields the number of frames freed since the last yield.
        """
        frames = self._frames
        pfns, self.pfns = list(dict.fromkeys(self.pfns)), []
        for group in _anonymous(frames, np.array(pfns, dtype=np.int64)):
            yield from self._unmap_group(group)
        for pfn in pfns:
            yield from self._unmap_merged(pfn)
        for pfn in pfns:
            # Meanwhile it may have been freed, and be another page.
            for _ in self._unmap_page(pfn):
                yield 0

    def _unmap_group(self, pfns: Pfns) -> Iterator[int]:
        """Replace the entries that map these frames of one anon_vma by swap entries, and reclaim those not in use.

        Yields as `unmap` does. A frame for which the swap file has no slot, and what a locked VMA has, stays as it is.
        VMAs that come meanwhile are not looked at.
        """
        frames = self._frames
        number = int(frames.mapping[pfns[0]])
        owner = frames.find_mapping_number(number)
        if not isinstance(owner, AnonVma):
            return
        pfns = pfns[np.argsort(frames.index[pfns])]
        indexes = frames.index[pfns].copy()
        _give_slots(frames, pfns)
        pace = Pace()
        for vma in owner.overlapping(int(indexes[0]), int(indexes[-1]) + 1):
            # One may have lost its slot meanwhile, or never had one.
            self._removed += _unmap_in(frames, pfns[frames.has(pfns, PG_SWAPCACHE)], vma)
            if pace.is_over():
                yield 0
                pace.begin()
                # The frames may have been freed, and be other pages.
                alive = (frames.mapping[pfns] == number) & (frames.index[pfns] == indexes)
                alive &= (frames.flags[pfns] & np.uint32(_EVER | _NEVER)) == _EVER
                pfns, indexes = pfns[alive], indexes[alive]
        is_unused = frames.has(pfns, PG_SWAPCACHE) & ~frames.has(pfns, PG_REFERENCED | PG_UNEVICTABLE)
        yield reclaim_pages(frames, pfns[is_unused])

    def _unmap_merged(self, pfn: Pfn) -> Iterator[int]:
        """Replace the entries of a merged frame that many pages share by swap entries, and reclaim it if not in use.

        Yields as `unmap` does. Pages that are merged with it meanwhile are not looked at.
        """
        frames, batch = self._frames, np.array([pfn])
        node = frames.find_mapping(pfn)
        if not isinstance(node, StableNode) or not node.is_current(frames):
            return
        if max(len(node.items), int(frames.mapcount[pfn])) < CROWD:
            return
        _give_slots(frames, batch)
        pace = Pace()
        for item in list(node.items):
            if pace.is_over():
                yield 0
                pace.begin()
            if not node.is_current(frames) or frames.flags_at[pfn] & _GOES != PG_SWAPCACHE:
                return
            if item.head is node:
                for mapped in entries_of_item(frames, item, 0, pfn):
                    self._removed += _unmap_entries(frames, batch, mapped)
        if not frames.flags_at[pfn] & (PG_REFERENCED | PG_UNEVICTABLE):
            yield reclaim_pages(frames, batch)

    def _unmap_page(self, pfn: int) -> Iterator[None]:
        frames = self._frames
        mapping, index = frames.find_mapping(pfn), frames.index_at[pfn]
        if frames.flags_at[pfn] & PG_LARGE:
            yield from split_crowded_folio(frames, pfn)
        if not isinstance(mapping, AddressSpace) or mapping.pages.get(index) != pfn:
            return
        if not frames.flags_at[pfn] & PG_UNEVICTABLE:
            yield from unmap_mapping_in_pieces(mapping, index, index + 1, even_cows=False)


def _anonymous(frames: Frames, pfns: Pfns) -> list[Pfns]:
    """Return the anonymous frames among these that many entries map, one group for each anon_vma."""
    is_crowd = (frames.flags[pfns] & np.uint32(_EVER | _NEVER)) == _EVER
    pfns = distinct(pfns[is_crowd & (frames.mapcount[pfns] >= CROWD)])
    numbers = frames.mapping[pfns]
    return [pfns[numbers == number] for number in distinct(numbers).tolist()]


def _give_slots(frames: Frames, pfns: Pfns) -> None:
    """Put the frames into the swap cache, as far as there are slots. What was noted of their use counts no more."""
    add_to_swap(frames, pfns[~frames.has(pfns, PG_SWAPCACHE)])
    frames.clear(pfns, PG_REFERENCED)


def _unmap_in(frames: Frames, pfns: Pfns, vma: Vma) -> int:
    """Remove the entries of one VMA, and return how many."""
    return sum(_unmap_entries(frames, pfns, mapped) for mapped in list(entries_in(frames, pfns, vma)))


def _unmap_entries(frames: Frames, pfns: Pfns, mapped: Mapped) -> int:
    """Remove entries of one VMA, and return how many: none of a locked VMA, whose frames are locked then."""
    if mapped.vma.vm_flags & VM_LOCKED:
        mlock_folios(frames, pfns[mapped.at])
        return 0
    entries = frames.ram.words_np[mapped.ptes]
    frames.set(pfns[mapped.at[(entries & u64(PTE_ACCESSED)) != 0]], PG_REFERENCED)
    frames.set(pfns[mapped.at[(entries & u64(PTE_DIRTY)) != 0]], PG_DIRTY)
    swapped = keep_soft_dirty(entries, swap_entries(frames, pfns[mapped.at]))
    mapped.mm.pages.unmap_frames(mapped.ptes, mapped.vaddrs, swapped)
    frames.clear(pfns[mapped.at], PG_ANON_EXCLUSIVE)
    return len(mapped.at)
