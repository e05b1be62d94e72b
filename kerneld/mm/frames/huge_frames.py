"""Huge pages as frames: 512 neighbours on a 2 MiB boundary, taken and let go of together.

Owns how many entries of 2 MiB map each huge page, the shared huge zero page, and what is counted for /proc/vmstat.
Knows no page table. Answers to Linux v6.8 mm/huge_memory.c and, for the counting, mm/rmap.c and
include/linux/mm_types.h.

Each frame of a huge page keeps a reference count, a map count, flags, mapping and index of its own, and an entry of 2
MiB counts in each of its frames as an entry of 4 KiB would. Cutting a huge page up then changes no frame at all, and
every rule about entries and frames holds for both sizes alike; the price is one step on 512 neighbours in each array,
a few microseconds, for each mapping of a huge page as a whole.

A huge page stays one, PG_LARGE, where small entries map it: what of it somebody maps is its frames with PG_LARGE, which
lie in its 2 MiB. `kerneld.mm.space.split_folio` makes single pages of it.

Invariants: `entire_mapcount[head]` is how many entries of 2 MiB map the frames from `head` on, none of them the zero
page's; while there is one, those frames agree in mapping, PG_ANON and PG_ANON_EXCLUSIVE and have consecutive indexes.
`zero_users` is how many entries of 2 MiB map the huge zero page, whose frames are held once as long as that is not 0.

Differs from Linux: each frame is free as soon as nothing maps it (Linux keeps them together until memory is short:
deferred_split_folio()). The huge zero page goes with its last entry (Linux: when memory is short).
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
"""A flag of frames: of a huge page, or of what is left of one (Linux: PageCompound())."""
HPAGE_PMD_ORDER = PMD_SHIFT - PAGE_SHIFT
HPAGE_PMD_NR = 1 << HPAGE_PMD_ORDER
"""Frames of a huge page."""
EVENTS = (
    "thp_fault_alloc", "thp_fault_fallback", "thp_collapse_alloc", "thp_collapse_alloc_failed", "thp_split_pmd",
    "thp_zero_page_alloc", "thp_zero_page_alloc_failed",
)  # fmt: skip
"""What is counted: names and order of Linux v6.8 mm/vmstat.c:vmstat_text[]."""
_OFFSETS = np.arange(HPAGE_PMD_NR, dtype=np.int64)


class HugeFrames:
    """The huge pages among `frames`."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.entire_mapcount: Counter[Pfn] = Counter()
        """By first frame; one that no entry of 2 MiB maps is not in it (Linux: folio_entire_mapcount())."""
        self.zero_pfn: Pfn | None = None
        """The first frame of the huge zero page, while there is one."""
        self.zero_users = 0
        self.has_been_used = False
        """Whether a huge page has been taken since the start: where none has, no frame has PG_LARGE."""
        self.events = dict.fromkeys(EVENTS, 0)
        """How often each has happened since the start."""

    def alloc(self, flags: int = 0) -> Pfn:
        """Take a huge page full of zeros, a reference on each frame, with these PG_ flags; return its first frame.

        Raises SysError(ENOMEM) where no block of that size is free, or too little would be left; reclaims nothing.
        """
        frames = self._frames
        if frames.alloc_hook is not None:
            frames.alloc_hook(HPAGE_PMD_NR)
        if frames.buddy.nr_free - HPAGE_PMD_NR < frames.watermark_min:
            # Nobody waits for a huge page: single ones will do (Linux: GFP_TRANSHUGE_LIGHT).
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
        """Note of which anon_vma a huge page is, and the page offset of its first frame there."""
        self._frames.mapping[head : head + HPAGE_PMD_NR] = number
        self._frames.index[head : head + HPAGE_PMD_NR] = _OFFSETS + index

    def pages_of(self, head: Pfn) -> Pfns:
        """Return what is left of the huge page that begins, or began, with a frame: the frames that something maps."""
        large = self._frames.has(slice(head, head + HPAGE_PMD_NR), PG_LARGE)
        return np.flatnonzero(large) + head

    def put(self, head: Pfn) -> None:
        """Drop one reference of each frame of a huge page; frames whose last it was are free again."""
        frames = self._frames
        run = slice(head, head + HPAGE_PMD_NR)
        if int(frames.refcount[run].max()) != 1 or int(frames.refcount[run].min()) != 1:
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
        """An entry of 2 MiB maps a huge page from now on; the counts of each frame are the caller's."""
        self.entire_mapcount[head] += 1

    def remove_mapping(self, head: Pfn) -> None:
        """An entry of 2 MiB maps a huge page no longer."""
        if self.entire_mapcount[head] == 1:
            del self.entire_mapcount[head]
        else:
            self.entire_mapcount[head] -= 1

    def get_zero(self) -> Pfn:
        """Return the first frame of the huge zero page, for one entry more.

        Raises SysError(ENOMEM) where there is none and none can be had.
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
        """An entry of the huge zero page has gone; with the last one the page goes."""
        self.zero_users -= 1
        if self.zero_users == 0 and self.zero_pfn is not None:
            self.put(self.zero_pfn)
            self.zero_pfn = None
