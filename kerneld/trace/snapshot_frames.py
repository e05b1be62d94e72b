"""The part of a snapshot that is about the machine's frames: which are taken, and what the page cache and swap have.

The frames are told block by block (`kerneld.trace.snapshot` has the rules). So the page cache is found by its frames: a
file may have more pages than a piece can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kerneld.hw.distinct import distinct
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.buddy import MAX_ORDER
from kerneld.mm.frames.frames import FIRST_PFN, PG_SWAPCACHE, Frames, Pfns
from kerneld.trace.probes.frames import emit_runs
from kerneld.trace.probes.pagecache import tell_cached
from kerneld.trace.tracepoint import Tracepoint
from shared.trace import events as ev
from shared.trace import state_events as st
from shared.trace.event import Event

Pieces = Iterator[None]
Point = Callable[[Event], Tracepoint]
"""Returns the tracepoint of an event for the trace that gets the snapshot."""
_FRAMES_AT_ONCE = 4 << MAX_ORDER
_SLOTS_AT_ONCE = 4096


def tell_pcp(point: Point, frames: Frames) -> None:
    """Tell which free frames are on the per-cpu list."""
    emit_runs(point(st.MM_PAGE_ALLOC_ZONE_LOCKED), np.array(sorted(frames.buddy.pcp), dtype=np.int64))


def tell_frames(point: Point, frames: Frames, breathe: Callable[[], Pieces]) -> Pieces:
    """Tell the taken frames, and which of them the page cache and the swap cache have."""
    for low in range(0, len(frames.refcount), _FRAMES_AT_ONCE):
        high = low + _FRAMES_AT_ONCE
        taken = np.flatnonzero(~frames.buddy.is_free(low, high)) + low
        taken = taken[taken >= FIRST_PFN]
        if len(taken):
            flags = frames.flags[taken]
            firsts = np.concatenate(([0], np.flatnonzero((np.diff(taken) != 1) | (flags[1:] != flags[:-1])) + 1))
            counts = np.diff(np.append(firsts, len(taken)))
            point(ev.MM_PAGE_ALLOC).emit_many(0, len(firsts), taken[firsts], counts, 0, flags[firsts])
            _tell_cached(point, frames, taken)
            swapped = taken[flags & PG_SWAPCACHE != 0]
            if len(swapped):
                slots = frames.swap_slot[swapped]
                point(st.ADD_TO_SWAP_CACHE).emit_many(0, len(swapped), slots, swapped)
        yield from breathe()


def _tell_cached(point: Point, frames: Frames, taken: Pfns) -> None:
    """Tell which of these frames the page cache has. A frame that has left it may still name its file."""
    numbers = frames.mapping[taken]
    add = point(st.ADD_TO_PAGE_CACHE)
    for number in distinct(numbers).tolist():
        mapping = frames.find_mapping_number(number)
        if isinstance(mapping, AddressSpace):
            pfns = taken[numbers == number]
            indexes = frames.index[pfns]
            pages = mapping.pages
            has = [pages.get(index) == pfn for index, pfn in zip(indexes.tolist(), pfns.tolist(), strict=True)]
            tell_cached(add, number, indexes[has].astype(np.int64), pfns[has])


def tell_files(point: Point, frames: Frames, breathe: Callable[[], Pieces]) -> Pieces:
    """Tell the slots of the swap file that files in memory have."""
    emit = point(st.SHMEM_SWAP).emit
    for mapping in frames.mappings():
        if isinstance(mapping, AddressSpace):
            indexes = list(mapping.swapped)
            for at in range(0, len(indexes), _SLOTS_AT_ONCE):
                for index in indexes[at : at + _SLOTS_AT_ONCE]:
                    slot = mapping.swapped.get(index)
                    if slot is not None:
                        emit(0, mapping.number, index, slot)
                yield from breathe()
        yield from breathe()
