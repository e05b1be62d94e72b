"""Removal of a file's pages while they are mapped: truncation and punched holes.

Answers to Linux v6.8 mm/truncate.c and mm/memory.c:unmap_mapping_range().
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator

from kerneld.errors import SysError
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.files.index_ranges import MAX_INDEX
from kerneld.mm.files.page_indexes import runs_of
from kerneld.mm.files.shmem import shmem_free_swap, shmem_free_swapped
from kerneld.mm.space.locked_pages import zap_vma_cached, zap_vma_range
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps, run_at_once
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.writeback import mkclean_in_pieces
from kerneld.mm.vm_flags import VM_SHARED
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Pfn, Vaddr

_UNMAPPED_AT_ONCE = 16 * PMD_SIZE
_DROPPED_AT_ONCE = 4096
_REMOVED_AT_ONCE = 512


def unmap_mapping_range(mapping: AddressSpace, first: int, last: int, *, even_cows: bool) -> None:
    """Clear every entry that maps a page of [first, last) of the file; with `even_cows` also the private copies.

    Source: Linux v6.8 mm/memory.c:unmap_mapping_pages().
    """
    for _ in unmap_mapping_in_pieces(mapping, first, last, even_cows=even_cows):
        pass


def unmap_mapping_in_pieces(
    mapping: AddressSpace, first: int, last: int, pace: Pace | None = None, *, even_cows: bool
) -> Iterator[None]:
    """Do the same as `unmap_mapping_range`, in pieces; yield between them, when VMAs may be removed and changed.

    An entry that a fault sets meanwhile stays.
    """
    pace = pace or Pace()
    for vmas in mapping.i_mmap.walk(first, last):
        for vma in vmas:
            mm, index = vma.vm_mm, first
            while mm is not None and vma in mapping.i_mmap:
                start = vma.start + (max(0, index - vma.pgoff) << PAGE_SHIFT)
                end = min(vma.end, vma.start + (max(0, last - vma.pgoff) << PAGE_SHIFT))
                if start >= end:
                    break
                stop = pace.far_stop(mm.page_table.walk, start, end, _UNMAPPED_AT_ONCE)
                _unmap(mm, vma, start, stop, even_cows=even_cows)
                index = vma.page_index(stop)
                if pace.is_over():
                    yield
                    pace.begin()
        if pace.is_over():
            yield
            pace.begin()


def _unmap(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, *, even_cows: bool) -> None:
    if not even_cows and not vma.vm_flags & VM_SHARED:
        zap_vma_cached(mm, vma, start, end)
        return
    zap_vma_range(mm, vma, start, end)


def drop_pages(mapping: AddressSpace, first: int, last: int) -> None:
    """Drop the cached pages of [first, last), which no entry maps any more, without writing them back."""
    for _ in _drop_in_pieces(mapping, first, last, Pace()):
        pass


def _drop_in_pieces(mapping: AddressSpace, first: int, last: int, pace: Pace) -> Iterator[None]:
    """Do the same as `drop_pages`, in pieces; yield between them, when other calls may drop pages too, but map none."""
    for cached, drop in ((mapping.pages, mapping.drop_pages), (mapping.shadows, mapping.forget_shadows)):
        indexes = cached.between(first, last)
        while together := list(itertools.islice(indexes, _DROPPED_AT_ONCE)):
            drop([index for index in together if index in cached])
            if pace.is_over():
                yield
                pace.begin()
    shmem_free_swap(mapping.frames, mapping, first, last)


def truncate_pagecache(mapping: AddressSpace, size: int) -> None:
    """Drop the pages beyond `size`, in bytes, of a file that has become shorter: an access there is SIGBUS now.

    Private copies are dropped too, except a copy of the file's last page; in the file's own last page, the bytes behind
    the end read as zeros. Source: Linux v6.8 mm/truncate.c:truncate_pagecache(), truncate_inode_partial_folio().
    """
    for _ in truncate_in_pieces(mapping, size):
        pass


def truncate_in_pieces(mapping: AddressSpace, size: int) -> Iterator[None]:
    """Do the same as `truncate_pagecache`, in pieces; yield between them, when other clients may be served.

    The caller ensures that meanwhile no page beyond is mapped, and that VMAs of the file are removed, but not changed.
    """
    first, tail = size + PAGE_SIZE - 1 >> PAGE_SHIFT, size % PAGE_SIZE
    pace = Pace()
    yield from unmap_mapping_in_pieces(mapping, first, MAX_INDEX, pace, even_cows=True)
    yield from _drop_in_pieces(mapping, first, MAX_INDEX, pace)
    mapping.host.truncate(first)
    if tail and (first - 1 in mapping.pages or first - 1 in mapping.swapped):
        yield from _zero_rest_of_page(mapping, first - 1, tail)


def _zero_rest_of_page(mapping: AddressSpace, index: int, tail: int) -> Iterator[None]:
    """Clear the bytes from `tail` on of the file's last page; the page of a file in memory becomes dirty.

    Yields as long as reclaim makes room for the page. If the page cannot be read from the swap file, the real file's
    page is used, which the host has truncated already.
    Source: Linux v6.8 mm/truncate.c:truncate_inode_partial_folio(), mm/shmem.c:shmem_undo_range().
    """
    pfn: Pfn | None = None
    while pfn is None:
        try:
            pfn = mapping.ensure_page(index)
        except SysError:
            if not mapping.frames.take_stall():
                shmem_free_swap(mapping.frames, mapping, index, index + 1)
                return
            yield
    mapping.zero_page_from(pfn, tail)
    if mapping.is_shmem:
        mapping.set_dirty(index, pfn)


def pagecache_isize_extended(mapping: AddressSpace, old_size: int, size: int, block_bytes: int = PAGE_SIZE) -> Steps:
    """Note that a file has become longer: the new part is a hole, which no fault has read yet.

    If the file has blocks smaller than a page, the page with the old end may need more of them: the next write to it
    faults. Sizes in bytes. Yields when other clients may be served.
    Source: Linux v6.8 mm/truncate.c:pagecache_isize_extended().
    """
    old_end = old_size + block_bytes - 1 & -block_bytes
    if old_end % PAGE_SIZE and size > old_end:
        yield from mkclean_in_pieces(mapping, old_end >> PAGE_SHIFT, Pace())
    _add_hole(mapping, old_size + PAGE_SIZE - 1 >> PAGE_SHIFT, size + PAGE_SIZE - 1 >> PAGE_SHIFT)


def _add_hole(mapping: AddressSpace, first: int, last: int) -> None:
    if mapping.is_shmem:
        # For a file in memory, the host is asked each time where its holes are.
        return
    mapping.host.add_hole(first, last)


def punch_hole(mapping: AddressSpace, first: int, last: int) -> None:
    """Do the same as `punch_hole_in_pieces`, at once."""
    run_at_once(punch_hole_in_pieces(mapping, first, last))


def punch_hole_in_pieces(mapping: AddressSpace, first: int, last: int) -> Steps:
    """Make the pages of [first, last) read as zeros, in the file and in every mapping of it (FALLOC_FL_PUNCH_HOLE).

    Private copies stay. Yields when other clients may be served, because Linux has released mmap_lock by then;
    some whole pages are removed by then, and others are not. Raises SysError with the errno of the file system if it
    cannot punch holes, before any page is removed. Source: Linux v6.8 mm/truncate.c:truncate_pagecache_range().
    """
    if mapping.backing is not None:
        try:
            mapping.backing.punch_hole(first << PAGE_SHIFT, (last - first) << PAGE_SHIFT)
        except OSError as error:
            raise SysError(error.errno or errno.EOPNOTSUPP) from None
        _add_hole(mapping, first, min(last, mapping.last_index()))
    # A page is cached or swapped out, and may change from one to the other meanwhile: it is removed from either.
    pace = Pace()
    for span in sorted({*mapping.swapped.spans(first, last), *mapping.pages.spans(first, last)}):
        indexes = sorted({*mapping.swapped.between(*span), *mapping.pages.between(*span)})
        for low, high in runs_of(indexes, _REMOVED_AT_ONCE):
            yield from unmap_mapping_in_pieces(mapping, low, high, pace, even_cows=False)
            yield from _drop_in_cache_or_swap(mapping, low, high, pace)
            if pace.is_over():
                yield
                pace.begin()
    mapping.forget_shadows(list(mapping.shadows.between(first, last)))


def _drop_in_cache_or_swap(mapping: AddressSpace, low: int, high: int, pace: Pace) -> Iterator[None]:
    """Drop the pages of [low, high), which have been unmapped; unmap those once more that a fault has mapped again.

    Yields when other clients may be served. Source: Linux v6.8 mm/truncate.c:truncate_cleanup_folio().
    """
    mapcount = mapping.frames.mapcount_at
    while again := [index for index in mapping.pages.between(low, high) if mapcount[mapping.pages[index]]]:
        yield from unmap_mapping_in_pieces(mapping, again[0], again[-1] + 1, pace, even_cows=False)
    cached = list(mapping.pages.between(low, high))
    if cached:
        mapping.drop_pages(cached)
    shmem_free_swapped(mapping.frames, mapping, [index for index in range(low, high) if index in mapping.swapped])
