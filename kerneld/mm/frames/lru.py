"""The LRU lists: the frames that reclaim scans, and their order.

A list is not a linked list. It consists of all frames whose flags say that they are on it, in the order of
`Frames.lru`, a stamp that a frame gets when it comes to the head. So joining a list, leaving it (also by a free) and
moving to another list costs a flag and a stamp, for one frame or many. Only reclaim pays for the order: `Lists` sorts
the oldest frames of a list into a queue, and takes frames from the queue. A queued frame that has left the list or
has a newer stamp is skipped. A frame that has joined since is younger than all queued frames. So the order is exact.
Knows no page table. Answers to Linux v6.8 mm/swap.c, include/linux/mm_inline.h and mm/mlock.c (mlock_folio,
munlock_folio).

Invariant: an anonymous or cached frame has PG_LRU, and not both PG_ACTIVE and PG_UNEVICTABLE; no other has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kerneld.hw.scalars import u32
from kerneld.mm.frames.frames import (
    LRU_CLOCK_END,
    PG_ACTIVE,
    PG_ANON,
    PG_DIRTY,
    PG_LRU,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PG_WORKINGSET,
    Frames,
    Pfns,
)
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from shared.uapi.page import Pfn

_PLACE = PG_LRU | PG_ACTIVE | PG_SWAPBACKED | PG_UNEVICTABLE
_QUEUED = 8192
_MOST_QUEUED = 4 * _QUEUED
"""The most frames of a list that are sorted at a time."""
_SAMPLED = 1 << 15
_LAG_SHIFT = 10
_ONE = u32(1)
SWAP_CLUSTER_MAX = 32


class LruList(IntEnum):
    """The evictable lists: Linux v6.8 include/linux/mmzone.h enum lru_list."""

    INACTIVE_ANON = 0
    ACTIVE_ANON = 1
    INACTIVE_FILE = 2
    ACTIVE_FILE = 3


_FLAGS_OF = {
    LruList.INACTIVE_ANON: PG_LRU | PG_SWAPBACKED,
    LruList.ACTIVE_ANON: PG_LRU | PG_SWAPBACKED | PG_ACTIVE,
    LruList.INACTIVE_FILE: PG_LRU,
    LruList.ACTIVE_FILE: PG_LRU | PG_ACTIVE,
}
_WANTED = list(_FLAGS_OF.values())


def lru_sizes(frames: Frames) -> list[int]:
    """Return the number of frames on each `LruList`; the last number is for unevictable frames."""
    return lru_sizes_of(map(frames.flags.__getitem__, frames.parts()))


def lru_sizes_of(parts: Iterable[npt.NDArray[np.uint32]]) -> list[int]:
    """Do the same for the frames with the flags in these parts.

    No function of ours runs for each part: it may be traced.
    """
    sizes = [0] * (len(LruList) + 1)
    for flags in parts:
        places = flags & _PLACE
        for kind, wanted in enumerate(_WANTED):
            sizes[kind] += int(np.count_nonzero(places == wanted))
        sizes[-1] += int(np.count_nonzero(places & PG_UNEVICTABLE))
    return sizes


def recent_lru_sizes(frames: Frames) -> list[int]:
    """Return the result of `lru_sizes`, or its last result if less than a thousandth of the frames has changed lists.

    It is for callers that need the sizes for every page: refaults, and the cost of reclaim. A pass of reclaim counts
    exactly. Changes are found by two numbers. A frame that comes to a list has a new stamp. A freed frame has none, but
    the number of free frames grows, except by frames allocated since, which have new stamps. So at most two thousandths
    of the frames are missed. Linux's counters are not exact either (mm/vmstat.c: a batch for each processor).
    """
    clock, nr_free, sizes = frames.lru_sizes_noted
    lag = frames.total_pages >> _LAG_SHIFT
    if not clock <= frames.lru_clock <= clock + lag or frames.free_pages > nr_free + lag:
        sizes = lru_sizes(frames)
        frames.lru_sizes_noted = frames.lru_clock, frames.free_pages, sizes
    return sizes


class Lists:
    """The sorted part of the lists, for reclaim."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._queues: list[Pfns] = [np.zeros(0, dtype=np.int64) for _ in LruList]
        self._stamps: list[npt.NDArray[np.uint32]] = [np.zeros(0, dtype=np.uint32) for _ in LruList]

    def isolate(self, kind: LruList, count: int) -> Pfns:
        """Take up to `count` frames off the tail of a list, the oldest first. Each gets one more reference.

        Source: Linux v6.8 mm/vmscan.c:isolate_lru_folios().
        """
        found: list[Pfns] = []
        left, refilled = count, False
        while left:
            queue, stamps = self._queues[kind], self._stamps[kind]
            if not len(queue):
                if refilled or not self._refill(kind):
                    break
                refilled = True
                continue
            head = queue[:left]
            valid = self._is_on(head, kind) & (self._frames.lru[head] == stamps[:left])
            self._queues[kind], self._stamps[kind] = queue[left:], stamps[left:]
            found.append(head[valid])
            isolate(self._frames, found[-1])
            left -= len(found[-1])
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def _is_on(self, pfns: Pfns | slice, kind: LruList) -> npt.NDArray[np.bool_]:
        on: npt.NDArray[np.bool_] = (self._frames.flags[pfns] & _PLACE) == _FLAGS_OF[kind]
        return on

    def _refill(self, kind: LruList) -> bool:
        frames, limit = self._frames, self._find_limit(kind)
        queue = np.concatenate(self._find_old(kind, limit))
        stamps = frames.lru[queue]
        if len(queue) > 2 * _MOST_QUEUED:
            # The sample was far off.
            oldest = np.argpartition(stamps, _QUEUED)[:_QUEUED]
            queue, stamps = queue[oldest], stamps[oldest]
        order = np.argsort(stamps)
        self._queues[kind], self._stamps[kind] = queue[order], stamps[order]
        return len(queue) > 0

    def _find_old(self, kind: LruList, limit: int) -> list[Pfns]:
        """Return the frames of each part of memory that are on a list, with stamps up to `limit`.

        No function of ours runs for each part: it may be traced.
        """
        flags, lru, wanted, found = self._frames.flags, self._frames.lru, _FLAGS_OF[kind], []
        for part in self._frames.parts():
            if limit == LRU_CLOCK_END:
                pfns = np.flatnonzero((flags[part] & _PLACE) == wanted) + part.start
            else:
                # Most frames are younger, or on no list: those have the stamp 0, which becomes the largest number here.
                pfns = np.flatnonzero(lru[part] - _ONE < np.uint32(limit)) + part.start
                pfns = pfns[(flags[pfns] & _PLACE) == wanted]
            found.append(pfns)
        return found

    def _find_limit(self, kind: LruList) -> int:
        """Return the stamp up to which the frames of a list are old enough for the queue, about `_QUEUED` of them."""
        frames = self._frames
        # A sample of the stamps gives a good estimate: the exact number of oldest frames does not matter. The step is
        # odd, so that the sample has frames from every place of a huge page.
        step = len(frames.flags) // _SAMPLED | 1
        sample = slice(None, None, step)
        stamps = frames.lru[sample][self._is_on(sample, kind)]
        if len(stamps) * step <= _MOST_QUEUED:
            return LRU_CLOCK_END
        place = _QUEUED // step
        return int(np.partition(stamps, place)[place])


def isolate(frames: Frames, pfns: Pfns) -> None:
    """Take frames off their lists, and take one reference of each (Linux: folio_isolate_lru())."""
    frames.clear(pfns, PG_LRU)
    frames.get_pages(pfns)


def putback(frames: Frames, pfns: Pfns) -> None:
    """Put isolated frames at the head of the list of their flags. The caller keeps the references.

    Source: Linux v6.8 mm/vmscan.c:move_folios_to_lru().
    """
    frames.set(pfns, PG_LRU)
    frames.stamp(pfns)


def folio_activate(frames: Frames, pfns: Pfns) -> None:
    """Put frames at the head of their active list. Source: Linux v6.8 mm/swap.c:folio_activate_fn()."""
    frames.set(pfns, PG_ACTIVE)
    frames.stamp(pfns)
    frames.nonresident_age += len(pfns)
    frames.vmstat["pgactivate"] += len(pfns)


def folio_deactivate(frames: Frames, pfns: Pfns) -> None:
    """Put frames at the head of their inactive list, unreferenced (Linux: mm/swap.c:lru_deactivate_fn())."""
    active = pfns[frames.has(pfns, PG_ACTIVE)]
    frames.set(active, PG_WORKINGSET)
    frames.clear(pfns, PG_ACTIVE | PG_REFERENCED)
    frames.stamp(pfns)
    frames.vmstat["pgdeactivate"] += len(active)


def folio_mark_accessed(frames: Frames, pfn: Pfn) -> None:
    """Note an access: the first marks a frame as referenced, a second one makes it active.

    Source: Linux v6.8 mm/swap.c:folio_mark_accessed().
    """
    flags = frames.flags_at[pfn]
    if flags & (PG_REFERENCED | PG_ACTIVE | PG_UNEVICTABLE) == PG_REFERENCED:
        folio_activate(frames, np.array([pfn]))
        frames.flags_at[pfn] &= ~PG_REFERENCED
    else:
        frames.flags_at[pfn] = flags | PG_REFERENCED


def folios_mark_accessed(frames: Frames, pfns: Pfns) -> None:
    """Do the same as `folio_mark_accessed` for many frames."""
    flags = frames.flags[pfns]
    again = (flags & (PG_REFERENCED | PG_ACTIVE | PG_UNEVICTABLE)) == PG_REFERENCED
    if again.any():
        folio_activate(frames, pfns[again])
        frames.clear(pfns[again], PG_REFERENCED)
    frames.set(pfns[~again], PG_REFERENCED)


def folio_mark_lazyfree(frames: Frames, pfns: Pfns) -> None:
    """Mark anonymous frames as lazily freed, and put them on the inactive file list. They are dropped unless written.

    Source: Linux v6.8 mm/swap.c:folio_mark_lazyfree().
    """
    wanted = PG_LRU | PG_ANON | PG_SWAPBACKED
    pfns = pfns[(frames.flags[pfns] & (wanted | PG_SWAPCACHE | PG_UNEVICTABLE)) == wanted]
    frames.clear(pfns, PG_ACTIVE | PG_REFERENCED | PG_SWAPBACKED | PG_DIRTY)
    frames.stamp(pfns)
    frames.vmstat["pglazyfree"] += len(pfns)


def mlock_folios(frames: Frames, pfns: Pfns) -> None:
    """Exclude frames from reclaim, for one more locked VMA; a merged frame as often as it is given.

    Source: Linux v6.8 mm/mlock.c:mlock_folio(), __mlock_folio().
    """
    if frames.has_merged:
        pfns, times = np.unique(pfns, return_counts=True)
        frames.has_mlock_more |= bool((times > 1).any())
        frames.mlock_more[pfns] += (times - 1).astype(np.int32)
    more = pfns[frames.has(pfns, PG_UNEVICTABLE)]
    if len(more):
        frames.has_mlock_more = True
        frames.mlock_more[more] += 1
    frames.set(pfns, PG_UNEVICTABLE)
    frames.clear(pfns, PG_ACTIVE)
    # Unevictable frames need no order. The new stamps show `recent_lru_sizes` that these frames have changed lists.
    frames.stamp(pfns)


def mlock_folio(frames: Frames, pfn: Pfn) -> None:
    """Exclude one frame from reclaim, as `mlock_folios` does."""
    mlock_folios(frames, np.array([pfn]))


def munlock_folio(frames: Frames, pfn: Pfn) -> None:
    """Undo one `mlock_folios` of a frame; of a frame of a huge page, for all its frames."""
    large = frames.flags_at[pfn] & PG_LARGE
    munlock_folios(frames, frames.huge.pages_of(pfn & -HPAGE_PMD_NR) if large else np.array([pfn]))


def munlock_folios(frames: Frames, pfns: Pfns) -> None:
    """Undo `mlock_folios` for one locked VMA. Of a huge page, either all frames are given or none.

    A merged frame is unlocked as often as it is given.

    After the last locked VMA reclaim may take the frames again.

    Source: Linux v6.8 mm/mlock.c:munlock_folio(), __munlock_folio().
    """
    pfns = pfns[frames.has(pfns, PG_UNEVICTABLE)]
    if frames.has_merged:
        pfns, times = np.unique(pfns, return_counts=True)
        frames.mlock_more[pfns] -= np.minimum((times - 1).astype(np.int32), frames.mlock_more[pfns])
    if frames.has_mlock_more:
        more = frames.mlock_more[pfns] > 0
        frames.mlock_more[pfns[more]] -= 1
        pfns = pfns[~more]
    if len(pfns):
        frames.clear(pfns, PG_UNEVICTABLE)
        frames.stamp(pfns)


def lru_note_cost(frames: Frames, is_file: bool, nr_io: int, nr_rotated: int) -> None:
    """Note the cost of reclaiming one kind, in pages of I/O and pages kept. The other kind is then scanned more.

    Source: Linux v6.8 mm/swap.c:lru_note_cost().
    """
    cost = nr_io * SWAP_CLUSTER_MAX + nr_rotated
    if not cost:
        return
    frames.lru_cost[is_file] += cost
    if sum(frames.lru_cost) > sum(recent_lru_sizes(frames)[:4]) // 4:
        frames.lru_cost = [cost // 2 for cost in frames.lru_cost]
