"""Rules of newer kernels for huge pages, which replace kerneld's own while the referee runs (`known`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PTE_SOFT_DIRTY, PTE_SPECIAL, make_pte, present_mask, pte_pfn, pte_present
from kerneld.mm.fault import cow, thp
from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE, ZERO_PFN, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from kerneld.mm.space import split_folio
from kerneld.mm.space.anon_page import anon_flags, prepare_anon_vma
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.pagewalk import Leaf, Words
from kerneld.mm.space.rmap import AnonVma
from kerneld.mm.space.rmap_walk import rmap_walk
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_tree import VmaTree
from kerneld.mm.vm_flags import VM_LOCKED
from kerneld.referee.later_mm_ids import maybe_mapped_shared
from shared.uapi.page import PAGE_SHIFT, Pfn, Vaddr

_split_folio_v6_8 = split_folio.split_folio
_estimated_sharers_v6_8 = split_folio.estimated_sharers
_do_huge_pmd_wp_page_v6_8 = thp.do_huge_pmd_wp_page
_wp_can_reuse_anon_v6_8 = cow.wp_can_reuse_anon


def split_folio_to_zero_pages(frames: Frames, pfn: Pfn) -> None:
    """Free the pages that hold only zeros. Their entries then map the shared zero page, except in locked memory.

    Source: Linux v6.12 mm/migrate.c:try_to_map_unused_to_zeropage(). mm/rmap.c:try_to_migrate_one() notes the maximum
    of resident pages first, but not if an entry of 2 MiB is split.
    """
    pfns = frames.huge.pages_of(pfn & -HPAGE_PMD_NR)
    peaks = {mm: mm.rss.hiwater for mm, vaddr in _users(frames, pfns) if mm.page_table.find_huge_pmd(vaddr) is not None}
    _split_folio_v6_8(frames, pfn)
    unused = pfns[~frames.ram.frames_np[pfns].any(axis=1)]
    frames.get_pages(unused)
    for mapped in rmap_walk(frames, unused):
        if mapped.vma.vm_flags & VM_LOCKED:
            continue
        mapped.mm.pages.unmap_frames(mapped.ptes, mapped.vaddrs, np.zeros(len(mapped.ptes), dtype=np.uint64))
        entry = make_pte(ZERO_PFN, vma_page_prot(mapped.vma) | PTE_SPECIAL)
        for pte, vaddr in zip(mapped.ptes.tolist(), mapped.vaddrs.tolist(), strict=True):
            mapped.mm.pages.set_zero_pte(pte, vaddr, entry)
    frames.put_pages(unused)
    for mm, peak in peaks.items():
        mm.rss.hiwater = peak


def split_folio_to_soft_dirty_zero_pages(frames: Frames, pfn: Pfn) -> None:
    """The entries of the zero page are as soft-dirty as those were that they replace.

    Source: Linux v6.18 mm/migrate.c:try_to_map_unused_to_zeropage().
    """
    soft_dirty = _where(frames, pfn, PTE_SOFT_DIRTY)
    split_folio_to_zero_pages(frames, pfn)
    for mm, pte, vaddr in still_present(frames, soft_dirty):
        entry = frames.ram.words[pte]
        if entry & PTE_SPECIAL:
            mm.pages.update_pte(pte, vaddr, entry | PTE_SOFT_DIRTY)


def keeps_soft_dirty(earlier: Callable[[Frames, Pfn], None]) -> Callable[[Frames, Pfn], None]:
    """A dirty entry that is made anew is soft-dirty only if it was.

    Source: Linux v6.12.117 mm/migrate.c:remove_migration_pte().
    """

    def split_folio(frames: Frames, pfn: Pfn) -> None:
        clean = _where(frames, pfn, 0)
        earlier(frames, pfn)
        for mm, pte, vaddr in still_present(frames, clean):
            mm.pages.update_pte(pte, vaddr, frames.ram.words[pte] & ~PTE_SOFT_DIRTY)

    return split_folio


def _where(frames: Frames, pfn: Pfn, soft_dirty: int) -> list[tuple[MmStruct, Vaddr]]:
    """Return where the entries of a huge page are that have this bit, PTE_SOFT_DIRTY or 0."""
    return [
        (mm, start + (at << PAGE_SHIFT))
        for mm, start, entries in where_mapped(frames, frames.huge.pages_of(pfn & -HPAGE_PMD_NR))
        for at in np.flatnonzero((entries & np.uint64(PTE_SOFT_DIRTY)) == np.uint64(soft_dirty)).tolist()
    ]


def still_present(frames: Frames, places: list[tuple[MmStruct, Vaddr]]) -> Iterator[tuple[MmStruct, int, Vaddr]]:
    """Yield the address space, the small entry and the address of each place where a page is present now."""
    for mm, vaddr in places:
        pte = mm.page_table.find_pte(vaddr)
        if pte is not None and pte_present(frames.ram.words[pte]):
            yield mm, pte, vaddr


def _users(frames: Frames, pfns: Pfns) -> Iterator[tuple[MmStruct, Vaddr]]:
    """Yield each mapping of frames of a huge page: the address space, and the address of its first page."""
    for mm, start, entries in where_mapped(frames, pfns):
        if np.isin(pte_pfn(entries[present_mask(entries)]).astype(np.int64), pfns).any():
            yield mm, start


def where_mapped(frames: Frames, pfns: Pfns) -> Iterator[tuple[MmStruct, Vaddr, Words]]:
    """Yield where frames of a huge page may be mapped: the address space, the first address, the entries from there."""
    first = int(pfns[0])
    owner = frames.find_mapping(first)
    assert isinstance(owner, AnonVma)
    index = frames.index_at[first] - first % HPAGE_PMD_NR
    for vma in owner.vmas:
        low, high = max(index, vma.pgoff), min(index + HPAGE_PMD_NR, vma.pgoff + vma.nr_pages)
        if vma.vm_mm is not None and low < high:
            start = vma.start + (low - vma.pgoff << PAGE_SHIFT)
            yield vma.vm_mm, start, vma.vm_mm.page_table.walk.entries(start, start + (high - low << PAGE_SHIFT))


def guessed_sharers(frames: Frames, pfn: Pfn) -> int:
    """A huge page with more mappings than pages is shared; of others the first page's mappings tell.

    Source: Linux v6.10 include/linux/mm.h:folio_likely_mapped_shared().
    """
    head = pfn & -HPAGE_PMD_NR
    entire = frames.huge.entire_mapcount[head]
    mappings = int(frames.mapcount[frames.huge.pages_of(head)].sum()) - entire * (HPAGE_PMD_NR - 1)
    if mappings <= 1:
        return 1
    if entire or mappings > HPAGE_PMD_NR:
        return 2
    return 2 if _estimated_sharers_v6_8(frames, pfn) > 1 else 1


def estimated_sharers(frames: Frames, pfn: Pfn) -> int:
    """Source: Linux v6.15 mm/madvise.c: folio_maybe_mapped_shared() in the place of the first page's map count."""
    return 2 if maybe_mapped_shared(frames, pfn) else 1


def advised_parts(mm: MmStruct, leaf: Leaf) -> Iterator[Leaf]:
    """Yield the parts of a leaf table that are advised. Pages of a huge page that others map are skipped.

    Source: Linux v6.12 mm/madvise.c:madvise_cold_or_pageout_pte_range(), madvise_free_pte_range().
    """
    frames = mm.frames
    at, last = 0, (leaf.end - leaf.start) >> PAGE_SHIFT
    begun = 0
    while at < last:
        count = _count_large(frames, mm.page_table.walk.read(leaf), at)
        if not count:
            at += 1
            continue
        pfn = pte_pfn(int(mm.page_table.walk.read(leaf)[at]))
        passed_over = count != HPAGE_PMD_NR and split_folio.estimated_sharers(frames, pfn) != 1
        if count != HPAGE_PMD_NR and not passed_over:
            split_folio.split_folio(frames, pfn)
            continue
        if count == HPAGE_PMD_NR and int(frames.mapcount[pfn : pfn + count].max()) != 1:
            passed_over = True
        if passed_over:
            if at > begun:
                yield _part(leaf, begun, at)
            begun = at + count
        at += count
    if last > begun:
        yield _part(leaf, begun, last)


def _part(leaf: Leaf, first: int, last: int) -> Leaf:
    start = leaf.start + (first << PAGE_SHIFT)
    return Leaf(start, leaf.start + (last << PAGE_SHIFT), leaf.low + first, leaf.low + last)


def _count_large(frames: Frames, entries: Words, at: int) -> int:
    """Return the number of entries from `at` on that map consecutive pages of one huge page; 0 if the first does not.

    Source: Linux v6.12 mm/internal.h:folio_pte_batch().
    """
    run = entries[at:]
    if not present_mask(run[:1])[0] or int(run[0]) & PTE_SPECIAL:
        return 0
    first = pte_pfn(int(run[0]))
    if not frames.flags_at[first] & PG_LARGE:
        return 0
    run = run[: HPAGE_PMD_NR - first % HPAGE_PMD_NR]
    same = present_mask(run) & (pte_pfn(run) == np.arange(first, first + len(run), dtype=np.uint64))
    return int(np.argmin(same)) if not same.all() else len(run)


def wp_can_reuse_anon(mm: MmStruct, vma: Vma, pfn: Pfn) -> bool:
    """Return whether a write may take a page of a huge page: no other address space maps a part of it, and this one
    maps more than that page.

    Source: Linux v6.15 mm/memory.c:__wp_can_reuse_large_anon_folio().
    """
    frames = mm.frames
    if _wp_can_reuse_anon_v6_8(mm, vma, pfn):
        return True
    if not frames.flags_at[pfn] & PG_LARGE:
        return False
    pfns = frames.huge.pages_of(pfn & -HPAGE_PMD_NR)
    if len(pfns) < 2 or maybe_mapped_shared(frames, pfn) or (frames.refcount[pfns] != frames.mapcount[pfns]).any():
        return False
    frames.flags_at[pfn] |= PG_ANON_EXCLUSIVE
    return True


def do_huge_pmd_wp_page(mm: MmStruct, vma: Vma, haddr: Vaddr, pmd: int) -> bool:
    """A write to the huge zero page gets a huge page. Source: Linux v6.13 mm/huge_memory.c:do_huge_zero_wp_pmd()."""
    if not mm.frames.ram.words[pmd] & PTE_SPECIAL:
        return _do_huge_pmd_wp_page_v6_8(mm, vma, haddr, pmd)
    huge = mm.frames.huge
    head = huge.alloc(anon_flags(vma))
    huge.set_anon(head, prepare_anon_vma(mm, vma), vma.page_index(haddr))
    mm.pages.set_huge_pmd(pmd, haddr, make_pte(head, thp.huge_page_prot(vma)), head)
    return True


def may_collapse(_mm: MmStruct, _haddr: Vaddr) -> bool:
    """Source: Linux v6.18 mm/khugepaged.c:hpage_collapse_scan_pmd(), without SCAN_PAGE_RO."""
    return True


def stays_locked(_vmas: VmaTree, _haddr: Vaddr) -> bool:
    """The small entries of a split entry lock the huge page again.

    Source: Linux v6.18 mm/rmap.c:folio_add_anon_rmap_ptes(): a huge page that is mapped completely is locked.
    """
    return False


def nr_unlocks(_nr_pages: int) -> int:
    """Source: Linux v6.9 mm/memory.c:zap_present_folio_ptes(): folio_remove_rmap_ptes() of all at once."""
    return 1


def huge_exclusive(frames: Frames, pfns: Pfns) -> npt.NDArray[np.bool_]:
    """Source: Linux v6.11 fs/proc/task_mmu.c:pagemap_pmd_range(): each page by itself."""
    return np.asarray(frames.mapcount[pfns] == 1)


def words_of_tails(_frames: Frames, _pfns: Pfns, words: Words) -> Words:
    """Return the words in kpageflags of frames of huge pages that are not their first: with the huge page's state.

    kerneld keeps this state at each frame. Source: Linux v6.12 fs/proc/page.c:stable_page_flags().
    """
    return words
