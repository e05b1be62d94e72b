"""vm.drop_caches: takes the clean pages that nothing maps out of the page cache.

Memory files stay as they are: their pages are dirty on Linux. Answers to Linux v6.8 fs/drop_caches.c.
"""

from __future__ import annotations

from collections.abc import Iterator

from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.files.index_ranges import MAX_INDEX
from kerneld.mm.frames.frames import PG_DIRTY, Frames


def drop_pagecache(frames: Frames) -> Iterator[None]:
    """Drop the pages of every file. Yields where other clients may be served.

    Source: Linux v6.8 mm/truncate.c:mapping_try_invalidate(), mapping_evict_folio().
    """
    for mapping in list(frames.mappings()):
        if isinstance(mapping, AddressSpace) and not mapping.is_shmem:
            for low, high in mapping.pages.spans(0, MAX_INDEX):
                mapping.drop_pages([index for index in mapping.pages.between(low, high) if _is_unused(mapping, index)])
                yield


def _is_unused(mapping: AddressSpace, index: int) -> bool:
    """Return whether the cache alone has a page, and the file has its contents."""
    frames, pfn = mapping.frames, mapping.pages[index]
    return frames.refcount_at[pfn] == 1 and not frames.flags_at[pfn] & PG_DIRTY
