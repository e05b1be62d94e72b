"""brk: the heap grows and shrinks by bytes, and stays as it is where it may not."""

from __future__ import annotations

import pytest

from kerneld.mm.calls.brk import do_brk, do_brk_flags
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import Rlimit
from tests.support.machine import BASE, READ, RW, Machine, entry, grows_down, layout, mmap, page, store


@pytest.fixture
def heap(mm: MmStruct) -> MmStruct:
    mm.start_brk = mm.brk = BASE
    return mm


def brk(mm: MmStruct, address: int) -> int:
    return do_brk(mm, address, privileged=False)


def test_zero_asks_where_it_is(heap: MmStruct) -> None:
    assert brk(heap, 0) == BASE
    assert brk(heap, BASE + 100) == BASE + 100
    assert brk(heap, 0) == brk(heap, BASE - 1) == BASE + 100


def test_it_moves_by_bytes_and_maps_by_pages(heap: MmStruct) -> None:
    assert brk(heap, BASE + 1) == BASE + 1
    assert layout(heap) == [(0, 1, RW)]
    assert brk(heap, BASE + PAGE_SIZE) == BASE + PAGE_SIZE
    assert layout(heap) == [(0, 1, RW)]
    assert brk(heap, BASE + PAGE_SIZE + 1) == BASE + PAGE_SIZE + 1
    assert layout(heap) == [(0, 2, RW)]
    store(heap, page(1), b"x")
    assert brk(heap, BASE + PAGE_SIZE) == BASE + PAGE_SIZE
    assert layout(heap) == [(0, 1, RW)]
    assert heap.rss.counts[1] == 0
    assert brk(heap, BASE) == BASE
    assert layout(heap) == []


def test_a_touched_heap_grows_as_one(heap: MmStruct) -> None:
    for pages in range(1, 6):
        brk(heap, BASE + pages * PAGE_SIZE)
        store(heap, page(pages - 1), b"x")
    assert layout(heap) == [(0, 5, RW)]


def test_it_stays_a_page_away_from_the_next_mapping(heap: MmStruct) -> None:
    mmap(heap, 1, at=page(4))
    assert brk(heap, BASE + 4 * PAGE_SIZE) == BASE
    assert brk(heap, BASE + 3 * PAGE_SIZE) == BASE + 3 * PAGE_SIZE


def test_it_keeps_off_a_stack(heap: MmStruct) -> None:
    grows_down(heap, BASE + 8 * PAGE_SIZE + STACK_GUARD_GAP_BYTES, 1)
    assert brk(heap, BASE + 8 * PAGE_SIZE) == BASE
    assert brk(heap, BASE + 7 * PAGE_SIZE) == BASE + 7 * PAGE_SIZE


def test_it_stays_within_the_limits(machine: Machine, heap: MmStruct) -> None:
    heap.end_data = PAGE_SIZE
    heap.rlimits.soft[Rlimit.DATA] = 3 * PAGE_SIZE
    assert brk(heap, BASE + 2 * PAGE_SIZE + 1) == BASE
    assert brk(heap, BASE + 2 * PAGE_SIZE) == BASE + 2 * PAGE_SIZE
    heap.rlimits.soft[Rlimit.DATA] = 1 << 40
    heap.rlimits.soft[Rlimit.AS] = 3 * PAGE_SIZE
    assert brk(heap, BASE + 4 * PAGE_SIZE) == BASE + 2 * PAGE_SIZE
    heap.rlimits.soft[Rlimit.AS] = 1 << 40
    assert brk(heap, BASE + (machine.frames.total_pages + 3) * PAGE_SIZE) == BASE + 2 * PAGE_SIZE
    machine.sysctl.max_map_count = 0
    assert brk(heap, BASE + 3 * PAGE_SIZE) == BASE + 2 * PAGE_SIZE


def test_a_locked_heap_has_a_limit(heap: MmStruct) -> None:
    heap.def_flags = VM_LOCKED
    brk(heap, BASE + 2 * PAGE_SIZE)
    heap.rlimits.soft[Rlimit.MEMLOCK] = 3 * PAGE_SIZE
    assert brk(heap, BASE + 4 * PAGE_SIZE) == BASE + 2 * PAGE_SIZE


def test_it_shrinks_over_a_hole_at_its_top(heap: MmStruct) -> None:
    brk(heap, BASE + 6 * PAGE_SIZE)
    store(heap, page(3), b"x")
    do_munmap(heap, page(4), 2 * PAGE_SIZE)
    mmap(heap, 1, READ, at=page(9))
    assert brk(heap, BASE + 2 * PAGE_SIZE) == BASE + 2 * PAGE_SIZE
    assert layout(heap) == [(0, 2, RW), (9, 1, READ)]
    assert not entry(heap, page(3))


def test_it_does_not_shrink_where_nothing_of_it_is_left(heap: MmStruct) -> None:
    brk(heap, BASE + 6 * PAGE_SIZE)
    do_munmap(heap, page(2), 4 * PAGE_SIZE)
    assert brk(heap, BASE + 2 * PAGE_SIZE) == BASE + 6 * PAGE_SIZE


def test_a_heap_never_joins_the_bss_that_ends_where_it_begins(heap: MmStruct) -> None:
    """As in v6.8: brk looks no further back than start_brk for a VMA to grow (vma_prev_limit())."""
    do_brk_flags(heap, page(-2), 2 * PAGE_SIZE)
    brk(heap, BASE + PAGE_SIZE)
    assert layout(heap) == [(-2, 2, RW), (0, 1, RW)]
    brk(heap, BASE + 2 * PAGE_SIZE)
    assert layout(heap) == [(-2, 2, RW), (0, 2, RW)]


def test_execve_may_extend_what_lies_before_a_bss(heap: MmStruct) -> None:
    do_brk_flags(heap, page(-4), 2 * PAGE_SIZE)
    do_brk_flags(heap, page(-2), 2 * PAGE_SIZE)
    assert layout(heap) == [(-4, 4, RW)]
