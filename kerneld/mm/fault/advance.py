"""Pages that a native program may take without asking: which they are, and the faults of those that it has taken.

The processor of a native program is a real one, so the program itself can map a page at its first write, if kerneld has
given it a frame. The fault is then booked later, but before anything looks at it. What is booked is what the fault
would have done: the ends of `do_anonymous_page`, `wp_page_copy` and `do_fault`. Linux has nothing equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PTE_MKDIRTY, PTE_PRESENT, PTE_RW, PTE_SPECIAL, make_pte, pte_pfn
from kerneld.hw.scalars import u64
from kerneld.mm.fault.cow import copy_prot
from kerneld.mm.frames.frames import PG_ANON
from kerneld.mm.space.anon_page import use_given_pages
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.pagewalk import Leaf
from kerneld.mm.space.rss import Rss
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import (
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_PKEY_MASK,
    VM_SHARED,
    VM_UFFD_FLAGS,
    VM_WRITE,
)
from shared.uapi.native import ADVANCE_PAGES_MOST, ROW_PAGES, WINDOW_PAGES
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, Pfn, Vaddr

_NEVER = VM_SHARED | VM_MAYSHARE | VM_LOCKED_MASK | VM_UFFD_FLAGS | VM_MERGEABLE | VM_PKEY_MASK
"""Memory whose faults do more, or that others change too."""
_MANY = 8
"""From this number of pages on numpy is quicker than a loop."""
_BITS, _READ_ONLY, _NOTHING = u64(PTE_PRESENT | PTE_RW | PTE_SPECIAL), u64(PTE_PRESENT), u64(0)


class Windows(NamedTuple):
    """The windows of a VMA in a leaf table whose pages are all in the page cache."""

    start: Vaddr
    """Where the first window begins; the VMA may begin later."""
    first: Vaddr
    end: Vaddr
    """The pages of the VMA in these windows."""
    given: int
    """A bit for each such window, from `start` on."""
    pfns: npt.NDArray[np.int64]
    """The frame of each page from `start` on that its window maps; -1: it maps none there."""
    version: int
    """The version of the page cache, in which all these frames are."""


def bits_of(mask: npt.NDArray[np.bool_]) -> int:
    """Return a number with a bit for each that is set in a mask."""
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")


def may_be_given(vma: Vma) -> bool:
    """Return whether the first writes to a VMA's pages do nothing but bring them, and nobody else changes the pages."""
    return not vma.vm_flags & _NEVER and vma.vm_flags & VM_WRITE != 0


def may_have_windows(vma: Vma) -> bool:
    """Return whether a read fault at a VMA's page may map pages around it that the program can only read."""
    return vma.file is not None and not vma.vm_flags & (_NEVER | VM_WRITE)


def room_of(vma: Vma, vaddr: Vaddr, *, is_present: bool) -> tuple[Vaddr, Vaddr]:
    """Return the bounds of the pages around `vaddr` that are looked at together: in one leaf table and in the VMA.

    `is_present`: the page was a file's. Then it is a block of 64 pages by address; else most of them lie behind.
    """
    size, step = ADVANCE_PAGES_MOST << PAGE_SHIFT, ADVANCE_PAGES_MOST // 4 << PAGE_SHIFT
    first = vaddr & -size if is_present else (vaddr & -step) - step
    first = max(first, vma.start, vaddr & -PMD_SIZE)
    return first, min(first + size, vma.end, (vaddr | PMD_SIZE - 1) + 1)


def find_empty(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> npt.NDArray[np.bool_]:
    """Return which pages of [start, end), in private memory, are empty; nothing at all without a leaf table.

    A fault has filled a page of their leaf table: so none of them can become a huge page.
    """
    pte = mm.page_table.find_pte(start)
    if pte is None:
        return np.zeros(0, dtype=np.bool_)
    is_empty: npt.NDArray[np.bool_] = mm.frames.ram.words_np[pte : pte + (end - start >> PAGE_SHIFT)] == _NOTHING
    return is_empty


def find_cached(
    mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return which pages of [start, end), in a private file mapping, are empty and in the page cache, and their frames.

    A write fault there copies the frame, and asks nobody for the page. Nothing at all if there is no such page.
    """
    is_empty, nothing = find_empty(mm, vma, start, end), np.zeros(0, dtype=np.int64)
    assert vma.file is not None
    mapping, index = vma.file.mapping, vma.page_index(start)
    count = min(len(is_empty), mapping.last_index() - index)
    if count <= 0 or mapping.is_shmem or mapping.host.is_reading:
        return is_empty[:0], nothing
    pfns = mapping.pages.numbers(index, index + count)
    return is_empty[:count] & (pfns >= 0) & mapping.host.uptodate_mask(index, index + count), pfns


def find_shared(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> npt.NDArray[np.bool_]:
    """Return which pages of [start, end), in a private file mapping, are read-only because they are the file's.

    That is for each page; nothing at all if there is none.
    """
    pte = mm.page_table.find_pte(start)
    if pte is None or vma.file is None:
        return np.zeros(0, dtype=np.bool_)
    entries = mm.frames.ram.words_np[pte : pte + (end - start >> PAGE_SHIFT)]
    is_shared: npt.NDArray[np.bool_] = (entries & _BITS) == _READ_ONLY
    is_shared &= ~mm.frames.has(pte_pfn(np.where(is_shared, entries, _NOTHING)).astype(np.int64), PG_ANON)
    return is_shared


def find_windows(mm: MmStruct, vma: Vma, vaddr: Vaddr) -> Windows | None:
    """Return the windows around a page that a read fault of a private file mapping has mapped; None: there are none.

    Each is what `map_pages_around` would map, and it would read nothing in. Nobody changes such pages without a recall.
    """
    base, file = vaddr & -PMD_SIZE, vma.file
    first, end = max(vma.start, base), min(vma.end, base + PMD_SIZE)
    start = first & -(WINDOW_PAGES << PAGE_SHIFT)
    if end - start <= WINDOW_PAGES << PAGE_SHIFT or file is None or file.mapping.is_shmem:
        return None
    pte = mm.page_table.find_pte(first)
    index = vma.page_index(first)
    count = min(end - first >> PAGE_SHIFT, file.mapping.last_index() - index)
    if pte is None or count <= 0:
        return None
    low = first - start >> PAGE_SHIFT
    pfns, is_lacking = np.full(ROW_PAGES, -1, dtype=np.int64), np.zeros(ROW_PAGES, dtype=np.bool_)
    pfns[low : low + count] = file.mapping.pages.numbers(index, index + count)
    is_lacking[low : low + count] = pfns[low : low + count] < 0
    is_lacking[low : low + count] |= ~file.mapping.host.uptodate_mask(index, index + count)
    pfns[low : low + count][mm.frames.ram.words_np[pte : pte + count] != _NOTHING] = -1
    is_given: npt.NDArray[np.bool_] = np.logical_or.reduce((pfns >= 0).reshape(-1, WINDOW_PAGES), axis=1)
    is_given &= ~np.logical_or.reduce(is_lacking.reshape(-1, WINDOW_PAGES), axis=1)
    # A fault before the first multiple of sixteen pages in the VMA maps sixteen pages from its start on.
    is_given[0] &= first == start
    return Windows(start, first, end, bits_of(is_given), pfns, file.mapping.pages.version)


def book_windows(mm: MmStruct, vma: Vma, windows: Windows, numbers: npt.NDArray[np.int64]) -> bool:
    """Do what the read faults in some windows do: the pages with these numbers are in them, and have frames.

    Return whether all have been mapped: one that is not in the page cache, or is mapped by now, is left out.
    Source: Linux v6.8 mm/memory.c:do_fault_around().
    """
    assert vma.file is not None
    frames, pages, start, pfns = mm.frames, vma.file.mapping.pages, windows.start, windows.pfns[numbers]
    pte = mm.page_table.ensure_pte(start)
    is_free = frames.ram.words_np[pte + numbers] == _NOTHING
    if pages.version != windows.version:
        first = vma.page_index(start) + int(numbers[0])
        is_free &= pages.numbers(first, first + int(numbers[-1] - numbers[0]) + 1)[numbers - numbers[0]] == pfns
    is_all = bool(is_free.all())
    if not is_all:
        pfns, numbers = pfns[is_free], numbers[is_free]
    if len(pfns):
        count = int(numbers[-1]) + 1
        entries = np.zeros(count, dtype=np.uint64)
        entries[numbers] = (pfns << PAGE_SHIFT).astype(np.uint64) | np.uint64(vma_page_prot(vma))
        frames.get_pages(pfns)
        mm.pages.set_ptes(Leaf(start, start + (count << PAGE_SHIFT), pte, pte + count), entries, pfns, Rss.FILE)
    return is_all


def book_empty(mm: MmStruct, vma: Vma, start: Vaddr, numbers: list[int], pfns: list[Pfn]) -> None:
    """Do what the first writes to empty pages do, with the frames that were given for them.

    The pages have these numbers from `start` on, in one leaf table. Source: Linux v6.8
    mm/memory.c:do_anonymous_page().
    """
    use_given_pages(mm, vma, start, numbers, pfns)
    pte, prot = mm.page_table.ensure_pte(start), vma_page_prot(vma) | PTE_RW | PTE_MKDIRTY
    if len(numbers) < _MANY:
        for number, pfn in zip(numbers, pfns, strict=True):
            mm.pages.set_pte(pte + number, start + (number << PAGE_SHIFT), make_pte(pfn, prot), pfn)
        return
    count = numbers[-1] + 1
    frames, entries = np.array(pfns), np.zeros(count, dtype=np.uint64)
    entries[numbers] = (frames << PAGE_SHIFT).astype(np.uint64) | np.uint64(prot)
    mm.pages.set_ptes(Leaf(start, start + (count << PAGE_SHIFT), pte, pte + count), entries, frames, Rss.ANON)


def book_copies(mm: MmStruct, vma: Vma, start: Vaddr, numbers: list[int], pfns: list[Pfn]) -> list[tuple[Pfn, Vaddr]]:
    """Do what the first writes to a file's pages do, with frames that have the copies.

    Return the frames and addresses of those beyond the end of a file that has been truncated meanwhile: the copy would
    be gone by now. A page that has been reclaimed meanwhile has no entry to replace.
    Source: Linux v6.8 mm/memory.c:wp_page_copy(), do_cow_fault().
    """
    assert vma.file is not None
    last = vma.file.mapping.last_index() - vma.page_index(start)
    gone = [(pfn, start + (number << PAGE_SHIFT)) for number, pfn in zip(numbers, pfns, strict=True) if number >= last]
    if gone:
        pfns = [pfn for number, pfn in zip(numbers, pfns, strict=True) if number < last]
        numbers = [number for number in numbers if number < last]
    use_given_pages(mm, vma, start, numbers, pfns)
    pte, prot, words = mm.page_table.ensure_pte(start), copy_prot(vma), mm.frames.ram.words
    for number, pfn in zip(numbers, pfns, strict=True):
        fill = mm.pages.replace_pte if words[pte + number] else mm.pages.set_pte
        fill(pte + number, start + (number << PAGE_SHIFT), make_pte(pfn, prot), pfn)
    return gone
