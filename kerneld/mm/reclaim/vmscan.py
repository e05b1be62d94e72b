"""Page reclaim: chooses the lists to scan, the number of pages, and the end of the scan.

Owns the scan: pages go from the tail of an active list to the inactive list, and from its tail to
`kerneld.mm.reclaim.shrink`. Direct reclaim runs when an allocation finds too little memory (`try_to_free_pages`). The
background pass runs between requests (`balance_pgdat`). Answers to Linux v6.8 mm/vmscan.c, without the
multi-generational LRU (lru_gen), cgroups and more nodes than one.

Differs from Linux: the background pass has no thread; it runs in pieces between requests. If many pages are wanted, or
all so far were in use, a batch is larger than 32 pages. If a direct reclaim has scanned thousands of pages and all were
in use, it takes the oldest: here all programs wait for it, in Linux only one. A page that hundreds of VMAs may map is
left by a direct reclaim, as Linux leaves a page whose locks others hold (folio_referenced(), FOLIOREF_KEEP); the
background pass unmaps it (`kerneld.mm.reclaim.crowd`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from time import thread_time

import numpy as np

from kerneld.mm.frames.frames import PG_ACTIVE, PG_WORKINGSET, Frames, Pfns
from kerneld.mm.frames.lru import SWAP_CLUSTER_MAX, Lists, LruList, lru_note_cost, putback, recent_lru_sizes
from kerneld.mm.limits import Sysctl
from kerneld.mm.reclaim.crowd import Crowded
from kerneld.mm.reclaim.scan_control import DEF_PRIORITY, ScanControl, Speed
from kerneld.mm.reclaim.shrink import Users, shrink_folio_list
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.rmap_walk import Patience

MAX_RECLAIM_RETRIES = 16
_INACTIVE_ANON, _ACTIVE_ANON = LruList.INACTIVE_ANON, LruList.ACTIVE_ANON
_INACTIVE_FILE, _ACTIVE_FILE = LruList.INACTIVE_FILE, LruList.ACTIVE_FILE


class Vmscan:
    """Reclaim of one machine's memory."""

    def __init__(self, frames: Frames, sysctl: Sysctl) -> None:
        self._frames = frames
        self._sysctl = sysctl
        self._lists = Lists(frames)
        self._speed = Speed()
        self._refaults = [0, 0]
        self.in_pieces = False
        """Whether a loop calls `kswapd` between requests. If not, the background pass runs at once."""
        self._background: Iterator[None] | None = None
        """The rest of the background pass; None if none is running."""
        self._background_freed = 0
        self.crowded = Crowded(frames)
        self.kswapd_failures = 0
        """The number of background passes in a row that freed nothing. At 16 they stop until a direct reclaim
        succeeds."""

    def reclaimable_pages(self) -> int:
        """Return the most frames that could be reclaimed. Source: mm/vmscan.c:zone_reclaimable_pages()."""
        sizes = recent_lru_sizes(self._frames)
        nr = sizes[_INACTIVE_FILE] + sizes[_ACTIVE_FILE]
        if self._frames.swap.nr_free:
            nr += sizes[_INACTIVE_ANON] + sizes[_ACTIVE_ANON]
        return nr

    def try_to_free_pages(self, nr_to_reclaim: int) -> int:
        """Reclaim directly, for a waiting allocation. Return the number of freed frames.

        Source: Linux v6.8 mm/vmscan.c:try_to_free_pages() and do_try_to_free_pages().
        """
        self._frames.vmstat["allocstall_movable"] += 1
        scan = ScanControl(max(nr_to_reclaim, SWAP_CLUSTER_MAX), "direct", self._speed)
        while True:
            for priority in range(DEF_PRIORITY, -1, -1):
                scan.priority = priority
                for _ in self._shrink_node(scan):
                    if scan.is_over:
                        break
                if scan.is_over:
                    break
            if scan.nr_reclaimed or scan.is_late or not scan.skipped_deactivate:
                break
            scan.force_deactivate, scan.skipped_deactivate = True, False
        if scan.nr_reclaimed < scan.nr_to_reclaim and scan.is_late:
            self._take_oldest(scan)
        if scan.nr_reclaimed:
            self.kswapd_failures = 0
        return scan.nr_reclaimed

    def _take_oldest(self, scan: ScanControl) -> None:
        """Reclaim pages in use, the oldest of each list first. As many pages are scanned as before, none twice.

        To find the pages of a short list, all of memory is looked through. So lists that are too short come last.
        """
        sizes = recent_lru_sizes(self._frames)
        kinds = [(_INACTIVE_FILE, _ACTIVE_FILE)]
        if self._frames.swap.nr_free:
            kinds.append((_INACTIVE_ANON, _ACTIVE_ANON))
        kinds.sort(key=lambda pair: sizes[pair[0]] + sizes[pair[1]] < scan.nr_to_reclaim)
        scan.begin_again()
        for inactive, active in kinds:
            last = scan.nr_scanned + sizes[inactive] + sizes[active]
            while scan.nr_reclaimed < scan.nr_to_reclaim and scan.nr_scanned < last and not scan.is_late:
                before = scan.nr_scanned
                self._shrink_inactive_list(scan, inactive, scan.batch, ignore_references=True)
                if scan.nr_scanned == before:
                    self._shrink_active_list(scan, active, scan.batch)
                if scan.nr_scanned == before:
                    break

    @property
    def is_awake(self) -> bool:
        """Whether the background pass is running."""
        return self._background is not None

    def wakeup_kswapd(self) -> None:
        """Start the background pass, which reclaims until the high watermark is reached.

        Source: Linux v6.8 mm/vmscan.c:wakeup_kswapd().
        """
        if self._background is not None or self.kswapd_failures >= MAX_RECLAIM_RETRIES:
            return
        self.kswapd_begins()
        self._background = self.balance_pgdat()
        while self._background is not None and not self.in_pieces:
            self.kswapd()

    def kswapd_begins(self) -> None:
        """Start a background pass: it counts its freed frames from 0."""
        self._background_freed = 0

    def kswapd(self) -> None:
        """Continue the background pass for a piece of time. Source: Linux v6.8 mm/vmscan.c:kswapd()."""
        pace = Pace()
        assert self._background is not None
        for _ in self._background:
            if self.in_pieces and pace.is_over():
                return
        self._background = None
        self.kswapd_sleeps()

    def kswapd_sleeps(self) -> int:
        """Note that the background pass ends, and return the number of frames that it has freed."""
        return self._background_freed

    def balance_pgdat(self) -> Iterator[None]:
        """Reclaim until the high watermark is reached. Yield between two batches, so that clients may be served.

        Source: Linux v6.8 mm/vmscan.c:balance_pgdat() and kswapd_shrink_node().
        """
        frames = self._frames
        self._age_active_anon()
        for priority in range(DEF_PRIORITY, 0, -1):
            yield from self._unmap_crowded()
            wanted = frames.watermark_high - frames.free_pages
            if wanted <= 0:
                break
            scan = ScanControl(max(wanted, SWAP_CLUSTER_MAX), "kswapd", self._speed)
            scan.priority = priority
            before = 0
            for _ in self._shrink_node(scan):
                self._background_freed += scan.nr_reclaimed - before
                before = scan.nr_reclaimed
                yield
                # An allocation that waits may have met no other pages, and gives up after seventeen attempts.
                yield from self._unmap_crowded()
        else:
            if not self._background_freed:
                self.kswapd_failures += 1
        if self._background_freed:
            self.kswapd_failures = 0

    def _unmap_crowded(self) -> Iterator[None]:
        for freed in self.crowded.unmap():
            self._background_freed += freed
            yield

    def _age_active_anon(self) -> None:
        """Source: Linux v6.8 mm/vmscan.c:kswapd_age_node()."""
        if self._frames.swap.total_pages and _inactive_is_low(recent_lru_sizes(self._frames), False):
            scan = ScanControl(SWAP_CLUSTER_MAX, "kswapd", self._speed)
            self._shrink_active_list(scan, _ACTIVE_ANON, scan.batch)

    def _shrink_node(self, scan: ScanControl) -> Iterator[None]:
        """One round over all lists; yields after each batch.

        Source: Linux v6.8 mm/vmscan.c: shrink_node(), shrink_lruvec().
        """
        sizes = recent_lru_sizes(self._frames)
        self._prepare_scan_count(scan, sizes)
        left = self._get_scan_count(scan, sizes)
        self._refaults = self._count_refaults()
        while left[_INACTIVE_ANON] or left[_ACTIVE_FILE] or left[_INACTIVE_FILE]:
            for kind in LruList:
                if left[kind]:
                    nr = min(left[kind], scan.batch)
                    left[kind] -= nr
                    self._shrink_list(scan, kind, nr)
                    yield
            if scan.nr_reclaimed >= scan.nr_to_reclaim:
                break
        if self._frames.swap.total_pages and _inactive_is_low(recent_lru_sizes(self._frames), False):
            self._shrink_active_list(scan, _ACTIVE_ANON, SWAP_CLUSTER_MAX)
            yield

    def _count_refaults(self) -> list[int]:
        vmstat = self._frames.vmstat
        return [vmstat["workingset_activate_anon"], vmstat["workingset_activate_file"]]

    def _prepare_scan_count(self, scan: ScanControl, sizes: list[int]) -> None:
        """Decide whether active pages may become inactive: if the inactive list is short, or evicted pages have come
        back.

        Source: Linux v6.8 mm/vmscan.c:prepare_scan_count().
        """
        for is_file, refaults in enumerate(self._count_refaults()):
            scan.may_deactivate[is_file] = (
                scan.force_deactivate or refaults != self._refaults[is_file] or _inactive_is_low(sizes, is_file == 1)
            )

    def _get_scan_count(self, scan: ScanControl, sizes: list[int]) -> list[int]:
        """Return the number of pages to scan on each list. Source: Linux v6.8 mm/vmscan.c:get_scan_count()."""
        frames = self._frames
        anon_fraction, file_fraction, denominator = self._balance(scan, sizes)
        counts = []
        for kind in LruList:
            fraction = file_fraction if kind >= _INACTIVE_FILE else anon_fraction
            count = sizes[kind] >> scan.priority
            counts.append(count if denominator is None else -(-count * fraction // denominator))
            if denominator is None and not fraction:
                counts[-1] = 0
        if not frames.swap.nr_free:
            counts[_INACTIVE_ANON] = counts[_ACTIVE_ANON] = 0
        return counts

    def _balance(self, scan: ScanControl, sizes: list[int]) -> tuple[int, int, int | None]:
        """Return the shares of anonymous and file pages, and their denominator.

        None: each is scanned fully or not (0).
        """
        frames = self._frames
        if not frames.swap.nr_free:
            return 0, 1, None
        if not scan.priority and self._sysctl.swappiness:
            return 1, 1, None
        nr_file = sizes[_INACTIVE_FILE] + sizes[_ACTIVE_FILE]
        tiny = nr_file + frames.free_pages <= frames.watermark_high
        if tiny and not scan.may_deactivate[0] and sizes[_INACTIVE_ANON] >> scan.priority:
            return 1, 0, None
        if sizes[_INACTIVE_FILE] >> scan.priority and not scan.may_deactivate[1]:
            return 0, 1, None
        total = sum(frames.lru_cost)
        anon_cost, file_cost = (total + cost for cost in frames.lru_cost)
        total = anon_cost + file_cost
        anon = self._sysctl.swappiness * (total + 1) // (anon_cost + 1)
        file = (200 - self._sysctl.swappiness) * (total + 1) // (file_cost + 1)
        return anon, file, anon + file

    def _shrink_list(self, scan: ScanControl, kind: LruList, count: int) -> None:
        """Source: Linux v6.8 mm/vmscan.c:shrink_list()."""
        if kind not in (_ACTIVE_ANON, _ACTIVE_FILE):
            self._shrink_inactive_list(scan, kind, count)
        elif scan.may_deactivate[kind >= _INACTIVE_FILE]:
            self._shrink_active_list(scan, kind, count)
        else:
            scan.skipped_deactivate = True

    def _shrink_inactive_list(
        self, scan: ScanControl, kind: LruList, count: int, *, ignore_references: bool = False
    ) -> None:
        """Source: Linux v6.8 mm/vmscan.c:shrink_inactive_list()."""
        frames = self._frames
        pfns = self._lists.isolate(kind, count)
        if not len(pfns):
            return
        is_file = kind == _INACTIVE_FILE
        kind_name = "file" if is_file else "anon"
        written = frames.vmstat["nr_vmscan_write"]
        before, began = frames.vmstat["pgactivate"], thread_time()
        scan.nr_scanned += len(pfns)
        if not scan.is_direct:
            scan.patience = Patience()
        freed = shrink_folio_list(
            frames, pfns, scan.patience, ignore_references=ignore_references, crowded=self.crowded.pfns
        )
        self._speed.note(len(pfns), thread_time() - began)
        written = frames.vmstat["nr_vmscan_write"] - written
        lru_note_cost(frames, is_file, written, frames.vmstat["pgactivate"] - before)
        scan.nr_reclaimed += freed
        for name, number in (("scan", len(pfns)), ("steal", freed)):
            frames.vmstat[f"pg{name}_{scan.origin}"] += number
            frames.vmstat[f"pg{name}_{kind_name}"] += number

    def _shrink_active_list(self, scan: ScanControl, kind: LruList, count: int) -> None:
        """Make the oldest active pages inactive. Used pages of program text stay for another round.

        Source: Linux v6.8 mm/vmscan.c:shrink_active_list().
        """
        frames = self._frames
        pfns = self._lists.isolate(kind, count)
        if not len(pfns):
            return
        scan.nr_scanned += len(pfns)
        if not scan.is_direct:
            scan.patience = Patience()
        users = Users(frames, pfns, scan.patience)
        rotate = users.executable if kind == _ACTIVE_FILE else np.zeros(len(pfns), dtype=np.bool_)
        putback(frames, pfns[rotate])
        _deactivate(frames, pfns[~rotate])
        lru_note_cost(frames, kind == _ACTIVE_FILE, 0, int(np.count_nonzero(rotate)))
        frames.vmstat["pgrefill"] += len(pfns)
        frames.put_pages(pfns)


def _deactivate(frames: Frames, pfns: Pfns) -> None:
    """Put active pages at the head of the inactive list. They keep their referenced flag."""
    frames.set(pfns, PG_WORKINGSET)
    frames.clear(pfns, PG_ACTIVE)
    putback(frames, pfns)
    frames.vmstat["pgdeactivate"] += len(pfns)


def _inactive_is_low(sizes: list[int], is_file: bool) -> bool:
    """Return whether an inactive list is short compared with its active list.

    In a large memory a smaller share is enough.

    Source: Linux v6.8 mm/vmscan.c:inactive_is_low().
    """
    first = _INACTIVE_FILE if is_file else _INACTIVE_ANON
    inactive, active = sizes[first], sizes[first + 1]
    gib = (inactive + active) >> 18
    return inactive * (isqrt(10 * gib) if gib else 1) < active
