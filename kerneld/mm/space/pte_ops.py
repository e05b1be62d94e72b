"""The primitives that set and clear page-table entries of an address space.

`PteOps` is the half of `MmStruct` that deals with pages, in a file of its own for its length. Owns the agreement
between entries, the frames' counts, and the resident counters. Knows no VMA and no fault. Answers to Linux v6.8
mm/memory.c (set_pte_range, zap_pte_range) and mm/rmap.c (folio_add_*_rmap, folio_remove_rmap_pte).

Invariants: every present entry that is not special holds one reference and one mapcount of its frame, every swap entry
one count of its slot; `rss` counts entries by kind of frame; each change of what a page is mapped to is notified, as a
range.
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
    PTRS_PER_TABLE,
    present_mask,
    pte_pfn,
    pte_present,
    swap_mask,
    swp_offset,
)
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import PG_ANON, PG_DIRTY, PG_SWAPBACKED, PG_SWAPCACHE, Frames, Pfns
from kerneld.mm.frames.lru import folio_mark_accessed
from kerneld.mm.frames.swap import Slots
from kerneld.mm.frames.swap_state import folio_free_swap, free_swap_and_cache
from kerneld.mm.space.notifier import MmuNotifier, YoungListener
from kerneld.mm.space.pagetable import PageTable
from kerneld.mm.space.pagewalk import FEW_ENTRIES, Leaf, Run, Words
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr

_U64 = (1 << 64) - 1


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


class PteOps:
    """Entries of one page table, set and cleared with everything that hangs on them."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.page_table = PageTable(frames)
        self.rss = [0, 0, 0, 0]
        """Resident pages by `Rss`."""
        self.hiwater_rss = 0
        """The most resident pages before they last fell: VmHWM is this or what is resident (Linux: mm->hiwater_rss)."""
        self.notifiers: list[MmuNotifier] = []
        self.tlb: YoungListener | None = None
        """Of a native program: where the host maps its memory (`kerneld.tlb`)."""
        self._words = frames.ram.words
        self._words_np = frames.ram.words_np
        self._frames_np = frames.ram.frames_np

    @property
    def resident_pages(self) -> int:
        """How many pages are resident (Linux: get_mm_rss())."""
        file, anon, _, shmem = self.rss
        return file + anon + shmem

    def notify(self, start: Vaddr, end: Vaddr) -> None:
        """Tell every listener that [start, end) has changed."""
        for notifier in self.notifiers:
            notifier.invalidate_range(start, end)

    def map_page(self, pte: int, vaddr: Vaddr, entry: int, pfn: Pfn) -> None:
        """Fill an empty entry with a frame; the caller's reference becomes the entry's."""
        self._words[pte] = entry
        frames = self.frames
        frames.mapcount_at[pfn] += 1
        self.rss[1 if frames.flags_at[pfn] & PG_ANON else rss_kind(frames.flags_at[pfn])] += 1
        if self.notifiers:
            self.notify(vaddr, vaddr + PAGE_SIZE)

    def map_zero_page(self, pte: int, vaddr: Vaddr, entry: int) -> None:
        """Fill an empty entry with the shared zero page, which is not counted."""
        self._words[pte] = entry
        if self.notifiers:
            self.notify(vaddr, vaddr + PAGE_SIZE)

    def update_pte(self, pte: int, vaddr: Vaddr, entry: int) -> None:
        """Change the rights or state bits of an entry that goes on mapping the same frame."""
        if self._words[pte] != entry:
            self._words[pte] = entry
            if self.notifiers:
                self.notify(vaddr, vaddr + PAGE_SIZE)

    def map_swapped_page(self, pte: int, vaddr: Vaddr, entry: int, pfn: Pfn) -> None:
        """Let a swap entry, whose slot the caller has freed, map a frame; the caller's reference is the entry's."""
        self._words[pte] = entry
        self.frames.mapcount_at[pfn] += 1
        self.rss[Rss.SWAP] -= 1
        self.rss[Rss.ANON] += 1
        if self.notifiers:
            self.notify(vaddr, vaddr + PAGE_SIZE)

    def copy_swap_ptes(self, run: Run, entries: Words) -> None:
        """Fill the empty entries of a run with swap entries, each one more of its slot; a 0 is left as it is."""
        slots = swp_offset(entries[entries != 0]).astype(np.int64)
        self.frames.swap.swap_duplicate(slots)
        self.rss[Rss.SWAP] += len(slots)
        self._fill(run, entries)

    def clear_young(self, ptes: Slots, vaddrs: Slots) -> npt.NDArray[np.bool_]:
        """Take the accessed bit from entries, and return for each whether it was set.

        `vaddrs` are the pages of the entries, in order. No listener is told but a TLB: what a page is mapped to stays.
        Source: Linux v6.8 mm/rmap.c:folio_referenced_one().
        """
        entries = self._words_np[ptes]
        self._words_np[ptes] = entries & np.uint64(~PTE_ACCESSED & _U64)
        if self.tlb is not None:
            self.tlb.clear_flush_young(int(vaddrs[0]), int(vaddrs[-1]) + PAGE_SIZE)
        young: npt.NDArray[np.bool_] = (entries & np.uint64(PTE_ACCESSED)) != 0
        return young

    def unmap_frames(self, ptes: Slots, vaddrs: Slots, entries: Words) -> None:
        """Let entries that each map a frame become swap entries, or 0; the caller holds each frame.

        `vaddrs` are the pages of the entries, in order. Dirty bits are the caller's business. Source: Linux v6.8
        mm/rmap.c:try_to_unmap_one().
        """
        pfns = pte_pfn(self._words_np[ptes]).astype(np.int64)
        flags = self.frames.flags[pfns]
        self.update_hiwater_rss()
        self._words_np[ptes] = entries
        anon = (flags & PG_ANON) != 0
        shmem = ~anon & ((flags & PG_SWAPBACKED) != 0)
        self.rss[Rss.ANON] -= int(np.count_nonzero(anon))
        self.rss[Rss.SHMEM] -= int(np.count_nonzero(shmem))
        self.rss[Rss.FILE] -= int(np.count_nonzero(~anon & ~shmem))
        swapped = entries[entries != 0]
        self.frames.swap.swap_duplicate(swp_offset(swapped).astype(np.int64))
        self.rss[Rss.SWAP] += len(swapped)
        self.frames.mapcount[pfns] -= 1
        self.frames.refcount[pfns] -= 1
        self.notify(int(vaddrs[0]), int(vaddrs[-1]) + PAGE_SIZE)

    def replace_page(self, pte: int, vaddr: Vaddr, entry: int, pfn: Pfn) -> None:
        """Let an entry that maps a frame map another; the caller's reference of the new frame becomes the entry's.

        That the old frame was used is not kept: who copies it flushes its accessed bit, while zap passes it on.
        Source: Linux v6.8 mm/memory.c:wp_page_copy(), ptep_clear_flush().
        """
        old = self._words[pte]
        self._words[pte] = entry
        self.frames.mapcount_at[pfn] += 1
        self.rss[rss_kind(self.frames.flags_at[pfn])] += 1
        self._forget_entry(old & ~PTE_ACCESSED)
        if self.notifiers:
            self.notify(vaddr, vaddr + PAGE_SIZE)

    def map_pages(self, run: Run, entries: Words, pfns: Pfns, kind: int) -> None:
        """Fill the empty entries of a run with frames, each frame named once; an entry of 0 is left as it is.

        `pfns` are the frames of those that are not 0, all of one kind.
        """
        self.frames.mapcount[pfns] += 1
        self.rss[kind] += len(pfns)
        self._fill(run, entries)

    def map_zero_pages(self, run: Run, entries: Words) -> None:
        """Fill the empty entries of a run with the shared zero page; an entry of 0 is left as it is."""
        self._fill(run, entries)

    def _fill(self, run: Run, entries: Words) -> None:
        self._put(run, self.page_table.walk.read(run) | entries)
        self.notify(run.start, run.end)

    def _put(self, run: Run, entries: Words) -> None:
        if isinstance(run, Leaf):
            self._words_np[run.low : run.high] = entries
        else:
            self._frames_np[run.tables] = entries.reshape(-1, PTRS_PER_TABLE)

    def write_ptes(self, run: Run, entries: Words) -> None:
        """Give a run of entries other rights or state bits; each, a huge page's too, maps what it did, or none."""
        self._put(run, entries)
        self.notify(run.start, run.end)

    def move_entries(self, run: Run, place: Run, first: int) -> None:
        """Move the entries of a run to empty ones: to those of `place` from its entry `first` on, both without gaps.

        Frames and counters stay as they are.
        """
        entries = self.page_table.walk.read(run).copy()
        if not entries.any():
            return
        target = self.page_table.walk.read(place).copy()
        target[first : first + len(entries)] = entries
        self._put(place, target)
        self._clear(run)
        self.notify(run.start, run.end)
        to = place.start + (first << PAGE_SHIFT)
        self.notify(to, to + (len(entries) << PAGE_SHIFT))

    def zap_swapped(self, run: Run) -> None:
        """Clear the swap entries among a run's, and let go of their slots."""
        entries = self.page_table.walk.read(run)
        swapped = swap_mask(entries)
        slots = swp_offset(entries[swapped]).astype(np.int64)
        if len(slots):
            self._put(run, np.where(swapped, np.uint64(0), entries))
            self.rss[Rss.SWAP] -= len(slots)
            free_swap_and_cache(self.frames, slots)
            self.notify(run.start, run.end)

    def update_hiwater_rss(self) -> None:
        """Note what is resident before it falls. Source: Linux v6.8 include/linux/mm.h:update_hiwater_rss()."""
        resident = self.resident_pages
        self.hiwater_rss = max(self.hiwater_rss, resident)

    def zap_range(self, start: Vaddr, end: Vaddr) -> None:
        """Clear every entry of [start, end), a part of one VMA, and let go of the frames.

        The accessed and dirty bits of a file's pages go over to their frames.
        Source: Linux v6.8 mm/memory.c:zap_pte_range().
        """
        changed = False
        self.update_hiwater_rss()
        for run in self.page_table.walk.runs(start, end):
            if isinstance(run, Leaf) and run.high - run.low <= FEW_ENTRIES:
                changed |= self._zap_few(run.low, run.high)
                continue
            entries = self.page_table.walk.read(run)
            entries = entries[entries != 0]
            if len(entries):
                changed = True
                self._clear(run)
                self._forget_entries(entries)
        if changed:
            self.notify(start, end)

    def _clear(self, run: Run) -> None:
        if isinstance(run, Leaf):
            self._words_np[run.low : run.high] = 0
        else:
            self._frames_np[run.tables] = 0

    def zap_cached(self, start: Vaddr, end: Vaddr) -> None:
        """Clear the entries of [start, end), a part of one VMA, that map pages of its file, and keep private copies."""
        for leaf in self.page_table.walk.leaves(start, end):
            places, pfns = self.page_table.walk.mapped(leaf)
            for position in places[~self.frames.has(pfns, PG_ANON)].tolist():
                self._zap_few(leaf.low + position, leaf.low + position + 1)
        self.notify(start, end)

    def _zap_few(self, low: int, high: int) -> bool:
        changed = False
        words = self._words
        for pte in range(low, high):
            entry = words[pte]
            if entry:
                words[pte] = 0
                self._forget_entry(entry)
                changed = True
        return changed

    def _forget_entry(self, entry: int) -> None:
        """Let go of the frame of an entry that was cleared or replaced."""
        if not pte_present(entry):
            self.rss[Rss.SWAP] -= 1
            free_swap_and_cache(self.frames, np.array([swp_offset(entry)]))
            return
        if entry & PTE_SPECIAL:
            return
        pfn = (entry & PTE_PFN_MASK) >> PAGE_SHIFT
        frames = self.frames
        flags = frames.flags_at[pfn]
        self.rss[rss_kind(flags)] -= 1
        frames.mapcount_at[pfn] -= 1
        if not flags & PG_ANON:
            self._keep_state(pfn, entry)
        elif flags & PG_SWAPCACHE and not frames.mapcount_at[pfn]:
            folio_free_swap(frames, pfn)
        frames.put_page(pfn)

    def _keep_state(self, pfn: Pfn, entry: int) -> None:
        frames = self.frames
        if entry & PTE_DIRTY and not frames.flags_at[pfn] & PG_DIRTY:
            mapping = frames.find_mapping(pfn)
            if isinstance(mapping, AddressSpace):
                mapping.mark_dirty(frames.index_at[pfn], pfn)
        if entry & PTE_ACCESSED:
            folio_mark_accessed(frames, np.array([pfn]))

    def _forget_entries(self, entries: Words) -> None:
        """Let go of the frames of entries of one VMA, in which no frame can stand twice."""
        present = present_mask(entries)
        if not present.all():
            swapped = entries[~present]
            self.rss[Rss.SWAP] -= len(swapped)
            free_swap_and_cache(self.frames, swp_offset(swapped).astype(np.int64))
        counted = entries[present & ((entries & PTE_SPECIAL) == 0)]
        if not len(counted):
            return
        pfns = pte_pfn(counted).astype(np.int64)
        flags = self.frames.flags[pfns]
        anon = (flags & PG_ANON) != 0
        nr_anon = int(np.count_nonzero(anon))
        self.rss[Rss.ANON] -= nr_anon
        if nr_anon != len(pfns):
            nr_shmem = int(np.count_nonzero(~anon & ((flags & PG_SWAPBACKED) != 0)))
            self.rss[Rss.SHMEM] -= nr_shmem
            self.rss[Rss.FILE] -= len(pfns) - nr_anon - nr_shmem
            for entry in counted[~anon & ((counted & PTE_DIRTY) != 0)].tolist():
                self._keep_state((entry & PTE_PFN_MASK) >> PAGE_SHIFT, entry & ~PTE_ACCESSED)
            folio_mark_accessed(self.frames, pfns[~anon & ((counted & PTE_ACCESSED) != 0)])
        self.frames.mapcount[pfns] -= 1
        if nr_anon and bool((flags & PG_SWAPCACHE).any()):
            for pfn in pfns[anon & ((flags & PG_SWAPCACHE) != 0)].tolist():
                if not self.frames.mapcount_at[pfn]:
                    folio_free_swap(self.frames, pfn)
        self.frames.put_pages(pfns)
