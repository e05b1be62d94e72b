"""The frames and swap slots that the entries of one address space hold, and the resident counters.

Keeps the frames' counts and the resident counters equal to the entries: `Pages` sets and clears entries, and this
module updates the counts for each change. Knows no page table. Answers to Linux v6.8 mm/rmap.c
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
    counted_mask,
    present_mask,
    pte_pfn,
    pte_present,
    swp_offset,
)
from kerneld.hw.scalars import i32, u32, u64
from kerneld.mm.files.dirtying import keep_dirty
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import (
    PG_ANON,
    PG_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    ZERO_PFN,
    Frames,
    Pfns,
)
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.frames.lru import folio_mark_accessed, folios_mark_accessed
from kerneld.mm.frames.swap import Slots
from kerneld.mm.frames.swap_state import folio_free_swap, folios_free_swap, free_swap_and_cache
from kerneld.mm.space.pagewalk import Words
from shared.uapi.page import PAGE_SHIFT, Pfn

_NONE, _ONE, _LESS = u32(0), i32(1), i32(-1)


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


def is_ksm_zero(entries: Words) -> npt.NDArray[np.bool_]:
    """Return for each entry, present or not, whether KSM has put the zero page there in place of a page of zeros.

    Source: Linux v6.8 include/linux/ksm.h:is_ksm_zero_pte(): a dirty entry of the zero page.
    """
    both = u64(PTE_SPECIAL | PTE_DIRTY)
    mask: npt.NDArray[np.bool_] = ((entries & both) == both) & present_mask(entries)
    return mask


def _count_ksm_zeros(entries: Words) -> int:
    return int(np.count_nonzero(is_ksm_zero(entries)))


class RssStat:
    """The resident counters, in pages; the counts of frames and slots change with them (Linux: mm->rss_stat)."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.counts = [0, 0, 0, 0]
        """Pages by `Rss`."""
        self.hiwater = 0
        """Most resident pages before they last fell; VmHWM: the larger of it and the present (Linux:
        mm->hiwater_rss)."""
        self.ksm_zero_pages = 0
        """The entries in which KSM has put the zero page: special and dirty ones (Linux: mm->ksm_zero_pages)."""

    @property
    def resident_pages(self) -> int:
        """The number of resident pages (Linux: get_mm_rss())."""
        file, anon, _, shmem = self.counts
        return file + anon + shmem

    def update_hiwater(self) -> None:
        """Note the number of resident pages before it falls.

        Source: Linux v6.8 include/linux/mm.h:update_hiwater_rss().
        """
        self.hiwater = max(self.hiwater, self.resident_pages)

    def restart_hiwater(self) -> None:
        """Make the present number of resident pages the first peak. Source: Linux v6.8 kernel/fork.c:dup_mm()."""
        self.hiwater = self.resident_pages

    def hold(self, pfn: Pfn) -> None:
        """Count one more entry that maps a frame; the caller's reference of the frame becomes the entry's.

        An entry of KSM's for the zero page holds nothing.
        """
        if pfn == ZERO_PFN:
            self.count_ksm_zeros(1)
            return
        self._frames.mapcount_at[pfn] += 1
        self.counts[rss_kind(self._frames.flags_at[pfn])] += 1

    def hold_many(self, pfns: Pfns, kind: Rss) -> None:
        """Do the same as `hold` for many frames, each named once and all of one kind."""
        self._frames.mapcount[pfns] += _ONE
        self.counts[kind] += len(pfns)

    def share_many(self, entries: Words) -> None:
        """Count these entries of a forked address space, which are also the parent's: no frame is exclusive any more.

        A new entry takes its own reference. An entry that maps no frame is passed over.

        Source: Linux v6.8 mm/memory.c:copy_present_pte(), include/linux/rmap.h:folio_try_dup_anon_rmap_ptes().
        """
        pfns = pte_pfn(entries[counted_mask(entries)]).astype(np.int64)
        if self._frames.ksm_zero_pages:
            self.count_ksm_zeros(_count_ksm_zeros(entries))
        self._frames.clear(pfns, PG_ANON_EXCLUSIVE)
        self._frames.get_pages(pfns)
        self._frames.count_each(self._frames.mapcount, pfns, _ONE)
        self._count(self._frames.flags[pfns], 1)

    def hold_huge(self, head: Pfn) -> None:
        """Count one more entry of 2 MiB for a huge page; the caller's reference of each frame becomes the entry's."""
        self._frames.mapcount[head : head + HPAGE_PMD_NR] += 1
        self._frames.huge.add_mapping(head)
        self.counts[Rss.ANON] += HPAGE_PMD_NR

    def let_go_huge(self, head: Pfn) -> None:
        """Drop the references of a cleared entry of 2 MiB."""
        self.counts[Rss.ANON] -= HPAGE_PMD_NR
        self._frames.mapcount[head : head + HPAGE_PMD_NR] -= 1
        self._frames.huge.remove_mapping(head)
        self._frames.huge.put(head)

    def hold_slots(self, slots: Slots) -> None:
        """Count one more swap entry for each slot."""
        self._frames.swap.swap_duplicate(slots)
        self.counts[Rss.SWAP] += len(slots)

    def count_ksm_zeros(self, number: int) -> None:
        """Count entries with a zero page of KSM's that have come, or have gone (a negative number).

        Source: Linux v6.8 include/linux/ksm.h:ksm_might_unmap_zero_page(), mm/ksm.c:replace_page().
        """
        self.ksm_zero_pages += number
        self._frames.ksm_zero_pages += number

    def _count(self, flags: npt.NDArray[np.uint32], sign: int) -> bool:
        """Add frames with these PG_ flags to the counters, or subtract them (`sign` -1).

        Return if all are anonymous.
        """
        nr_anon = int(np.count_nonzero((flags & u32(PG_ANON)) != _NONE))
        self.counts[Rss.ANON] += sign * nr_anon
        if nr_anon != len(flags):
            nr_shmem = int(np.count_nonzero((flags & (PG_ANON | PG_SWAPBACKED)) == PG_SWAPBACKED))
            self.counts[Rss.SHMEM] += sign * nr_shmem
            self.counts[Rss.FILE] += sign * (len(flags) - nr_anon - nr_shmem)
        return nr_anon == len(flags)

    def unmap(self, pfns: Pfns) -> None:
        """Count one entry less for each frame; the caller holds the frames.

        Source: Linux v6.8 mm/rmap.c:try_to_unmap_one().
        """
        self._count(self._frames.flags[pfns], -1)
        self._frames.count_each(self._frames.mapcount, pfns, _LESS)
        self._frames.count_each(self._frames.refcount, pfns, _LESS)

    def let_go(self, entry: int) -> None:
        """Drop the frame or slot of a cleared or replaced entry; a file's frame takes over the entry's state bits."""
        frames = self._frames
        if not pte_present(entry):
            self.counts[Rss.SWAP] -= 1
            free_swap_and_cache(frames, np.array([swp_offset(entry)]))
            return
        if entry & PTE_SPECIAL:
            if entry & PTE_DIRTY:
                self.count_ksm_zeros(-1)
            return
        pfn = (entry & PTE_PFN_MASK) >> PAGE_SHIFT
        flags = frames.flags_at[pfn]
        self.counts[rss_kind(flags)] -= 1
        frames.mapcount_at[pfn] -= 1
        if not flags & PG_ANON:
            if entry & PTE_DIRTY:
                self._keep_dirty(pfn)
            if entry & PTE_ACCESSED:
                folio_mark_accessed(frames, pfn)
        elif flags & PG_SWAPCACHE and not frames.mapcount_at[pfn]:
            folio_free_swap(frames, pfn)
        frames.put_page(pfn)

    def _keep_dirty(self, pfn: Pfn) -> None:
        frames = self._frames
        if not frames.flags_at[pfn] & PG_DIRTY:
            mapping = frames.find_mapping(pfn)
            if isinstance(mapping, AddressSpace):
                keep_dirty(mapping, frames.index_at[pfn], pfn)

    def let_go_many(self, entries: Words) -> None:
        """Do the same as `let_go` for many entries, none of them 0. Only a merged frame may be among them twice."""
        frames = self._frames
        present = present_mask(entries)
        if not present.all():
            swapped = entries[~present]
            self.counts[Rss.SWAP] -= len(swapped)
            free_swap_and_cache(frames, swp_offset(swapped).astype(np.int64))
        if self.ksm_zero_pages:
            self.count_ksm_zeros(-_count_ksm_zeros(entries))
        counted = entries[present & ((entries & u64(PTE_SPECIAL)) == u64(0))]
        if not len(counted):
            return
        pfns = pte_pfn(counted).astype(np.int64)
        flags = frames.flags[pfns]
        if not self._count(flags, -1):
            of_file = (flags & u32(PG_ANON)) == _NONE
            for pfn in pfns[
                of_file & ((counted & u64(PTE_DIRTY)) != u64(0)) & ((flags & u32(PG_DIRTY)) == _NONE)
            ].tolist():
                self._keep_dirty(pfn)
            folios_mark_accessed(frames, pfns[of_file & ((counted & u64(PTE_ACCESSED)) != u64(0))])
        frames.count_each(frames.mapcount, pfns, _LESS)
        if (flags & u32(PG_SWAPCACHE)).any():
            cached = pfns[(flags & (PG_ANON | PG_SWAPCACHE)) == PG_ANON | PG_SWAPCACHE]
            folios_free_swap(frames, cached[frames.mapcount[cached] == 0])
        frames.put_pages(pfns)
