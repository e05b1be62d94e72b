"""munmap: what is cut, what goes with it, and which tables are given back."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from shared.uapi.page import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from tests.support.machine import BASE, READ, RW, Machine, entry, errno_of, layout, mmap, page, store

PMD_PAGES = PMD_SIZE // PAGE_SIZE


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (BASE + 1, PAGE_SIZE),
        (BASE, 0),
        (TASK_SIZE + PAGE_SIZE, PAGE_SIZE),
        (TASK_SIZE - PAGE_SIZE, PAGE_SIZE + 1),
        (BASE, (1 << 64) - 1),
        (0, TASK_SIZE + 1),
    ],
)
def test_bad_arguments(mm: MmStruct, start: int, length: int) -> None:
    mmap(mm, 1, at=BASE)
    assert errno_of(lambda: do_munmap(mm, start, length)) == errno.EINVAL
    assert layout(mm) == [(0, 1, RW)]


def test_nothing_there_is_fine(mm: MmStruct) -> None:
    do_munmap(mm, BASE, PAGE_SIZE)
    do_munmap(mm, 0, TASK_SIZE)
    assert mm.map_count == 0


@pytest.mark.parametrize(
    ("first", "count", "left"),
    [
        (0, 6, []),
        (0, 2, [(2, 4)]),
        (4, 2, [(0, 4)]),
        (2, 2, [(0, 2), (4, 2)]),
    ],
)
def test_parts_of_one(mm: MmStruct, first: int, count: int, left: list[tuple[int, int]]) -> None:
    mmap(mm, 6, at=page(0))
    for number in range(6):
        store(mm, page(number), b"x")
    do_munmap(mm, page(first), count * PAGE_SIZE - 1)
    assert [(at, pages) for at, pages, _ in layout(mm)] == left
    still = {at + number for at, pages in left for number in range(pages)}
    assert {number for number in range(6) if entry(mm, page(number))} == still
    assert mm.total_vm == mm.rss.counts[1] == len(still)
    assert [vma.pgoff for vma in mm.vmas] == [vma.start // PAGE_SIZE for vma in mm.vmas]


def test_over_several_and_the_holes_between_them(mm: MmStruct) -> None:
    mmap(mm, 3, at=page(0))
    mmap(mm, 2, READ, at=page(5))
    mmap(mm, 4, at=page(8))
    do_munmap(mm, page(2), 8 * PAGE_SIZE)
    assert layout(mm) == [(0, 2, RW), (10, 2, RW)]


def test_frames_come_back_and_tables_too(machine: Machine, mm: MmStruct) -> None:
    before = machine.frames.free_pages
    mmap(mm, 3 * PMD_PAGES, at=BASE)
    for number in (0, PMD_PAGES, 2 * PMD_PAGES):
        store(mm, page(number), b"x")
    assert mm.page_table.table_pages == 3 + 3
    do_munmap(mm, page(1), PMD_SIZE)
    assert mm.page_table.table_pages == 3 + 3
    do_munmap(mm, page(PMD_PAGES + 1), PMD_SIZE - PAGE_SIZE)
    assert mm.page_table.table_pages == 3 + 2
    do_munmap(mm, page(0), PAGE_SIZE)
    assert mm.page_table.table_pages == 3 + 1
    do_munmap(mm, page(2 * PMD_PAGES), PMD_SIZE)
    assert mm.page_table.table_pages == 1
    assert machine.frames.free_pages == before


def test_a_table_stays_while_a_neighbour_without_pages_needs_it(mm: MmStruct) -> None:
    mmap(mm, 1, at=page(0))
    mmap(mm, 1, at=page(10))
    store(mm, page(0), b"x")
    do_munmap(mm, page(0), PAGE_SIZE)
    assert mm.page_table.table_pages == 4
    do_munmap(mm, page(10), PAGE_SIZE)
    assert mm.page_table.table_pages == 1


def test_a_cut_in_the_middle_needs_room_in_the_map_count(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 6, at=page(0))
    store(mm, page(2), b"x")
    machine.sysctl.max_map_count = 1
    assert errno_of(lambda: do_munmap(mm, page(2), PAGE_SIZE)) == errno.ENOMEM
    assert layout(mm) == [(0, 6, RW)]
    assert entry(mm, page(2))
    do_munmap(mm, page(4), 2 * PAGE_SIZE)
    do_munmap(mm, page(0), PAGE_SIZE)
    machine.sysctl.max_map_count = 2
    do_munmap(mm, page(2), PAGE_SIZE)
    assert layout(mm) == [(1, 1, RW), (3, 1, RW)]


def test_the_map_count_limits_mmap(machine: Machine, mm: MmStruct) -> None:
    machine.sysctl.max_map_count = 3
    for number in range(4):
        mmap(mm, 1, at=page(2 * number))
    assert errno_of(lambda: mmap(mm, 1, at=page(8))) == errno.ENOMEM
    do_munmap(mm, page(0), PAGE_SIZE)
    mmap(mm, 1, at=page(8))
    assert mm.map_count == 4
