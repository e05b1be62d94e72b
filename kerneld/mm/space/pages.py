"""The entries of an address space, of 4 KiB and of 2 MiB, and the few primitives that change them.

Owns the contents of the leaf entries of one page table: only `Pages` sets and clears them. Each primitive also updates
the frame's counts and the resident counter (`RssStat`), and notifies the listeners: no caller can forget it. Knows no
fault, and of VMAs only which are locked. Answers to Linux v6.8 mm/memory.c (set_pte_range, zap_pte_range,
copy_present_pte), mm/huge_memory.c (zap_huge_pmd …) and mm/rmap.c (try_to_unmap_one).

| change of an entry                   | one          | many                               | of 2 MiB          |
|--------------------------------------|--------------|------------------------------------|-------------------|
| empty, now it maps a new frame       | set_pte      | set_ptes                           | set_huge_pmd      |
| empty, now a cached page of a file   | set_pte      | set_cached_ptes                    |                   |
| empty, now it maps the zero page     | set_zero_pte | set_zero_ptes                      | set_huge_zero_pmd |
| empty, in a forked child             | share_pte    | share_ptes, share_swap_ptes        | set_huge_pmd      |
| same frame, other rights or state    | update_pte   | update_ptes                        | update_huge_pmd   |
| another frame                        | replace_pte  |                                    |                   |
| its page is swapped out, or dropped  |              | unmap_frames                       | split first       |
| its page is swapped in               | swap_in_pte  |                                    |                   |
| moved to another address             |              | move_entries, move_tables          | move_huge_pmd     |
| cleared                              |              | zap_range, zap_cached, zap_swapped | zap_range         |
| of 2 MiB, now 512 of 4 KiB           |              |                                    | split_huge_pmd    |

Invariants: those of `RssStat`; listeners are told the range of every change of a mapping. An entry of 2 MiB has
PTE_PSE, and its 2 MiB lie in one anonymous private VMA. Who gives a VMA a new bound, or changes a part of the 2 MiB,
splits it first (`split_huge_pmds_at`). The huge zero page's is special, and PROT_NONE encoded, as in one of 4 KiB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_MASK,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    PTE_SOFT_DIRTY,
    PTE_SPECIAL,
    PTE_TABLE,
    PTRS_PER_TABLE,
    make_pte,
    move_soft_dirty,
    pte_pfn,
    small_entries,
    swap_mask,
    swp_offset,
)  # fmt: skip
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.hw.scalars import u64
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_DIRTY, ZERO_PFN, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.frames.lru import munlock_folio
from kerneld.mm.frames.swap import Slots
from kerneld.mm.space.notifier import Notifiers
from kerneld.mm.space.pagetable import PageTable
from kerneld.mm.space.pagewalk import FEW_ENTRIES, Leaf, Run, Words
from kerneld.mm.space.rss import Rss, RssStat, rss_kind
from kerneld.mm.space.vma_tree import VmaTree
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Pfn, Vaddr

_SWAP = Rss.SWAP.value
_FEW_TO_LET_GO = 32  # Up to so many entries, `let_go` of each takes fewer instructions than `let_go_many`.


class Pages:
    """The entries of one page table. A `haddr` is a 2 MiB-aligned address; a word index names an entry."""

    def __init__(
        self, frames: Frames, page_table: PageTable, rss: RssStat, notifiers: Notifiers, vmas: VmaTree, number: int
    ) -> None:
        self.number = number
        """The number of the address space."""
        self.page_table = page_table
        self.rss = rss
        self._frames = frames
        self._walk = page_table.walk
        self._notifiers = notifiers
        self._vmas = vmas
        self._words = frames.ram.words
        self._flags_at, self._mapcount_at = frames.flags_at, frames.mapcount_at
        self._counts = rss.counts
        self._words_np, self._frames_np = frames.ram.words_np, frames.ram.frames_np

    # One entry

    def set_pte(self, pte: int, vaddr: Vaddr, entry: int, pfn: Pfn) -> None:
        """Fill an empty entry with a frame; the caller's reference becomes the entry's (xv6: mappages())."""
        self._words[pte] = entry
        self._mapcount_at[pfn] += 1
        flags = self._flags_at[pfn]
        self._counts[1 if flags & PG_ANON else rss_kind(flags)] += 1
        if len(self._notifiers) > self._notifiers.nr_tlbs:
            self._notifiers.fill_range(vaddr, vaddr + PAGE_SIZE)

    def set_zero_pte(self, pte: int, vaddr: Vaddr, entry: int) -> None:
        """Fill an empty entry with the shared zero page, which is not counted; a dirty entry is a copy of KSM's."""
        self._words[pte] = entry
        if entry & PTE_DIRTY:
            self.rss.count_ksm_zeros(1)
        if len(self._notifiers) > self._notifiers.nr_tlbs:
            self._notifiers.fill_range(vaddr, vaddr + PAGE_SIZE)

    def update_pte(self, pte: int, vaddr: Vaddr, entry: int) -> None:
        """Change the rights or state bits of an entry that keeps mapping the same frame."""
        if self._words[pte] != entry:
            self._words[pte] = entry
            if self._notifiers:
                self._notifiers.invalidate_range(vaddr, vaddr + PAGE_SIZE)

    def replace_pte(self, pte: int, vaddr: Vaddr, entry: int, pfn: Pfn) -> None:
        """Make an entry map another frame; the caller's reference of the new frame becomes the entry's.

        Instead of another frame, KSM may give the zero page, which is not counted.
        The accessed bit is lost: a copy flushes the old entry, while zap passes the bit on to the frame.
        Source: Linux v6.8 mm/memory.c:wp_page_copy(), ptep_clear_flush().
        """
        old = self._words[pte]
        self._words[pte] = entry
        self.rss.hold(pfn)
        self.rss.let_go(old & ~PTE_ACCESSED)
        if self._notifiers:
            self._notifiers.invalidate_range(vaddr, vaddr + PAGE_SIZE)

    def swap_in_pte(self, pte: int, vaddr: Vaddr, entry: int, pfn: Pfn) -> None:
        """Replace a swap entry, whose slot the caller has freed, by a frame; the entry takes the caller's reference."""
        self._words[pte] = entry
        self._counts[_SWAP] -= 1
        self.rss.hold(pfn)
        if self._notifiers:
            self._notifiers.invalidate_range(vaddr, vaddr + PAGE_SIZE)

    def share_pte(self, pte: int, vaddr: Vaddr, entry: int, pfn: Pfn) -> None:
        """Fill an empty entry with a frame that the parent maps too: the frame is not exclusive any more."""
        self._flags_at[pfn] &= ~PG_ANON_EXCLUSIVE
        self._frames.get_page(pfn)
        self.set_pte(pte, vaddr, entry, pfn)

    # Many entries

    def set_ptes(self, run: Run, entries: Words, pfns: Pfns, kind: Rss) -> None:
        """Fill the empty entries of a run with `pfns`, each once and of one kind; a 0 of `entries` leaves one empty."""
        self.rss.hold_many(pfns, kind)
        self._fill(run, entries)

    def set_cached_ptes(self, pte: int, vaddr: Vaddr, pfns: list[Pfn | None], prot: int) -> None:
        """Fill empty entries, from `pte` for `vaddr` on, with pages of one file; a None leaves its entry as it is.

        Each entry takes a reference of its frame. Source: Linux v6.8 mm/memory.c:set_pte_range().
        """
        frames, low, nr_pages = self._frames, next(filter(None, pfns)), len(pfns) - pfns.count(None)
        high = low + nr_pages
        if pfns == list(range(low, high)):
            # Frames that were filled together mostly follow each other: numpy takes a slice, which is quicker.
            first = make_pte(low, prot)
            self._words_np[pte : pte + nr_pages] = np.arange(first, make_pte(high, prot), PAGE_SIZE, dtype=np.uint64)
            frames.get_mapped(low, high)
            if self._notifiers.tlb is not None:
                self._notifiers.tlb.update_mmu_cache_range(vaddr, first, nr_pages)
        else:
            for place, pfn in enumerate(pfns, pte):
                if pfn is not None:
                    self._words[place] = make_pte(pfn, prot)
                    frames.refcount_at[pfn] += 1
                    frames.mapcount_at[pfn] += 1
        self._counts[rss_kind(self._flags_at[low])] += nr_pages
        if len(self._notifiers) > self._notifiers.nr_tlbs:
            at = [number for number, pfn in enumerate(pfns) if pfn is not None]
            self._notifiers.fill_range(vaddr + (at[0] << PAGE_SHIFT), vaddr + (at[-1] + 1 << PAGE_SHIFT))

    def set_zero_ptes(self, run: Run, entries: Words) -> None:
        """Fill the empty entries of a run with the shared zero page; a 0 in `entries` leaves its entry empty."""
        self._fill(run, entries)

    def share_ptes(self, run: Run, entries: Words) -> None:
        """Fill the empty entries of a run with the frames that the parent maps too; skip each 0.

        Source: Linux v6.8 mm/memory.c:copy_present_pte().
        """
        self.rss.share_many(entries)
        self._fill(run, entries)

    def share_swap_ptes(self, run: Run, entries: Words) -> None:
        """Fill the empty entries of a run with swap entries, each of which adds one to its slot's count; skip 0s."""
        self.rss.hold_slots(swp_offset(entries[entries != 0]).astype(np.int64))
        self._fill(run, entries)

    def _fill(self, run: Run, entries: Words) -> None:
        self._put(run, self._walk.read(run) | entries)
        self._notifiers.fill_range(run.start, run.end)

    def _put(self, run: Run, entries: Words | int) -> None:
        if isinstance(run, Leaf):
            self._words_np[run.low : run.high] = entries
        else:
            self._frames_np[run.tables] = entries if isinstance(entries, int) else entries.reshape(-1, PTRS_PER_TABLE)

    def update_ptes(self, run: Run, entries: Words) -> None:
        """Change the rights or state bits of a run of entries, of either size; each keeps its frame, or maps none."""
        self._put(run, entries)
        self._notifiers.invalidate_range(run.start, run.end)

    def clear_young(self, ptes: Slots, vaddrs: Slots) -> npt.NDArray[np.bool_]:
        """Clear the accessed bit of entries, and return for each entry whether the bit was set.

        `vaddrs` are the pages of the entries, in order. Only the TLB is told, because the mappings do not change.
        Source: Linux v6.8 mm/rmap.c:folio_referenced_one().
        """
        entries = self._words_np[ptes]
        self._words_np[ptes] = entries & u64(~PTE_ACCESSED)
        if self._notifiers.tlb is not None:
            self._notifiers.tlb.clear_flush_young(int(vaddrs[0]), int(vaddrs[-1]) + PAGE_SIZE)
        young: npt.NDArray[np.bool_] = (entries & u64(PTE_ACCESSED)) != u64(0)
        return young

    def mark_accessed(self, start: Vaddr, end: Vaddr, write: bool) -> None:
        """Set the accessed bit, for a write the dirty bit too, of present entries, as the processor does at an access.

        No listener is told, because the mappings do not change.
        """
        bits = u64(PTE_ACCESSED | PTE_DIRTY if write else PTE_ACCESSED)
        for leaf in self._walk.leaves(start, end):
            entries = self._words_np[leaf.low : leaf.high]
            np.bitwise_or(entries, bits, out=entries, where=(entries & u64(PTE_PRESENT)) != u64(0))

    def unmap_frames(self, ptes: Slots, vaddrs: Slots, entries: Words) -> None:
        """Replace entries that each map a frame by swap entries, or by 0; the caller holds each frame.

        `vaddrs` are the pages of the entries, in order. The caller keeps the dirty bits. Source: Linux v6.8
        mm/rmap.c:try_to_unmap_one().
        """
        pfns = pte_pfn(self._words_np[ptes]).astype(np.int64)
        self.rss.update_hiwater()
        self._words_np[ptes] = entries
        self.rss.unmap(pfns)
        self.rss.hold_slots(swp_offset(entries[entries != 0]).astype(np.int64))
        self._notifiers.invalidate_range(int(vaddrs[0]), int(vaddrs[-1]) + PAGE_SIZE)

    # A range

    def zap_range(self, start: Vaddr, end: Vaddr) -> None:
        """Clear every entry of [start, end), and drop their references. Only merged frames are twice (xv6: uvmunmap()).

        The accessed and dirty bits of a file's pages are passed on to their frames. A huge page that lies in the range
        only in part is split first. Source: Linux v6.8 mm/memory.c:zap_pmd_range(), zap_pte_range().
        """
        if self.page_table.deposited:
            self.split_huge_pmds_at(start, end)
        self.rss.update_hiwater()
        self._walk.page_range(start, end, self._zap_ptes, self._zap_huge_pmd)

    def _zap_ptes(self, run: Run) -> None:
        if isinstance(run, Leaf) and run.high - run.low <= FEW_ENTRIES:
            changed = self._zap_few(range(run.low, run.high))
        else:
            entries = self._walk.read(run)
            filled = entries.nonzero()[0]
            changed = len(filled) > 0
            if isinstance(run, Leaf) and len(filled) <= _FEW_TO_LET_GO:
                self._zap_few((filled + run.low).tolist())
            else:
                entries = entries[filled]
                self._put(run, 0)
                self.rss.let_go_many(entries)
        if changed:
            self._notifiers.invalidate_range(run.start, run.end)

    def _zap_few(self, ptes: range | list[int]) -> bool:
        changed = False
        for pte in ptes:
            if entry := self._words[pte]:
                self._words[pte] = 0
                self.rss.let_go(entry)
                changed = True
        return changed

    def _zap_huge_pmd(self, leaf: Leaf) -> bool:
        entry = self._words[leaf.low]
        self._words[leaf.low] = 0
        self.page_table.free_deposit()
        if entry & PTE_SPECIAL:
            self._frames.huge.put_zero()
        else:
            self.rss.let_go_huge(pte_pfn(entry))
        self._notifiers.invalidate_range(leaf.start, leaf.end)
        return True

    def zap_cached(self, start: Vaddr, end: Vaddr) -> None:
        """Clear the entries of [start, end), a part of one VMA, that map pages of its file, and keep private copies."""
        for leaf in self._walk.leaves(start, end):
            places, pfns = self._walk.mapped(leaf)
            ptes = leaf.low + places[~self._frames.has(pfns, PG_ANON)]
            entries = self._words_np[ptes]
            self._words_np[ptes] = 0
            self.rss.let_go_many(entries)
        self._notifiers.invalidate_range(start, end)

    def zap_swapped(self, run: Run) -> None:
        """Clear the swap entries of a run, and free their slots."""
        entries = self._walk.read(run)
        swapped = swap_mask(entries)
        if swapped.any():
            gone = entries[swapped]
            self._put(run, np.where(swapped, u64(0), entries))
            self.rss.let_go_many(gone)
            self._notifiers.invalidate_range(run.start, run.end)

    def move_entries(self, run: Run, place: Run, first: int) -> None:
        """Move a run's entries, soft-dirty then, to the empty ones of `place` from its entry `first` on; no gaps."""
        entries = self._walk.read(run).copy()
        if not entries.any():
            return
        target = self._walk.read(place).copy()
        target[first : first + len(entries)] = move_soft_dirty(entries)
        self._put(place, target)
        self._put(run, 0)
        self._notifiers.invalidate_range(run.start, run.end)
        to = place.start + (first << PAGE_SHIFT)
        self._notifiers.invalidate_range(to, to + (len(entries) << PAGE_SHIFT))

    def move_tables(self, start: Vaddr, end: Vaddr, to: Vaddr) -> bool:
        """Move whole leaf tables as `PageTable.move_tables` does; frames, counters, small soft-dirty bits stay."""
        moved = self.page_table.move_tables(start, end, to)
        self._notifiers.invalidate_range(start, end)
        self._notifiers.invalidate_range(to, to + end - start)
        return moved

    # Entries of 2 MiB

    def set_huge_pmd(self, pmd: int, haddr: Vaddr, entry: int, head: Pfn) -> None:
        """Fill an empty entry, or one of the huge zero page, with a huge page; its table is deposited already.

        The caller's reference of each frame becomes the entry's.
        """
        if self._words[pmd]:
            self._frames.huge.put_zero()
        self._words[pmd] = entry
        self.rss.hold_huge(head)
        self._notifiers.invalidate_range(haddr, haddr + PMD_SIZE)

    def set_huge_zero_pmd(self, pmd: int, haddr: Vaddr, prot: int) -> None:
        """Fill an empty entry with the huge zero page, which is not counted; the caller has deposited a table for it.

        `prot` has the entry's rights. Raises SysError(ENOMEM) if the huge zero page cannot be allocated.
        """
        self._words[pmd] = make_pte(self._frames.huge.get_zero(), prot & ~PTE_RW | PTE_PSE | PTE_SPECIAL)
        self._notifiers.invalidate_range(haddr, haddr + PMD_SIZE)

    def update_huge_pmd(self, pmd: int, haddr: Vaddr, entry: int) -> None:
        """Change the rights or state bits of an entry that keeps mapping the same huge page."""
        if self._words[pmd] != entry:
            self._words[pmd] = entry
            self._notifiers.invalidate_range(haddr, haddr + PMD_SIZE)

    def split_huge_pmds_at(self, *bounds: Vaddr) -> None:
        """Split the entry of each huge page that has one of these addresses inside.

        Source: Linux v6.8 mm/huge_memory.c:split_huge_pmd_address().
        """
        for vaddr in bounds:
            if vaddr & PMD_SIZE - 1:
                pmd = self.page_table.find_huge_pmd(vaddr)
                if pmd is not None:
                    self.split_huge_pmd(pmd, vaddr & -PMD_SIZE)

    def split_huge_pmd(self, pmd: int, haddr: Vaddr) -> None:
        """Replace an entry of 2 MiB by a table of 512 entries for the same frames; this cannot fail.

        For the huge zero page, each entry maps the shared zero page, and is not soft-dirty. Any other huge page stays
        one page. It becomes dirty if the entry was, and its small entries soft-dirty too (pte_mkdirty()). Locked memory
        loses the lock on the page, until reclaim finds it.
        Source: Linux v6.8 mm/huge_memory.c:__split_huge_pmd_locked(), __split_huge_zero_page_pmd().
        """
        entry = self._words[pmd]
        table = self.page_table.withdraw()
        low, huge = table << WORDS_SHIFT, self._frames.huge
        if entry & PTE_SPECIAL:
            small: Words | int = make_pte(ZERO_PFN, entry & ~(PTE_PFN_MASK | PTE_PSE | PTE_SOFT_DIRTY))
            huge.put_zero()
        else:
            head = pte_pfn(entry)
            huge.remove_mapping(head)
            if entry & PTE_DIRTY:
                self._frames.set(slice(head, head + HPAGE_PMD_NR), PG_DIRTY)
                entry |= PTE_SOFT_DIRTY
            small = small_entries(entry, 0, PTRS_PER_TABLE)
            if self._vmas.is_locked(haddr):
                munlock_folio(self._frames, head)
        self._words_np[low : low + PTRS_PER_TABLE] = small
        self._words[pmd] = make_pte(table, PTE_TABLE)
        huge.events["thp_split_pmd"] += 1
        self._notifiers.invalidate_range(haddr, haddr + PMD_SIZE)

    def move_huge_pmd(self, pmd: int, haddr: Vaddr, to_pmd: int, to_haddr: Vaddr) -> None:
        """Move an entry of 2 MiB to an empty one, soft-dirty then: mm/huge_memory.c:move_huge_pmd(). All else stays."""
        self._words[to_pmd], self._words[pmd] = self._words[pmd] | PTE_SOFT_DIRTY, 0
        self._notifiers.invalidate_range(haddr, haddr + PMD_SIZE)
        self._notifiers.invalidate_range(to_haddr, to_haddr + PMD_SIZE)
