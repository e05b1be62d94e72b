"""What the entries of one address space hold, frames and slots of the swap file, and the resident counters.

Owns the agreement between entries, the frames' counts and the resident counters: `Pages` says which entries come and
go, and this says what that means for their frames. Knows no page table. Answers to Linux v6.8 mm/rmap.c
(folio_add_*_rmap, folio_remove_rmap_pte), include/linux/mm.h (get_mm_rss, update_hiwater_rss) and the end of
mm/memory.c:zap_pte_range().

Invariants: every present entry that is not special holds one reference and one mapcount of its frame, every swap entry
one count of its slot; the counters count entries by kind of frame.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_MASK,
    PTE_SPECIAL,
    present_mask,
    pte_pfn,
    pte_present,
    swp_offset,
)
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_DIRTY, PG_SWAPBACKED, PG_SWAPCACHE, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.frames.lru import folio_mark_accessed
from kerneld.mm.frames.swap import Slots
from kerneld.mm.frames.swap_state import folio_free_swap, free_swap_and_cache
from kerneld.mm.space.pagewalk import Words
from shared.uapi.page import PAGE_SHIFT, Pfn


class Rss(IntEnum):
    """Which resident counter a frame belongs to: Linux v6.8 include/linux/mm_types_task.h MM_FILEPAGES …"""

    FILE = 0
    ANON = 1
    SWAP = 2
    SHMEM = 3


def rss_kind(flags: int) -> int:
    """Return the counter for a frame with these PG_ flags (Linux: mm_counter())."""
    if flags & PG_ANON:
        return 1
    return 3 if flags & PG_SWAPBACKED else 0


class RssStat:
    """The counters, in pages, and what is held of frames and slots (Linux: mm->rss_stat)."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.counts = [0, 0, 0, 0]
        """Pages by `Rss`."""
        self.hiwater = 0
        """The most resident pages before they last fell: VmHWM is this or what is resident (Linux: mm->hiwater_rss)."""

    @property
    def resident_pages(self) -> int:
        """How many pages are resident (Linux: get_mm_rss())."""
        file, anon, _, shmem = self.counts
        return file + anon + shmem

    def update_hiwater(self) -> None:
        """Note what is resident before it falls. Source: Linux v6.8 include/linux/mm.h:update_hiwater_rss()."""
        self.hiwater = max(self.hiwater, self.resident_pages)

    def restart_hiwater(self) -> None:
        """What is resident now is the first peak. Source: Linux v6.8 kernel/fork.c:dup_mm()."""
        self.hiwater = self.resident_pages

    def hold(self, pfn: Pfn) -> None:
        """One entry more maps a frame; the caller's reference of it becomes the entry's."""
        self._frames.mapcount_at[pfn] += 1
        self.counts[rss_kind(self._frames.flags_at[pfn])] += 1

    def hold_many(self, pfns: Pfns, kind: Rss) -> None:
        """Do as `hold` does for frames, each named once and all of one kind."""
        self._frames.mapcount[pfns] += 1
        self.counts[kind] += len(pfns)

    def share_many(self, pfns: Pfns) -> None:
        """One entry more, of a forked address space, maps each frame: no frame is one address space's alone any more.

        The entry takes a reference of its own.

        Source: Linux v6.8 mm/memory.c:copy_present_pte(), include/linux/rmap.h:folio_try_dup_anon_rmap_ptes().
        """
        self._frames.clear(pfns, PG_ANON_EXCLUSIVE)
        self._frames.get_pages(pfns)
        self._frames.mapcount[pfns] += 1
        self._count(self._frames.flags[pfns], 1)

    def hold_huge(self, head: Pfn) -> None:
        """One entry of 2 MiB more maps a huge page; the caller's reference of each frame becomes the entry's."""
        self._frames.mapcount[head : head + HPAGE_PMD_NR] += 1
        self._frames.huge.add_mapping(head)
        self.counts[Rss.ANON] += HPAGE_PMD_NR

    def let_go_huge(self, head: Pfn) -> None:
        """An entry of 2 MiB has been cleared: let go of its huge page."""
        self.counts[Rss.ANON] -= HPAGE_PMD_NR
        self._frames.mapcount[head : head + HPAGE_PMD_NR] -= 1
        self._frames.huge.remove_mapping(head)
        self._frames.huge.put(head)

    def hold_slots(self, slots: Slots) -> None:
        """One entry more names each slot."""
        self._frames.swap.swap_duplicate(slots)
        self.counts[Rss.SWAP] += len(slots)

    def _count(self, flags: npt.NDArray[np.uint32], sign: int) -> bool:
        """Count frames with these PG_ flags, or count them off (`sign` -1), by kind; return if all are anonymous."""
        nr_anon = int(np.count_nonzero((flags & PG_ANON) != 0))
        self.counts[Rss.ANON] += sign * nr_anon
        if nr_anon != len(flags):
            nr_shmem = int(np.count_nonzero((flags & (PG_ANON | PG_SWAPBACKED)) == PG_SWAPBACKED))
            self.counts[Rss.SHMEM] += sign * nr_shmem
            self.counts[Rss.FILE] += sign * (len(flags) - nr_anon - nr_shmem)
        return nr_anon == len(flags)

    def unmap(self, pfns: Pfns) -> None:
        """One entry less maps each frame, which the caller holds. Source: Linux v6.8 mm/rmap.c:try_to_unmap_one()."""
        self._count(self._frames.flags[pfns], -1)
        self._frames.mapcount[pfns] -= 1
        self._frames.refcount[pfns] -= 1

    def let_go(self, entry: int) -> None:
        """An entry has been cleared or replaced: let go of its frame, or slot; a file's frame takes over its state."""
        frames = self._frames
        if not pte_present(entry):
            self.counts[Rss.SWAP] -= 1
            free_swap_and_cache(frames, np.array([swp_offset(entry)]))
            return
        if entry & PTE_SPECIAL:
            return
        pfn = (entry & PTE_PFN_MASK) >> PAGE_SHIFT
        flags = frames.flags_at[pfn]
        self.counts[rss_kind(flags)] -= 1
        frames.mapcount_at[pfn] -= 1
        if not flags & PG_ANON:
            if entry & PTE_DIRTY:
                self._keep_dirty(pfn)
            if entry & PTE_ACCESSED:
                folio_mark_accessed(frames, np.array([pfn]))
        elif flags & PG_SWAPCACHE and not frames.mapcount_at[pfn]:
            folio_free_swap(frames, pfn)
        frames.put_page(pfn)

    def _keep_dirty(self, pfn: Pfn) -> None:
        frames = self._frames
        if not frames.flags_at[pfn] & PG_DIRTY:
            mapping = frames.find_mapping(pfn)
            if isinstance(mapping, AddressSpace):
                mapping.mark_dirty(frames.index_at[pfn], pfn)

    def let_go_many(self, entries: Words) -> None:
        """Do as `let_go` does for entries of one VMA, none 0, in which no frame can stand twice."""
        frames = self._frames
        present = present_mask(entries)
        if not present.all():
            swapped = entries[~present]
            self.counts[Rss.SWAP] -= len(swapped)
            free_swap_and_cache(frames, swp_offset(swapped).astype(np.int64))
        counted = entries[present & ((entries & PTE_SPECIAL) == 0)]
        if not len(counted):
            return
        pfns = pte_pfn(counted).astype(np.int64)
        flags = frames.flags[pfns]
        if not self._count(flags, -1):
            of_file = (flags & PG_ANON) == 0
            for pfn in pfns[of_file & ((counted & PTE_DIRTY) != 0)].tolist():
                self._keep_dirty(pfn)
            folio_mark_accessed(frames, pfns[of_file & ((counted & PTE_ACCESSED) != 0)])
        frames.mapcount[pfns] -= 1
        if (flags & PG_SWAPCACHE).any():
            for pfn in pfns[(flags & (PG_ANON | PG_SWAPCACHE)) == PG_ANON | PG_SWAPCACHE].tolist():
                if not frames.mapcount_at[pfn]:
                    folio_free_swap(frames, pfn)
        frames.put_pages(pfns)
