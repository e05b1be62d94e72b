"""Advice that tells reclaim about pages: WILLNEED, FREE, COLD and PAGEOUT.

The checks are `kerneld.mm.calls.madvise`'s. Answers to Linux v6.8 mm/madvise.c: madvise_willneed(),
madvise_free_pte_range(), madvise_cold_or_pageout_pte_range().
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_SPECIAL,
    pte_pfn,
    swap_mask,
    swp_offset,
)
from kerneld.hw.scalars import u64
from kerneld.mm.files.file import File
from kerneld.mm.files.shmem import shmem_swapin_range
from kerneld.mm.frames.frames import PG_ACTIVE, PG_ANON, PG_DIRTY, PG_REFERENCED, PG_SWAPCACHE, PG_UNEVICTABLE, Pfns
from kerneld.mm.frames.huge_frames import PG_LARGE
from kerneld.mm.frames.lru import folio_deactivate, folio_mark_lazyfree
from kerneld.mm.frames.swap_state import folio_free_swap, read_swap_cache
from kerneld.mm.reclaim.shrink import reclaim_pages
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pagewalk import Leaf, Run
from kerneld.mm.space.split_folio import estimated_sharers, split_folio
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_MAYSHARE
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, Vaddr

MayWrite = Callable[[File], bool]
"""A function that returns whether the caller owns a file or may write to it, independent of how it is open."""


def madvise_willneed(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Read the missing pages of a part of a VMA into memory, as long as there is free memory; nothing is mapped.

    Swapped-out pages are read into the swap cache: those of private anonymous memory (found by its entries) and those
    of shared memory (found by its file), but no private copies of a file's pages.

    Source: Linux v6.8 mm/madvise.c:swapin_walk_pmd_entry(), shmem_swapin_range() and, for a file of a disk,
    mm/readahead.c:force_page_cache_ra().
    """
    try:
        _read_ahead(mm, vma, start, end)
    except SysError:
        mm.frames.has_stalled = False  # What memory is too short for is not read.


def _read_ahead(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    if vma.file is None:
        _swap_in(mm, start, end)
        return
    mapping = vma.file.mapping
    first = vma.page_index(start)
    last = min(first + ((end - start) >> PAGE_SHIFT), mapping.last_index())
    if mapping.is_shmem:
        shmem_swapin_range(mm.frames, mapping, first, last)
        return
    mapping.host.read(first, last)
    for index in mapping.shadows.between(first, last):
        mapping.ensure_page(index)


def _swap_in(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    for leaf in mm.page_table.walk.leaves(start, end):
        entries = mm.page_table.walk.page_entries(leaf)
        for slot in swp_offset(entries[swap_mask(entries)]).tolist():
            if not mm.frames.swap.cache_at[slot]:
                read_swap_cache(mm.frames, slot)


def madvise_free(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Allow reclaim to drop the anonymous pages of a part of a VMA; drop its swapped-out pages at once.

    Source: Linux v6.8 mm/madvise.c:madvise_free_single_vma(), madvise_free_pte_range() and
    mm/huge_memory.c:madvise_free_huge_pmd().
    """
    mm.rss.update_hiwater()
    _advise(mm, start, end, partial(_free_ptes, mm), partial(_free_huge, mm))


def _free_ptes(mm: MmStruct, run: Run) -> None:
    """Source: Linux v6.8 mm/madvise.c:madvise_free_pte_range()."""
    frames = mm.frames
    mm.pages.zap_swapped(run)
    positions, pfns = mm.page_table.walk.mapped(run)
    keep = np.ones(len(pfns), dtype=np.bool_)
    for place in np.flatnonzero(frames.has(pfns, PG_SWAPCACHE | PG_DIRTY)).tolist():
        pfn = int(pfns[place])
        # A page stays dirty if other entries map it, or if another address space can swap it in.
        keep[place] = frames.mapcount_at[pfn] == 1 and (
            not frames.flags_at[pfn] & PG_SWAPCACHE or folio_free_swap(frames, pfn)
        )
    pfns = pfns[keep]
    frames.clear(pfns, PG_DIRTY)
    clear_bits(mm, run, positions[keep], PTE_ACCESSED | PTE_DIRTY)
    folio_mark_lazyfree(frames, pfns)


def _free_huge(mm: MmStruct, leaf: Leaf) -> None:
    """Source: Linux v6.8 mm/huge_memory.c:madvise_free_huge_pmd()."""
    positions, pfns = mm.page_table.walk.mapped(leaf)
    mm.frames.clear(pfns, PG_DIRTY)
    clear_bits(mm, leaf, positions, PTE_ACCESSED | PTE_DIRTY)
    folio_mark_lazyfree(mm.frames, pfns)


def madvise_cold(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Make pages that only this address space maps old and inactive. Source: madvise_cold_or_pageout_pte_range()."""
    frames = mm.frames

    def make_cold(run: Run) -> None:
        pfns = _make_old(mm, run, anon_only=False)
        folio_deactivate(frames, pfns[frames.has(pfns, PG_ACTIVE)])

    _advise(mm, start, end, make_cold, make_cold)


def madvise_pageout(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, may_write: MayWrite) -> None:
    """Reclaim pages that only this address space maps; a file's pages only if the caller owns it or may write to it.

    Source: Linux v6.8 mm/madvise.c:madvise_pageout() and can_do_file_pageout().
    """
    anon_only = vma.file is not None and not may_write(vma.file)
    if anon_only and vma.vm_flags & VM_MAYSHARE:
        return

    def reclaim(run: Run) -> None:
        pfns = _make_old(mm, run, anon_only=anon_only)
        reclaim_pages(mm.frames, pfns[~mm.frames.has(pfns, PG_UNEVICTABLE)], may_write=False)

    _advise(mm, start, end, reclaim, reclaim)
    if vma.file is not None:
        _count_as_hosts(vma.file, vma.page_index(start), vma.page_index(end))


def _count_as_hosts(file: File, first: int, last: int) -> None:
    """Note that reclaimed pages of a file are no longer cached, as if the host's page cache had dropped them.

    The pages of a file in memory stay cached: they have no other place.
    """
    mapping = file.mapping
    for index in mapping.shadows.between(first, last):
        del mapping.shadows[index]
        if not file.mapping.is_shmem:
            mapping.host.drop(index)


def _advise(mm: MmStruct, start: Vaddr, end: Vaddr, ptes: Callable[[Run], None], huge: Callable[[Leaf], None]) -> None:
    """Call `ptes` for the leaf tables of a range, and `huge` for its whole huge pages.

    The huge zero page is skipped, and so is a huge page with other owners. An exclusive huge page of which only a part
    is advised is split first.
    Source: Linux v6.8 mm/madvise.c:madvise_cold_or_pageout_pte_range(), mm/huge_memory.c:madvise_free_huge_pmd().
    """
    frames, walk = mm.frames, mm.page_table.walk

    def advise_huge(leaf: Leaf) -> bool:
        entry = frames.ram.words[leaf.low]
        if entry & PTE_SPECIAL or estimated_sharers(frames, pte_pfn(entry)) != 1:
            return True
        if leaf.end - leaf.start == PMD_SIZE:
            huge(leaf)
            return True
        split_folio(frames, pte_pfn(entry))
        return False

    def advise_ptes(run: Run) -> None:
        if not frames.huge.has_been_used or not _has_large(mm, run):
            ptes(run)
            return
        for leaf in walk.leaves(run.start, run.end):
            for part in _before_a_shared_one(mm, leaf):
                ptes(part)

    walk.page_range(start, end, advise_ptes, advise_huge)


def _has_large(mm: MmStruct, run: Run) -> bool:
    pfns = mm.page_table.walk.mapped(run)[1]
    return bool(mm.frames.has(pfns, PG_LARGE).any())


def _before_a_shared_one(mm: MmStruct, leaf: Leaf) -> Iterator[Leaf]:
    """Yield the part of a leaf table before the first page of a huge page with other owners.

    Split exclusive huge pages. Linux skips the rest of the table.
    """
    frames = mm.frames
    positions, pfns = mm.page_table.walk.mapped(leaf)
    for position, pfn in zip(positions.tolist(), pfns.tolist(), strict=True):
        if not frames.flags_at[pfn] & PG_LARGE:
            continue
        if estimated_sharers(frames, pfn) != 1:
            if position:
                end = leaf.start + (position << PAGE_SHIFT)
                yield leaf._replace(end=end, high=leaf.low + position)
            return
        split_folio(frames, pfn)
    yield leaf


def _make_old(mm: MmStruct, run: Run, *, anon_only: bool) -> Pfns:
    """Clear the accessed bits of pages that no other entry maps, and return their frames."""
    frames = mm.frames
    positions, pfns = mm.page_table.walk.mapped(run)
    # The mapcount of a huge page's first page has been checked already, for all its pages.
    ours = (frames.mapcount[pfns] == 1) | run.huge
    if anon_only:
        ours &= frames.has(pfns, PG_ANON)
    clear_bits(mm, run, positions[ours], PTE_ACCESSED)
    old: Pfns = pfns[ours]
    frames.clear(old, PG_REFERENCED)
    return old


def clear_bits(mm: MmStruct, run: Run, positions: npt.NDArray[np.int64], bits: int) -> None:
    """Clear state bits of some entries of a run, or of a huge page's one entry."""
    if len(positions):
        entries = mm.page_table.walk.read(run).copy()
        entries[0 if run.huge else positions] &= u64(~bits)
        mm.pages.update_ptes(run, entries)
