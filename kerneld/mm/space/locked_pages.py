"""Pages of locked memory: kept out of reclaim as they come, given back when they are unlocked.

Knows which VMA is locked from its caller. Answers to Linux v6.8 mm/mlock.c:mlock_vma_pages_range().
"""

from __future__ import annotations

import numpy as np

from kerneld.mm.frames.frames import PG_ANON, Pfns
from kerneld.mm.frames.lru import mlock_folios, munlock_folios
from kerneld.mm.space.mm import MmStruct
from shared.uapi.page import Vaddr


def mlock_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Keep what is mapped in [start, end), page-aligned, out of reclaim."""
    mlock_folios(mm.frames, _mapped(mm, start, end))


def munlock_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Give what is mapped in [start, end), page-aligned, back to reclaim; called before entries go."""
    munlock_folios(mm.frames, _mapped(mm, start, end))


def munlock_cached_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Do as `munlock_range` does with pages of a file alone: private copies stay."""
    pfns = _mapped(mm, start, end)
    munlock_folios(mm.frames, pfns[~mm.frames.has(pfns, PG_ANON)])


def _mapped(mm: MmStruct, start: Vaddr, end: Vaddr) -> Pfns:
    walk = mm.page_table.walk
    return np.concatenate([np.zeros(0, dtype=np.int64), *(walk.mapped(run)[1] for run in walk.runs(start, end))])
