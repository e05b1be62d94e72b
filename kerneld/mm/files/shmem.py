"""Brings pages of files in memory into the page cache: new pages, and pages that are in the swap file.

Answers to Linux v6.8 mm/shmem.c. Knows the page cache as an `AddressSpace`, which keeps the pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kerneld.errors import SysError
from kerneld.mm.frames.frames import PG_LRU, PG_SWAPBACKED, Frames
from kerneld.mm.frames.swap_state import delete_from_swap_cache, free_swap_and_cache, read_swap_cache
from shared.uapi.page import Pfn

if TYPE_CHECKING:
    from kerneld.mm.files.filemap import AddressSpace


def shmem_get_folio(frames: Frames, mapping: AddressSpace, index: int) -> Pfn:
    """Return a frame for a page of a file in memory: a new frame, or for a swapped-out page that of the swap cache.

    Raises SysError(ENOMEM), and SysError(EIO) if the swap file cannot be read.
    Source: Linux v6.8 mm/shmem.c:shmem_get_folio_gfp() and shmem_swapin_folio().
    """
    swap = frames.swap
    slot = mapping.swapped.get(index)
    if slot is None:
        if mapping.accounts_blocks:
            mapping.account(1)
        try:
            return frames.alloc_page(PG_SWAPBACKED | PG_LRU)
        except SysError:
            if mapping.accounts_blocks:
                mapping.account(-1)
            raise
    pfn = swap.cache_at[slot] or read_swap_cache(frames, slot)
    frames.get_page(pfn)
    del mapping.swapped[index]
    swap.swap_free(slot)
    delete_from_swap_cache(frames, pfn)
    mapping.set_dirty(index, pfn)
    return pfn


def shmem_swapin_range(frames: Frames, mapping: AddressSpace, first: int, last: int) -> None:
    """Read the swapped-out pages of [first, last) into the swap cache. They stay swapped out.

    Raises SysError(ENOMEM), SysError(EIO). Source: Linux v6.8 mm/madvise.c:shmem_swapin_range().
    """
    for index in mapping.swapped.between(first, last):
        if not frames.swap.cache_at[mapping.swapped[index]]:
            read_swap_cache(frames, mapping.swapped[index])


def shmem_writepage(frames: Frames, mapping: AddressSpace, index: int, slot: int) -> None:
    """Move a page of a file in memory, which nothing maps, to its slot of the swap file. The slot's count includes it.

    Source: Linux v6.8 mm/shmem.c:shmem_writepage().
    """
    mapping.swapped[index] = slot
    frames.put_page(mapping.pages.pop(index))
    frames.nr_shmem -= 1
    mapping.dirty.discard(index)


def shmem_free_swap(frames: Frames, mapping: AddressSpace, first: int, last: int) -> None:
    """Drop the pages of [first, last) that are in the swap file. Source: Linux v6.8 mm/shmem.c:shmem_free_swap()."""
    shmem_free_swapped(frames, mapping, list(mapping.swapped.between(first, last)))


def shmem_free_swapped(frames: Frames, mapping: AddressSpace, gone: list[int]) -> None:
    """Drop these pages, which are in the swap file."""
    free_swap_and_cache(frames, np.array([mapping.swapped.pop(index) for index in gone], dtype=np.int64))
    mapping.unsaved.difference_update(gone)
    if mapping.accounts_blocks:
        mapping.account(-len(gone))
