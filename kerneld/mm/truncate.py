"""Pages of a file that go while they are mapped: truncation and punched holes.

Answers to Linux v6.8 mm/truncate.c and mm/memory.c:unmap_mapping_range().
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.filemap import AddressSpace
from kerneld.mm.locked_pages import munlock_cached_range, munlock_range
from kerneld.mm.shmem import shmem_free_swap
from kerneld.mm.vm_flags import VM_LOCKED, VM_SHARED
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

MAX_INDEX = 1 << 52
"""No page of a file lies beyond."""


def unmap_mapping_range(mapping: AddressSpace, first: int, last: int, *, even_cows: bool) -> None:
    """Clear every entry that maps a page of [first, last) of the file; with `even_cows` also a process's own copies.

    Source: Linux v6.8 mm/memory.c:unmap_mapping_pages().
    """
    for vma, mm in list(mapping.i_mmap.items()):
        low, high = max(first, vma.pgoff), min(last, vma.pgoff + vma.nr_pages)
        if low < high:
            start = vma.start + ((low - vma.pgoff) << PAGE_SHIFT)
            end = start + ((high - low) << PAGE_SHIFT)
            if even_cows or vma.vm_flags & VM_SHARED:
                if vma.vm_flags & VM_LOCKED:
                    munlock_range(mm, start, end)
                mm.zap_range(start, end)
            else:
                if vma.vm_flags & VM_LOCKED:
                    munlock_cached_range(mm, start, end)
                mm.zap_cached(start, end)


def drop_pages(mapping: AddressSpace, first: int, last: int) -> None:
    """Forget the cached pages of [first, last), which nothing maps any more, without writing them back."""
    mapping.drop_pages([i for i in mapping.pages if first <= i < last])
    shmem_free_swap(mapping.frames, mapping, first, last)
    for index in [i for i in mapping.shadows if first <= i < last]:
        del mapping.shadows[index]


def truncate_pagecache(mapping: AddressSpace, size: int) -> None:
    """Let go of what lies beyond `size`, in bytes, of a file that has become shorter: an access there is SIGBUS now.

    A process's own copies go too, but for the one of the page that the file's end lies in; of the file's page itself
    the rest reads as zeros. Source: Linux v6.8 mm/truncate.c:truncate_pagecache(), truncate_inode_partial_folio().
    """
    first, tail = size + PAGE_SIZE - 1 >> PAGE_SHIFT, size % PAGE_SIZE
    # A VMA may lie beyond any index that the file has had.
    last = max((vma.pgoff + vma.nr_pages for vma in mapping.i_mmap), default=first)
    unmap_mapping_range(mapping, first, last, even_cows=True)
    drop_pages(mapping, first, max([*mapping.pages, *mapping.shadows, *mapping.swapped], default=0) + 1)
    mapping.uncached.remove(first, MAX_INDEX)
    mapping.holes.remove(first, MAX_INDEX)
    mapping.unread = {index for index in mapping.unread if index < first}
    if tail and (first - 1 in mapping.pages or first - 1 in mapping.swapped):
        _zero_rest_of_page(mapping, first - 1, tail)


def _zero_rest_of_page(mapping: AddressSpace, index: int, tail: int) -> None:
    """Clear the bytes from `tail` on of the page that the file ends in; of a file in memory it is dirty then.

    Where the page cannot be had from the swap file it is the real file's again, which the host has cut already.
    Source: Linux v6.8 mm/truncate.c:truncate_inode_partial_folio(), mm/shmem.c:shmem_undo_range().
    """
    try:
        pfn = mapping.ensure_page(index)
    except SysError:
        shmem_free_swap(mapping.frames, mapping, index, index + 1)
        return
    mapping.zero_page_from(pfn, tail)
    if mapping.is_shmem:
        mapping.set_dirty(index, pfn)


def pagecache_isize_extended(mapping: AddressSpace, old_size: int, size: int) -> None:
    """A file has become longer: what it has now and had not before is a hole, which nobody has read yet.

    Sizes in bytes. Source: Linux v6.8 mm/truncate.c:pagecache_isize_extended().
    """
    _add_hole(mapping, old_size + PAGE_SIZE - 1 >> PAGE_SHIFT, size + PAGE_SIZE - 1 >> PAGE_SHIFT)


def _add_hole(mapping: AddressSpace, first: int, last: int) -> None:
    if mapping.is_shmem:
        # Of a file in memory the host says each time what is a hole.
        return
    mapping.uncached.add(first, last)
    mapping.holes.add(first, last)


def punch_hole(mapping: AddressSpace, first: int, last: int) -> None:
    """Make the pages of [first, last) read as zeros, in the file and in every mapping of it (FALLOC_FL_PUNCH_HOLE).

    Copies that belong to a process stay. Raises SysError with the errno of the file system where it cannot.
    """
    if mapping.backing is not None:
        try:
            mapping.backing.punch_hole(first << PAGE_SHIFT, (last - first) << PAGE_SHIFT)
        except OSError as error:
            raise SysError(error.errno or errno.EOPNOTSUPP) from None
        _add_hole(mapping, first, min(last, mapping.last_index()))
        mapping.unread = {index for index in mapping.unread if not first <= index < last}
    unmap_mapping_range(mapping, first, last, even_cows=False)
    drop_pages(mapping, first, last)
