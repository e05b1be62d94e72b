"""How far one reclaim goes: its goal, its progress, and how many pages it takes from a list at once.

A page costs some ten microseconds. With every function told to fifteen traces it costs a millisecond and more. So the
number of pages at once goes by how long the last ones took: everybody waits for one batch.
"""

from __future__ import annotations

from time import thread_time

from kerneld.mm.frames.lru import SWAP_CLUSTER_MAX
from kerneld.mm.reclaim.shrink import BATCH_MAX
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.rmap_walk import Patience

DEF_PRIORITY = 12
MOST_SCANNED = 1024
"""The pages that a direct reclaim scans before it takes pages that are in use."""
_BACKGROUND_BATCH = 128
_BATCH_SECONDS = 0.008
"""How long a batch may take, of the daemon's processor time."""
_LATE_SECONDS = 0.01
"""How long a direct reclaim scans before it takes pages that are in use, in the same time."""
_FEWEST = 4


class Speed:
    """How fast pages are scanned at present."""

    def __init__(self) -> None:
        self._page_seconds = 0.0

    def note(self, pages: int, seconds: float) -> None:
        """Note that a batch of so many pages has taken so long."""
        if pages >= _FEWEST:
            self._page_seconds = seconds / pages

    @property
    def pages_at_once(self) -> int:
        """How many pages a batch may have."""
        return (
            max(_FEWEST, int(Pace.shortened(_BATCH_SECONDS) / self._page_seconds)) if self._page_seconds else BATCH_MAX
        )


class ScanControl:
    """The goal and the progress of one reclaim (Linux: struct scan_control)."""

    def __init__(self, nr_to_reclaim: int, origin: str, speed: Speed) -> None:
        """`origin` is `direct` or `kswapd`, for the counters of /proc/vmstat."""
        self.nr_to_reclaim = nr_to_reclaim
        self.origin = origin
        self.speed = speed
        self.priority = DEF_PRIORITY
        self.nr_scanned = 0
        self.nr_reclaimed = 0
        self.patience = Patience()
        """What the search for entries may cost: in all, or for one batch of the background pass."""
        self._began = thread_time()
        self.may_deactivate = [False, False]
        """Whether active anonymous pages, and active file pages, may become inactive."""
        self.force_deactivate = False
        self.skipped_deactivate = False

    def begin_again(self) -> None:
        """Scan as many pages once more."""
        self.nr_scanned, self.patience, self._began = 0, Patience(), thread_time()

    @property
    def batch(self) -> int:
        """The number of pages that are taken from a list at once: twice as many each time, if all were in use."""
        wanted, most = self.nr_to_reclaim - self.nr_reclaimed, _BACKGROUND_BATCH
        if self.is_direct:
            wanted, most = max(wanted, 0 if self.nr_reclaimed else self.nr_scanned), BATCH_MAX
        return min(max(SWAP_CLUSTER_MAX, wanted), most, self.speed.pages_at_once)

    @property
    def is_direct(self) -> bool:
        """Whether an allocation waits for this reclaim."""
        return self.origin == "direct"

    @property
    def is_over(self) -> bool:
        """Whether enough is reclaimed, or it has taken too long."""
        return self.nr_reclaimed >= self.nr_to_reclaim or self.is_late

    @property
    def is_late(self) -> bool:
        """Whether so much was looked at, or for so long, that pages in use are taken too."""
        return self.is_direct and (
            self.patience.is_over
            or self.nr_scanned >= MOST_SCANNED + self.nr_to_reclaim
            or thread_time() - self._began > Pace.shortened(_LATE_SECONDS)
        )
