"""From frames to the entries that map them, many at a time.

The walk goes through anon_vmas and address_spaces to VMAs, and from there to page tables. It changes nothing except the
size of entries. Answers to Linux v6.8 mm/rmap.c:rmap_walk() and mm/page_vma_mapped.c.

A merged frame (KSM) has no anon_vma of its own: its stable node leads to the pages that it serves, each of which has
one. A merged frame that has lost its node, or a page that its node has lost, is not found, as in Linux.

Differs from Linux: the walk splits the entry of each huge page that it meets, so reclaim, its only caller, sees only
entries of 4 KiB.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.distinct import distinct
from kerneld.hw.paging import PTE_SPECIAL, counted_mask, pte_pfn, pte_present
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import PG_KSM, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.ksm_state import RmapItem, StableNode
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rmap import AnonVma
from kerneld.mm.space.vma import Vma
from shared.uapi.page import PAGE_SHIFT, PMD_SHIFT, PMD_SIZE, Pfn

Ints = npt.NDArray[np.int64]
_NEAR = 64
"""Pages of a mapping up to this distance are looked for together."""
_COST_OF_ENTRIES = 7
"""What a VMA with entries costs more than one without, of `Patience`."""


class Mapped(NamedTuple):
    """Entries of one leaf table and one VMA that map some of the frames asked for."""

    mm: MmStruct
    vma: Vma
    at: Ints
    """Which of the frames each entry maps."""
    vaddrs: Ints
    """The page of each entry, in rising order."""
    ptes: Ints
    """The word index of each entry in RAM."""


class Patience:
    """How much searches may cost, all together: a VMA that is looked at is 1, one with an entry 8."""

    __slots__ = ("left",)

    def __init__(self, left: int = 2048) -> None:
        """2,048 are some 20 ms."""
        self.left = left

    @property
    def is_over(self) -> bool:
        """Whether no more should be looked for."""
        return self.left <= 0


def rmap_walk(frames: Frames, pfns: Pfns, patience: Patience | None = None) -> list[Mapped]:
    """Return every entry that maps one of these frames; each frame is given once.

    The entries of one anonymous frame are in the order of Linux's walk. All entries are of 4 KiB afterwards. With
    `patience`, entries are missing if it is over, and none is looked for where a crowd of VMAs maps a file's page, or
    of a merged frame that costs more than is left.
    Source: Linux v6.8 mm/rmap.c:rmap_walk_anon(), mm/interval_tree.c.
    """
    mapped = np.flatnonzero(frames.mapcount[pfns] > 0)
    numbers = frames.mapping[pfns[mapped]]
    found: list[Mapped] = []
    for number in distinct(numbers).tolist():
        at = mapped[numbers == number]
        if frames.has_merged and frames.flags_at[pfns[at[0]]] & PG_KSM:
            for one in at.tolist():
                if _affords_merged(frames, number, int(pfns[one]), patience):
                    found += rmap_walk_ksm(frames, number, one, int(pfns[one]))
            continue
        index = frames.index[pfns[at]].astype(np.int64)
        order = np.argsort(index)
        at, index = at[order], index[order]
        indexes = index.tolist()
        left = int(frames.mapcount[pfns[at]].sum())
        here: list[Mapped] = []
        for vma in _vmas(frames, number, indexes, patience):
            low, high = bisect_left(indexes, vma.pgoff), bisect_left(indexes, vma.pgoff + vma.nr_pages)
            if low < high:
                for mapped_here in _walk_vma(frames, pfns, vma, at[low:high], index[low:high]):
                    here.append(mapped_here)
                    left -= len(mapped_here.at)
                    if patience is not None:
                        patience.left -= _COST_OF_ENTRIES
            # All entries are found: the other VMAs need no look (Linux: rmap_walk_control.done).
            if not left or (patience is not None and patience.is_over):
                break
        here.sort(key=lambda each: (each.vma.pgoff, each.vma.link_order))
        found += here
    return found


def entries_in(frames: Frames, pfns: Pfns, vma: Vma) -> Iterator[Mapped]:
    """Yield the entries of one VMA that map some of these frames of one mapping, in the order of their indexes."""
    index = frames.index[pfns].astype(np.int64)
    low, high = np.searchsorted(index, (vma.pgoff, vma.pgoff + vma.nr_pages)).tolist()
    if low < high:
        yield from _walk_vma(frames, pfns, vma, np.arange(low, high), index[low:high])


def split_huge_pmds_of(frames: Frames, pfns: Pfns, wants: Callable[[Vma], bool]) -> Iterator[Mapped]:
    """Split every entry of 2 MiB that maps the huge page of these 512 frames. Yield what small entries map of it then.

    Of a VMA with small entries already, they are only looked for if it is one that the caller `wants`: a family may
    have thousands. Source: Linux v6.8 mm/huge_memory.c:unmap_folio().
    """
    mapped = np.flatnonzero(frames.mapcount[pfns] > 0)
    numbers = frames.mapping[pfns[mapped]]
    for number in distinct(numbers).tolist():
        at = mapped[numbers == number]
        index = frames.index[pfns[at]].astype(np.int64)
        indexes, head = index.tolist(), int(index[0] - at[0])
        for vma in _vmas(frames, number, indexes, None):
            if wants(vma) or _may_be_huge(vma, head):
                low, high = bisect_left(indexes, vma.pgoff), bisect_left(indexes, vma.pgoff + vma.nr_pages)
                if low < high:
                    yield from _walk_vma(frames, pfns, vma, at[low:high], index[low:high])


def split_some_huge_pmds(frames: Frames, head: Pfn, most: int) -> bool:
    """Split up to `most` entries of 2 MiB that map a huge page, of which `head` is the first frame.

    The page stays one page. Return whether entries may be left.
    """
    pfns = frames.huge.pages_of(head)
    mapped = np.flatnonzero(frames.mapcount[pfns] > 0)
    if not len(mapped):
        return False
    at = int(mapped[0])
    number, index = int(frames.mapping[pfns[at]]), int(frames.index[pfns[at]])
    for vma in _vmas(frames, number, [index], None):
        mm, haddr = vma.vm_mm, vma.start + (index - at - vma.pgoff << PAGE_SHIFT) & -PMD_SIZE
        pmd = mm.page_table.find_huge_pmd(haddr) if mm is not None and _may_be_huge(vma, index - at) else None
        if mm is not None and pmd is not None and pte_pfn(frames.ram.words[pmd]) == head:
            if not most:
                return True
            mm.pages.split_huge_pmd(pmd, haddr)
            most -= 1
    return False


def _may_be_huge(vma: Vma, head: int) -> bool:
    """Return whether an entry of 2 MiB lies where a VMA has the page `head` of its mapping."""
    mm, haddr = vma.vm_mm, vma.start + (head - vma.pgoff << PAGE_SHIFT) & -PMD_SIZE
    return mm is not None and bool(mm.page_table.deposited) and mm.page_table.find_huge_pmd(haddr) is not None


def rmap_walk_ksm(frames: Frames, number: int, at: int, pfn: Pfn) -> Iterator[Mapped]:
    """Yield the entries that map a merged frame: first those of the address spaces that were scanned, then of children.

    `number` is that of its stable node, `at` the place of the frame among those asked for.
    Source: Linux v6.8 mm/ksm.c:rmap_walk_ksm().
    """
    node = frames.find_mapping_number(number)
    items = list(reversed(node.items)) if isinstance(node, StableNode) else []
    found: set[int] = set()
    for in_children in (False, True):
        for item in items:
            for mapped in entries_of_item(frames, item, at, pfn):
                pte = int(mapped.ptes[0])
                if (mapped.mm is item.mm) != in_children and pte not in found:
                    found.add(pte)
                    yield mapped


def _affords_merged(frames: Frames, number: int, pfn: Pfn, patience: Patience | None) -> bool:
    """Return whether the entries of a merged frame may be looked for, and count what that costs."""
    if patience is None:
        return True
    node = frames.find_mapping_number(number)
    nr_items = len(node.items) if isinstance(node, StableNode) else 0
    cost = int(frames.mapcount[pfn]) * _COST_OF_ENTRIES + nr_items
    affords = cost <= patience.left
    patience.left -= cost if affords else 1
    return affords


def entries_of_item(frames: Frames, item: RmapItem, at: int, pfn: Pfn) -> Iterator[Mapped]:
    """Yield the entries that map a merged frame for one of its pages: those of its address space, and of children.

    The caller may remove each. Source: Linux v6.8 mm/ksm.c:rmap_walk_ksm().
    """
    assert item.anon_vma is not None
    for vma in item.anon_vma.overlapping(item.index, item.index + 1):
        mm = vma.vm_mm
        if mm is None or not vma.start <= item.address < vma.end:
            continue
        pte = mm.page_table.find_pte(item.address)
        entry = 0 if pte is None else frames.ram.words[pte]
        if pte is not None and _is_counted(entry) and pte_pfn(entry) == pfn:
            yield Mapped(mm, vma, np.array([at]), np.array([item.address]), np.array([pte]))


def _vmas(frames: Frames, number: int, indexes: list[int], patience: Patience | None) -> Iterator[Vma]:
    """Yield the VMAs that may map one of these pages of a mapping, each once."""
    owner = frames.find_mapping_number(number)
    seen: set[Vma] = set()
    for first, last in _spans(indexes):
        if isinstance(owner, AnonVma):
            found = owner.overlapping(first, last)
        elif isinstance(owner, AddressSpace):
            if patience is not None and owner.i_mmap.is_crowded(first, last):
                continue
            found = owner.i_mmap.overlapping(first, last)
        else:
            raise KernelBug(f"mapping {number} of a mapped frame has gone")
        for vma in found:
            if vma not in seen:
                seen.add(vma)
                if patience is not None:
                    patience.left -= 1
                yield vma


def _spans(indexes: list[int]) -> Iterator[tuple[int, int]]:
    """Yield ranges that together contain the sorted indexes; between two lie so many others that they are not asked."""
    first = last = indexes[0]
    for index in indexes:
        if index - last > _NEAR:
            yield first, last + 1
            first = index
        last = index
    yield first, last + 1


def _is_counted(entry: int) -> bool:
    """Return `counted_mask` of one entry."""
    return pte_present(entry) and not entry & PTE_SPECIAL


def _walk_vma(frames: Frames, pfns: Pfns, vma: Vma, at: Ints, index: Ints) -> Iterator[Mapped]:
    mm = vma.vm_mm
    if mm is None:
        return
    if len(index) == 1 and not mm.page_table.deposited:
        # As a rule a search for few pages finds nothing in a VMA, or one page in each of many: neither may take long.
        vaddr = vma.start + ((int(index[0]) - vma.pgoff) << PAGE_SHIFT)
        pte = mm.page_table.find_pte(vaddr)
        entry = 0 if pte is None else frames.ram.words[pte]
        if pte is not None and _is_counted(entry) and pte_pfn(entry) == int(pfns[at[0]]):
            yield Mapped(mm, vma, at, np.array([vaddr]), np.array([pte]))
        return
    vaddrs = vma.start + ((index - vma.pgoff) << PAGE_SHIFT)
    tables = vaddrs >> PMD_SHIFT
    breaks = np.flatnonzero(np.diff(tables)) + 1
    for low, high in zip([0, *breaks.tolist()], [*breaks.tolist(), len(at)], strict=True):
        haddr = int(vaddrs[low]) & -PMD_SIZE
        pmd = mm.page_table.find_huge_pmd(haddr)
        if pmd is not None:
            # Another huge page, or the huge zero page, may be mapped there by now (Linux: check_pmd()).
            if not np.isin(pte_pfn(frames.ram.words[pmd]), pfns[at[low:high]] & -HPAGE_PMD_NR):
                continue
            mm.pages.split_huge_pmd(pmd, haddr)
        first = mm.page_table.find_pte(haddr)
        if first is None:
            continue
        ptes = first + (vaddrs[low:high] >> PAGE_SHIFT & 511)
        entries = frames.ram.words_np[ptes]
        hit = counted_mask(entries)
        hit &= pte_pfn(entries).astype(np.int64) == pfns[at[low:high]]
        if hit.any():
            yield Mapped(mm, vma, at[low:high][hit], vaddrs[low:high][hit], ptes[hit])
