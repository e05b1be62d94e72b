"""Reads pages of files into the page cache.

Knows the page cache as an `AddressSpace`, which keeps the pages, and the real file as its `Backing`. Answers to Linux
v6.8 mm/readahead.c (read_pages()) and mm/filemap.c (filemap_map_pages(), next_uptodate_folio()).
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from kerneld.errors import SysError
from kerneld.mm.files.page_indexes import runs_of
from kerneld.mm.files.shmem import shmem_get_folio
from kerneld.mm.frames.frames import PG_LRU, PG_SWAPBACKED
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pfn

if TYPE_CHECKING:
    from kerneld.mm.files.filemap import AddressSpace

_ZEROS = bytes(PAGE_SIZE)


def pages_around(mapping: AddressSpace, first: int, last: int) -> list[Pfn | None]:
    """Return the frame of each page of [first, last), inside the file, that may be mapped now; None for the others.

    Pages that the host has in memory are read in before. This is only an optimisation: it reads nothing if memory is
    short, nothing of shared anonymous memory (which has no real file), and no pages of a file in memory that are
    swapped out or in a hole.
    """
    host = mapping.host
    pfns = mapping.pages.run(first, last)
    if None in pfns:
        missing = host.present([i for i, pfn in enumerate(pfns, first) if pfn is None])
        if _read_around(mapping, missing):
            pfns = mapping.pages.run(first, last)
    if not host.are_uptodate(first, last):
        pfns = [pfn if host.is_uptodate(i) else None for i, pfn in enumerate(pfns, first)]
    return pfns


def _read_around(mapping: AddressSpace, missing: list[int]) -> bool:
    """Read pages in if that is cheap. Return whether it was tried."""
    frames = mapping.frames
    if mapping.backing is None:
        return False
    if missing and mapping.is_shmem:
        first = missing[0]
        there = mapping.backing.mincore(first, missing[-1] + 1 - first)
        missing = [i for i in missing if there[i - first] and i not in mapping.swapped]
    if not missing or frames.free_pages - len(missing) < frames.watermark_low:
        return False
    with contextlib.suppress(SysError):
        # The host shall not read what lies between, and is absent.
        runs = runs_of(missing, len(missing))
        is_whole = mapping.host.are_uptodate(missing[0], missing[-1] + 1)
        for run in [missing] if is_whole else [list(range(*run)) for run in runs]:
            read_in(mapping, run)
    return True


def read_in(mapping: AddressSpace, indexes: list[int]) -> None:
    """Read pages that are not cached; more than one only if memory suffices without reclaim.

    Raises SysError(ENOMEM) without a free frame, and SysError(EIO) if the file cannot be read.
    Source: Linux v6.8 mm/readahead.c:read_pages().
    """
    frames, first = mapping.frames, indexes[0]
    if mapping.backing is None or first in mapping.swapped:
        for index in indexes:
            mapping.add_page(index, shmem_get_folio(frames, mapping, index))
        return
    try:
        data = memoryview(mapping.backing.read_at(first << PAGE_SHIFT, (indexes[-1] + 1 - first) << PAGE_SHIFT))
    except OSError:
        raise SysError(errno.EIO) from None
    if len(indexes) > 1 and not mapping.is_shmem:
        pfns = frames.alloc_pages(len(indexes), PG_LRU, zero=False)
        frames.ram.fill_pages(pfns, data, [index - first for index in indexes])
        mapping.add_pages(indexes, pfns)
        return
    for index in indexes:
        pfn = frames.alloc_page(PG_LRU | PG_SWAPBACKED if mapping.is_shmem else PG_LRU)
        chunk = data[(index - first) << PAGE_SHIFT : (index + 1 - first) << PAGE_SHIFT]
        is_zero = _ZEROS.startswith(bytes(chunk))
        if not is_zero:
            frames.ram.write(pfn << PAGE_SHIFT, chunk)
        mapping.add_page(index, pfn)
        if mapping.is_shmem:
            mapping.account(1)
            # A page that is not in a hole was written by another program, and is dirty.
            if not is_zero or mapping.backing.mincore(index, 1)[0]:
                mapping.set_dirty(index, pfn)
