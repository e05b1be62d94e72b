"""FREE, COLD and PAGEOUT of huge pages: those of others too are left whole, and so is the huge zero page.

And a huge page that is mapped by small entries: it is one still, for advice and for a write.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, present_mask
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.frames.frames import PG_DIRTY, PG_SWAPBACKED
from kerneld.mm.frames.huge_frames import PG_LARGE
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.huge_machine import (
    HUGE,
    HugeMachine,
    check_marks,
    entry_at,
    frame_at,
    frames_of,
    huge,
    marked,
    sizes,
)
from tests.support.machine import ANON, BASE, RW, checked, load, mmap, page, store

STATE = PTE_ACCESSED | PTE_DIRTY
ADVICE = (Madv.FREE, Madv.COLD, Madv.PAGEOUT)


@pytest.fixture
def machine() -> Iterator[HugeMachine]:
    yield from checked(HugeMachine(swap_bytes=8 << 20))


def flags_of(mm: MmStruct, start: int, end: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return mm.frames.flags[frames_of(mm, start, end)]


def absent(mm: MmStruct, start: int, end: int) -> int:
    """Return how many pages of a range are not in memory."""
    return int(np.count_nonzero(~present_mask(mm.page_table.walk.entries(start, end))))


@pytest.mark.parametrize("advice", ADVICE)
@pytest.mark.parametrize(("first", "pages"), [(0, HUGE), (7, 9)])
def test_one_that_a_child_maps_too_is_left_as_it_is(
    machine: HugeMachine, mm: MmStruct, advice: Madv, first: int, pages: int
) -> None:
    marked(mm, HUGE)
    child = machine.fork(mm)
    load(child, BASE)
    for who in (mm, child):
        before = entry_at(who, BASE), flags_of(who, BASE, huge(1)).tolist()
        do_madvise(who, page(first), pages * PAGE_SIZE, advice)
        assert (sizes(who, 1), entry_at(who, BASE) & STATE) == ("H", STATE)
        assert (entry_at(who, BASE), flags_of(who, BASE, huge(1)).tolist()) == before
        check_marks(who, HUGE)


@pytest.mark.parametrize("advice", ADVICE)
@pytest.mark.parametrize(("first", "pages"), [(0, HUGE), (7, 9)])
def test_the_huge_zero_page_is_left_whole(mm: MmStruct, advice: Madv, first: int, pages: int) -> None:
    mmap(mm, HUGE, RW, ANON, at=BASE)
    load(mm, BASE)
    before = entry_at(mm, BASE)
    do_madvise(mm, page(first), pages * PAGE_SIZE, advice)
    assert (sizes(mm, 1), entry_at(mm, BASE)) == ("Z", before)


@pytest.mark.parametrize("advice", ADVICE)
def test_a_part_of_ones_own_becomes_single_pages(machine: HugeMachine, mm: MmStruct, advice: Madv) -> None:
    marked(mm, HUGE)
    do_madvise(mm, page(61), PAGE_SIZE, advice)
    assert sizes(mm, 1) == "t"
    assert not entry_at(mm, page(61)) & PTE_ACCESSED
    assert entry_at(mm, page(60)) & STATE == STATE
    assert not (flags_of(mm, page(62), huge(1)) & PG_LARGE).any()
    assert absent(mm, BASE, huge(1)) == (advice is Madv.PAGEOUT)
    # Each is dirty now, but for the one that may be dropped.
    assert bool((flags_of(mm, page(62), huge(1)) & PG_DIRTY).all())
    if advice is Madv.FREE:
        assert not flags_of(mm, page(61), page(62))[0] & (PG_DIRTY | PG_SWAPBACKED)
    check_marks(mm, HUGE)


def test_pageout_of_ones_own_swaps_all_of_it(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    do_madvise(mm, BASE, PMD_SIZE, Madv.PAGEOUT)
    assert absent(mm, BASE, huge(1)) == HUGE
    check_marks(mm, HUGE)


@pytest.mark.parametrize("advice", ADVICE)
def test_advice_ends_at_a_page_of_one_that_others_map(machine: HugeMachine, mm: MmStruct, advice: Madv) -> None:
    """Of a table it goes on to the first entry of such a huge page, and leaves what lies behind it as well."""
    marked(mm, HUGE)
    child = machine.fork(mm)
    store(child, page(3), b"x")
    store(child, page(9), b"x")
    assert (sizes(mm, 1), sizes(child, 1)) == ("H", "t")
    do_madvise(child, BASE, PMD_SIZE, advice)
    assert absent(child, BASE, huge(1)) == 0
    assert all(entry_at(child, page(number)) & STATE == STATE for number in (3, 9))
    do_madvise(child, page(3), PMD_SIZE - 3 * PAGE_SIZE, advice)
    assert not entry_at(child, page(3)) & PTE_ACCESSED
    assert entry_at(child, page(9)) & STATE == STATE
    assert sizes(mm, 1) == "H"


def test_advice_looks_at_the_first_page_alone(machine: HugeMachine, mm: MmStruct) -> None:
    """Whose first page only one maps is taken for his: it is split, for the other who maps it as a whole too."""
    marked(mm, HUGE)
    child = machine.fork(mm)
    store(child, BASE, b"x")
    load(child, page(5))
    do_madvise(child, page(5), PAGE_SIZE, Madv.COLD)
    assert (sizes(mm, 1), sizes(child, 1)) == ("t", "t")
    assert not (flags_of(mm, BASE, huge(1)) & PG_LARGE).any()
    assert entry_at(child, page(5)) & PTE_ACCESSED, "the page itself has two who map it"
    check_marks(mm, HUGE)


def test_without_its_first_page_it_is_left_alone(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    do_madvise(mm, BASE, PAGE_SIZE, Madv.DONTNEED)
    do_madvise(mm, page(61), PAGE_SIZE, Madv.COLD)
    assert entry_at(mm, page(61)) & PTE_ACCESSED
    assert bool((flags_of(mm, page(1), huge(1)) & PG_LARGE).all())


def test_a_page_of_one_is_copied_though_nobody_else_has_it(machine: HugeMachine, mm: MmStruct) -> None:
    """A write takes what other owners have left behind, but not from a huge page (mm/memory.c)."""
    marked(mm, 2 * HUGE)
    child = machine.fork(mm)
    store(mm, BASE, b"x")
    assert sizes(mm, 2) == "tH"
    machine.exit(child)
    before = frame_at(mm, page(5))
    store(mm, page(5), b"y")
    assert frame_at(mm, page(5)) != before
    before = frame_at(mm, huge(1))
    store(mm, huge(1), b"y")
    assert (frame_at(mm, huge(1)), sizes(mm, 2)) == (before, "tH")


def test_what_is_cut_up_is_dirty_where_its_entry_was(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    assert not (flags_of(mm, BASE, huge(2)) & PG_DIRTY).any()
    do_madvise(mm, huge(1), PMD_SIZE, Madv.FREE)
    do_madvise(mm, page(5), PAGE_SIZE, Madv.DONTNEED)
    do_madvise(mm, page(HUGE + 5), PAGE_SIZE, Madv.DONTNEED)
    assert bool((flags_of(mm, page(6), huge(1)) & PG_DIRTY).all())
    assert not (flags_of(mm, page(HUGE + 6), huge(2)) & PG_DIRTY).any()


def test_reclaim_takes_single_pages(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    do_madvise(mm, page(5), PAGE_SIZE, Madv.DONTNEED)
    machine.reclaim_all()
    assert absent(mm, BASE, huge(1)) == HUGE
    load(mm, page(61))
    assert not flags_of(mm, page(61), page(62))[0] & PG_LARGE
    assert load(mm, page(122), 4) == (122).to_bytes(4, "little")


def test_the_huge_page_that_a_child_has_in_its_place_stays_one(machine: HugeMachine, mm: MmStruct) -> None:
    """Who is asked for a page's entries, and has another there, keeps it (mm/page_vma_mapped.c:check_pmd())."""
    mmap(mm, 2 * HUGE, RW, ANON, at=BASE)
    load(mm, BASE)
    store(mm, huge(1), b"x")
    child = machine.fork(mm)
    store(mm, BASE, b"y")
    do_madvise(child, huge(1), PMD_SIZE, Madv.DONTNEED)
    store(child, huge(1), b"z")
    assert (sizes(mm, 2), sizes(child, 2)) == ("tH", "ZH")
    machine.frames.clear(np.array([frame_at(mm, huge(1))]), PG_DIRTY)
    do_madvise(mm, BASE, 2 * PMD_SIZE, Madv.PAGEOUT)
    assert absent(mm, huge(1), huge(2)) == HUGE
    assert sizes(child, 2) == "ZH"
