"""Accesses through memory that is read in order or at random do not count: Linux v6.8 mm_inline.h:vma_has_recency()."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.frames.frames import PG_REFERENCED
from kerneld.mm.frames.lru import isolate
from kerneld.mm.reclaim.shrink import shrink_folio_list
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from tests.mm.reclaim.old import make_old
from tests.support.machine import BASE, RW, SHARED, SHARED_ANON, Machine, checked, load, mmap, page, pfn_of, store

MANY = 40
"""Pages: more than are cleared one by one."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


def forget(mm: MmStruct, length: int) -> None:
    do_madvise(mm, BASE, length, Madv.DONTNEED)


@pytest.mark.parametrize("zap", [do_munmap, None], ids=["munmap", "DONTNEED"])
@pytest.mark.parametrize("pages", [1, MANY])
@pytest.mark.parametrize(
    ("advice", "counts"), [(Madv.NORMAL, True), (Madv.SEQUENTIAL, False), (Madv.RANDOM, False), (Madv.WILLNEED, True)]
)
def test_a_page_that_was_read_in_order_is_not_marked_as_used_when_it_is_unmapped(
    mm: MmStruct, zap: Callable[..., None] | None, pages: int, advice: Madv, counts: bool
) -> None:
    mmap(mm, pages, RW, SHARED_ANON, at=BASE)
    pfns = []
    for number in range(pages):
        store(mm, page(number), b"x")
        pfns.append(pfn_of(mm, page(number)))
    mm.frames.flags[pfns] &= np.uint32(~PG_REFERENCED & 0xFFFF_FFFF)
    do_madvise(mm, BASE, pages * PAGE_SIZE, advice)
    held = [pfn for pfn in pfns if mm.frames.flags_at[pfn] & PG_REFERENCED]
    assert held == []
    mm.frames.get_pages(np.array(pfns))
    if zap is None:
        forget(mm, pages * PAGE_SIZE)
    else:
        zap(mm, BASE, pages * PAGE_SIZE)
    marked = [bool(mm.frames.flags_at[pfn] & PG_REFERENCED) for pfn in pfns]
    mm.frames.put_pages(np.array(pfns))
    assert marked == [counts] * pages


@pytest.mark.parametrize(
    ("advice", "freed"), [(Madv.NORMAL, 0), (Madv.SEQUENTIAL, 1), (Madv.RANDOM, 1), (Madv.DOFORK, 0)]
)
def test_reclaim_takes_a_page_that_was_read_in_order(machine: Machine, mm: MmStruct, advice: Madv, freed: int) -> None:
    file, _backing = machine.new_file(bytes(PAGE_SIZE))
    mmap(mm, 1, RW, SHARED, at=BASE, file=file)
    load(mm, BASE)
    make_old(mm)
    do_madvise(mm, BASE, PAGE_SIZE, advice)
    load(mm, BASE)
    batch = np.array([pfn_of(mm, BASE)])
    isolate(machine.frames, batch)
    assert shrink_folio_list(machine.frames, batch) == freed
