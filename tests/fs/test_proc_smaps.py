"""The sums of smaps: pages that are counted one by one and many at once are counted alike."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kerneld.fs.proc_smaps import MemSizeStats, _account
from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, make_pte
from kerneld.hw.ram import Ram
from kerneld.mm.frames.frames import PG_ANON, PG_DIRTY, PG_REFERENCED, PG_SWAPBACKED, Frames
from kerneld.mm.space.pagewalk import FEW_ENTRIES

FLAGS = (PG_ANON, PG_SWAPBACKED, PG_DIRTY, PG_REFERENCED)
PAGES = 300


@pytest.mark.parametrize("seed", range(5))
def test_few_pages_and_many_are_counted_alike(seed: int) -> None:
    rng = random.Random(seed)
    frames = Frames(Ram(4 << 20))
    entries = []
    for pfn in range(2, 2 + PAGES):
        frames.flags_at[pfn] = sum(flag for flag in FLAGS if rng.random() < 0.5)
        frames.mapcount_at[pfn] = rng.choice((1, 1, 2, 3, 5))
        frames.refcount_at[pfn] = frames.mapcount_at[pfn] + rng.choice((0, 1))
        entries.append(make_pte(pfn, PTE_PRESENT | rng.choice((0, PTE_ACCESSED)) | rng.choice((0, PTE_DIRTY))))
    words = np.array(entries, dtype=np.uint64)
    many, few = MemSizeStats(), MemSizeStats()
    _account(frames, words, many)
    for start in range(0, PAGES, FEW_ENTRIES):
        _account(frames, words[start : start + FEW_ENTRIES], few)
    assert many == few
    assert sum(many.pages) == PAGES
    assert all((pages > 0) == (share > 0) for pages, share in zip(many.pages, many.shares, strict=True))
