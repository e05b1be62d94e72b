"""A huge page becomes 512 single pages for good, whoever maps it.

That an entry of 2 MiB is cut up (`Pages.split_huge_pmd`) is another thing: the page is one page still then, which
small entries map. Answers to Linux v6.8 mm/huge_memory.c: split_huge_page_to_list(), __split_huge_page_tail(), and
include/linux/mm.h:folio_estimated_sharers().
"""

from __future__ import annotations

import numpy as np

from kerneld.hw.paging import PTE_DIRTY
from kerneld.mm.frames.frames import PG_DIRTY, Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from kerneld.mm.space.rmap_walk import rmap_walk
from shared.uapi.page import Pfn


def estimated_sharers(frames: Frames, pfn: Pfn) -> int:
    """Return how many map the first page of the huge page that a frame is of: so many are taken to map it.

    0 where nobody has the first page any more.
    """
    head = pfn & -HPAGE_PMD_NR
    return frames.mapcount_at[head] if frames.flags_at[head] & PG_LARGE else 0


def split_folio(frames: Frames, pfn: Pfn) -> None:
    """Make single pages of the huge page that a frame is of: dirty, all of them, where an entry says so of one.

    Every entry of 2 MiB that maps it is cut up. Source: Linux v6.8 mm/huge_memory.c:split_huge_page_to_list(),
    mm/rmap.c:try_to_migrate_one() (folio_mark_dirty()).
    """
    pfns = frames.huge.pages_of(pfn & -HPAGE_PMD_NR)
    words = frames.ram.words_np
    dirty = any((words[mapped.ptes] & np.uint64(PTE_DIRTY)).any() for mapped in rmap_walk(frames, pfns))
    frames.clear(pfns, PG_LARGE)
    if dirty:
        frames.set(pfns, PG_DIRTY)


def split_folios(frames: Frames, pfns: Pfns) -> None:
    """Make single pages of every huge page that one of these frames is of."""
    large = pfns[frames.has(pfns, PG_LARGE)]
    for head in np.unique(large & -HPAGE_PMD_NR).tolist():
        # The first page itself may have gone.
        split_folio(frames, head)
