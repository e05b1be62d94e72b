"""The slow path of an allocation when memory is short: watermarks, reclaim, and at last the OOM killer.

Owns the order of the attempts. `Frames` calls `PageAlloc.slowpath` if an allocation would go below the minimum.
In Linux a task that reclaims is preempted, and sleeps between two attempts (reclaim_throttle()). Here nobody else can
run before the allocation has returned. So it fails after one attempt (`Frames.may_stall`), as do all others in the same
turn, and the call or the fault begins again in its next turn. Answers to Linux v6.8 mm/page_alloc.c:
calculate_min_free_kbytes(), __setup_per_zone_wmarks(), __alloc_pages_slowpath(), should_reclaim_retry().
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from math import isqrt

from kerneld.errors import SysError
from kerneld.mm.frames.frames import Frames
from kerneld.mm.limits import Sysctl
from kerneld.mm.reclaim.vmscan import MAX_RECLAIM_RETRIES, Vmscan
from kerneld.mm.space.dying import room_after
from shared.uapi.page import PAGE_SHIFT

_SHARE_SHIFT, _MOST_AT_ONCE = 12, 256
"""With a loop, a reclaim is for a 4,096th of all frames, but at most for 256 more than are asked for, however many lack
to the minimum. Linux's is for 32. Most of the time of a reclaim does not depend on their number, and a piece of a call
may need a hundred page tables."""
_MIN_FREE_KBYTES, _MAX_FREE_KBYTES = 128, 262_144


def init_per_zone_wmark_min(frames: Frames, sysctl: Sysctl) -> None:
    """Set vm.min_free_kbytes to the square root of 16 times the memory in KiB, and the watermarks by it.

    Source: Linux v6.8 mm/page_alloc.c:calculate_min_free_kbytes().
    """
    kbytes = isqrt((frames.total_pages << PAGE_SHIFT - 10) * 16)
    sysctl.min_free_kbytes = min(max(kbytes, _MIN_FREE_KBYTES), _MAX_FREE_KBYTES)
    setup_per_zone_wmarks(frames, sysctl)


def setup_per_zone_wmarks(frames: Frames, sysctl: Sysctl) -> None:
    """Set the watermarks by vm.min_free_kbytes: that is the minimum; low is 5/4, high 3/2 of it, or more by
    vm.watermark_scale_factor. Source: Linux v6.8 mm/page_alloc.c:__setup_per_zone_wmarks().
    """
    low = sysctl.min_free_kbytes >> PAGE_SHIFT - 10
    step = max(low // 4, frames.total_pages * sysctl.watermark_scale_factor // 10_000)
    frames.watermark_min, frames.watermark_low, frames.watermark_high = low, low + step, low + 2 * step


class PageAlloc:
    """The slow path of one machine's allocations."""

    def __init__(self, frames: Frames, sysctl: Sysctl, vmscan: Vmscan, out_of_memory: Callable[[], bool]) -> None:
        """`out_of_memory` kills a process and returns whether a new attempt makes sense: `kerneld.mm.reclaim.oom`."""
        self._frames = frames
        self._vmscan = vmscan
        self._out_of_memory = out_of_memory
        self._no_progress_loops = 0
        """The attempts in a row that have freed nothing where not even one frame is left."""
        init_per_zone_wmark_min(frames, sysctl)
        frames.slowpath = self.slowpath

    def slowpath(self, count: int) -> None:
        """Make room for `count` frames above the minimum.

        Raises SysError(ENOMEM) on failure. For one frame that happens only if the caller has been chosen to die, or no
        process is left to kill. For more frames it happens as soon as reclaim finds no more: the caller can then try
        single frames. It also happens where reclaim takes longer than a turn: see `Frames.take_stall`.
        Source: Linux v6.8 mm/page_alloc.c:__alloc_pages_slowpath().
        """
        while not (room_after(self._frames, lambda: self._is_enough(count)) or self._reclaim(count)):
            if count > 1 or not self._out_of_memory():
                raise SysError(errno.ENOMEM)

    def _reclaim(self, count: int) -> bool:
        """Reclaim until the allocation is possible, or reclaim makes no progress. Return whether it is possible.

        Raises SysError(ENOMEM) if it may be possible later.
        """
        frames = self._frames
        while not self._is_enough(count):
            if frames.may_stall and frames.has_stalled:
                raise SysError(errno.ENOMEM)
            wanted = count + frames.watermark_min - frames.free_pages
            if self._vmscan.in_pieces:
                wanted = max(min(wanted, count + _MOST_AT_ONCE), min(frames.total_pages >> _SHARE_SHIFT, _MOST_AT_ONCE))
            frames.has_reclaimed = True
            progress = self._vmscan.try_to_free_pages(wanted) or self._vmscan.crowded.take_progress()
            self._no_progress_loops = 0 if progress or self._is_enough(1) else self._no_progress_loops + 1
            if not self._should_retry(count):
                if count == 1:
                    self._no_progress_loops = 0
                break
            if frames.may_stall and self._vmscan.in_pieces and not self._is_enough(count):
                frames.has_stalled = True
                raise SysError(errno.ENOMEM)
        return self._is_enough(count)

    def _is_enough(self, count: int) -> bool:
        """Source: Linux v6.8 mm/page_alloc.c:__zone_watermark_ok()."""
        least = self._frames.watermark_min >> self._frames.may_use_reserve
        return self._frames.free_pages - (count - 1) > least

    def _should_retry(self, count: int) -> bool:
        """Source: Linux v6.8 mm/page_alloc.c:should_reclaim_retry()."""
        if self._no_progress_loops > MAX_RECLAIM_RETRIES:
            return False
        available = self._vmscan.reclaimable_pages() + self._frames.free_pages
        return available - (count - 1) > self._frames.watermark_min
