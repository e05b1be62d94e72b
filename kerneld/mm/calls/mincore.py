"""mincore: which pages of a range are in memory.

Answers to Linux v6.8 mm/mincore.c.
"""

from __future__ import annotations

import errno
from collections.abc import Generator

import numpy as np

from kerneld.errors import SysError
from kerneld.hw.paging import present_mask, swap_mask, swp_offset
from kerneld.mm.calls.madvise_pages import MayWrite
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, drain
from kerneld.mm.space.vma import Vma
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PMD_SIZE, TASK_SIZE, Vaddr, page_align

_AT_ONCE = 16 * PMD_SIZE


def do_mincore(
    mm: MmStruct, start: Vaddr, length: int, max_pages: int, may_write: MayWrite = lambda _file: True
) -> bytes:
    """Do the same as `mincore_in_pieces`, at once."""
    return drain(mincore_in_pieces(mm, start, length, max_pages, may_write))


def mincore_in_pieces(
    mm: MmStruct, start: Vaddr, length: int, max_pages: int, may_write: MayWrite
) -> Generator[None, None, bytes]:
    """Return one byte for each page of [start, start + length): 1 if the page is in memory.

    Yields when other clients may be served: Linux releases mmap_lock after each 4,096 pages.

    For a file that the caller may not write to, all pages are reported as in memory: the caller must not learn which
    pages other users have read (Linux v6.8 mm/mincore.c:can_do_mincore()).

    Raises SysError(EINVAL) for an unaligned start, SysError(ENOMEM) outside user space or at a hole,
    SysError(EMSGSIZE) for more pages than an answer carries (`max_pages`).

    Differs from Linux: there is no EMSGSIZE.
    """
    if start & ~PAGE_MASK:
        raise SysError(errno.EINVAL)
    if start + length > TASK_SIZE:
        raise SysError(errno.ENOMEM)
    if page_align(length) >> PAGE_SHIFT > max_pages:
        raise SysError(errno.EMSGSIZE)
    end = start + page_align(length)
    parts = []
    pace = Pace()
    while start < end:
        vma = mm.vmas.lookup(start)
        if vma is None:
            raise SysError(errno.ENOMEM)
        stop = min(end, vma.end, start + _AT_ONCE)
        may_know = vma.file is None or may_write(vma.file)
        parts.append(_in_memory(mm, vma, start, stop) if may_know else b"\1" * ((stop - start) >> PAGE_SHIFT))
        start = stop
        if start < end and pace.is_over():
            yield
            pace.begin()
    return b"".join(parts)


def _in_memory(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> bytes:
    """Return one byte for each page of a part of a VMA: 1 if the page is in memory.

    A page without an entry is in memory if the page cache has it; the host's page cache has every page of a real file
    that reclaim has not dropped. A page in the swap file is in memory if the swap cache has it.
    """
    entries = mm.page_table.walk.entries(start, end)
    here = present_mask(entries)
    swapped = swap_mask(entries)
    if swapped.any():
        here[swapped] = mm.frames.swap.cache[swp_offset(entries[swapped]).astype(np.int64)] != 0
    if vma.file is not None:
        mapping = vma.file.mapping
        first = vma.page_index(start)
        last = first + len(here)
        indexes = np.arange(first, last)
        if mapping.is_shmem:
            cached = np.isin(indexes, list(mapping.pages.between(first, last)))
            cache = mm.frames.swap.cache_at
            swapped_out = {index: cache[mapping.swapped[index]] for index in mapping.swapped.between(first, last)}
            if mapping.backing is not None:
                cached |= np.frombuffer(mapping.backing.mincore(first, len(here)), dtype=np.uint8) != 0
                cached &= indexes < mapping.last_index()
                cached &= ~np.isin(indexes, [index for index, pfn in swapped_out.items() if not pfn])
            cached |= np.isin(indexes, [index for index, pfn in swapped_out.items() if pfn])
        else:
            cached = indexes < mapping.last_index()
            cached &= ~mapping.host.absent(first, len(here))
            cached &= ~np.isin(indexes, list(mapping.shadows.between(first, last)))
        here |= cached & (entries == 0)
    return here.astype(np.uint8).tobytes()
