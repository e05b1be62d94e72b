"""Huge pages as frames: 512 consecutive frames on a 2 MiB boundary, allocated and released together.

Owns the number of entries of 2 MiB that map each huge page, the shared huge zero page, and the counters for
/proc/vmstat. Knows no page table. Answers to Linux v6.8 mm/huge_memory.c and, for the counting, mm/rmap.c and
include/linux/mm_types.h.

Each frame of a huge page keeps its own reference count, map count, flags, mapping and index. An entry of 2 MiB counts
in each of its frames as an entry of 4 KiB would. So splitting a huge page changes no frame, and every rule about
entries and frames holds for both sizes. The price: each mapping of a whole huge page updates 512 elements of each
array, which takes a few microseconds.

A huge page stays a huge page (PG_LARGE) if small entries map it. Its mapped frames are the frames with PG_LARGE in its
2 MiB. `kerneld.mm.space.split_folio` turns it into single pages.

Invariants: `entire_mapcount[head]` is the number of entries of 2 MiB that map the frames from `head` on, without those
of the zero page. While there is such an entry, these frames agree in mapping, PG_ANON and PG_ANON_EXCLUSIVE, and have
consecutive indexes. `zero_users` is the number of entries of 2 MiB that map the huge zero page. Its frames have one
reference as long as this number is not 0.

Differs from Linux: each frame is freed as soon as nothing maps it (Linux keeps them together until memory is short:
deferred_split_folio()). The huge zero page is freed with its last entry (Linux: when memory is short).
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from kerneld.errors import KernelBug, SysError
from kerneld.mm.frames.buddy import OutOfFrames
from shared.uapi.page import PAGE_SHIFT, PMD_SHIFT, Pfn

if TYPE_CHECKING:
    from kerneld.mm.frames.frames import Frames, Pfns

PG_LARGE = 1 << 16
"""A flag of frames of a huge page, also of the remaining frames of one (Linux: PageCompound())."""
HPAGE_PMD_ORDER = PMD_SHIFT - PAGE_SHIFT
HPAGE_PMD_NR = 1 << HPAGE_PMD_ORDER
"""The number of frames of a huge page."""
EVENTS = (
    "thp_fault_alloc", "thp_fault_fallback", "thp_collapse_alloc", "thp_collapse_alloc_failed", "thp_split_pmd",
    "thp_zero_page_alloc", "thp_zero_page_alloc_failed",
)  # fmt: skip
"""The counters, with the names and the order of Linux v6.8 mm/vmstat.c:vmstat_text[]."""
_OFFSETS = np.arange(HPAGE_PMD_NR, dtype=np.int64)


class HugeFrames:
    """The huge pages among `frames`."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.entire_mapcount: Counter[Pfn] = Counter()
        """By first frame, the number of entries of 2 MiB, if it is not 0 (Linux: folio_entire_mapcount())."""
        self.zero_pfn: Pfn | None = None
        """The first frame of the huge zero page; None while there is none."""
        self.zero_users = 0
        self.has_been_used = False
        """Whether a huge page has ever been allocated. If not, no frame has PG_LARGE."""
        self.events = dict.fromkeys(EVENTS, 0)
        """The number of events of each kind since the start."""

    def alloc(self, flags: int = 0) -> Pfn:
        """Allocate a huge page of zeros with these PG_ flags, with one reference for each frame.

        Return its first frame.

        Raises SysError(ENOMEM) if no block of that size is free, or too little would be left. It does not reclaim.
        """
        frames = self._frames
        if frames.alloc_hook is not None:
            frames.alloc_hook(HPAGE_PMD_NR)
        if frames.buddy.nr_free - HPAGE_PMD_NR < frames.watermark_min:
            # An allocation does not wait for a huge page: single pages are enough (Linux: GFP_TRANSHUGE_LIGHT).
            raise SysError(errno.ENOMEM)
        try:
            head = frames.buddy.alloc_block(HPAGE_PMD_ORDER)
        except OutOfFrames:
            raise SysError(errno.ENOMEM) from None
        self.has_been_used = True
        run = slice(head, head + HPAGE_PMD_NR)
        frames.ram.clear_pages(_OFFSETS + head)
        frames.flags[run] = flags | PG_LARGE
        frames.refcount[run] = 1
        frames.stamp(_OFFSETS + head)
        return head

    def set_anon(self, head: Pfn, number: int, index: int) -> None:
        """Note the anon_vma of a huge page, and the page offset of its first frame there."""
        self._frames.mapping[head : head + HPAGE_PMD_NR] = number
        self._frames.index[head : head + HPAGE_PMD_NR] = _OFFSETS + index

    def pages_of(self, head: Pfn) -> Pfns:
        """Return the frames that are left of a huge page with this first frame: those that something maps."""
        large = self._frames.has(slice(head, head + HPAGE_PMD_NR), PG_LARGE)
        return np.flatnonzero(large) + head

    def put(self, head: Pfn) -> None:
        """Drop one reference of each frame of a huge page, and free the frames without references."""
        frames = self._frames
        run = slice(head, head + HPAGE_PMD_NR)
        is_sole = int(frames.refcount[run].max()) == 1 and int(frames.refcount[run].min()) == 1
        if not is_sole or frames.loans is not None:
            frames.put_pages(_OFFSETS + head)
            return
        if frames.mapcount[run].any():
            raise KernelBug(f"huge page {head:#x} is freed while entries map it")
        frames.refcount[run] = 0
        frames.flags[run] = 0
        frames.mlock_more[run] = 0
        frames.mapping[run] = 0
        frames.buddy.free_block(head, HPAGE_PMD_ORDER)

    def add_mapping(self, head: Pfn) -> None:
        """Count an entry of 2 MiB that maps a huge page. The caller updates the counts of each frame."""
        self.entire_mapcount[head] += 1

    def remove_mapping(self, head: Pfn) -> None:
        """Uncount an entry of 2 MiB that mapped a huge page."""
        if self.entire_mapcount[head] == 1:
            del self.entire_mapcount[head]
        else:
            self.entire_mapcount[head] -= 1

    def get_zero(self) -> Pfn:
        """Return the first frame of the huge zero page, and count one more entry.

        Raises SysError(ENOMEM) if there is none and none can be allocated.
        Source: Linux v6.8 mm/huge_memory.c:get_huge_zero_page().
        """
        if self.zero_pfn is None:
            try:
                self.zero_pfn = self.alloc()
            except SysError:
                self.events["thp_zero_page_alloc_failed"] += 1
                raise
            self.events["thp_zero_page_alloc"] += 1
        self.zero_users += 1
        return self.zero_pfn

    def put_zero(self) -> None:
        """Uncount an entry of the huge zero page. The page is freed with the last entry."""
        self.zero_users -= 1
        if self.zero_users == 0 and self.zero_pfn is not None:
            self.put(self.zero_pfn)
            self.zero_pfn = None
