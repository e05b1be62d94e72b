"""Page tables: the way to an entry, runs of entries, and which tables go when a hole is made."""

from __future__ import annotations

import errno

import pytest

from kerneld.errors import KernelBug, SysError
from kerneld.hw.paging import PTE_PRESENT, PTE_TABLE, PTE_USER, make_pte
from kerneld.mm.check.whole_table import walk_page_table
from kerneld.mm.frames.frames import Frames
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.pagetable import PageTable
from kerneld.mm.space.pagewalk import Leaf
from shared.uapi.page import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from tests.support.machine import BASE, Machine

PUD_SIZE = PMD_SIZE << 9
PGD_SIZE = PUD_SIZE << 9
TOP = TASK_SIZE + PAGE_SIZE


@pytest.fixture
def frames(machine: Machine) -> Frames:
    return machine.frames


@pytest.fixture
def table(frames: Frames) -> PageTable:
    return PageTable(frames)


@pytest.fixture(autouse=True)
def _destroyed(table: PageTable) -> object:
    yield
    list(table.destroy_in_pieces(Pace()))


def test_the_way_is_made_once(table: PageTable) -> None:
    assert table.find_pte(BASE) is None
    pte = table.ensure_pte(BASE)
    assert table.table_pages == 4
    assert table.find_pte(BASE) == table.ensure_pte(BASE) == pte
    assert table.find_pte(BASE + 511 * PAGE_SIZE) == pte + 511
    assert table.find_pte(BASE + PMD_SIZE) is None
    table.ensure_pte(BASE + PMD_SIZE)
    table.ensure_pte(BASE + PUD_SIZE)
    table.ensure_pte(BASE + PGD_SIZE)
    assert table.table_pages == 4 + 1 + 2 + 3
    assert sorted(table.tables()) == sorted(walk_page_table(table._frames.ram, table.root).table_pfns.tolist())


def test_leaves_step_over_what_is_absent(table: PageTable) -> None:
    first = table.ensure_pte(BASE + PAGE_SIZE * 510)
    second = table.ensure_pte(BASE + PMD_SIZE)
    far = table.ensure_pte(BASE + 3 * PUD_SIZE + 7 * PAGE_SIZE)
    farther = table.ensure_pte(BASE + 2 * PGD_SIZE)
    assert list(table.walk.leaves(BASE + PAGE_SIZE * 510, BASE + 2 * PGD_SIZE + PAGE_SIZE)) == [
        Leaf(BASE + PAGE_SIZE * 510, BASE + PMD_SIZE, first, first + 2),
        Leaf(BASE + PMD_SIZE, BASE + 2 * PMD_SIZE, second, second + 512),
        Leaf(BASE + 3 * PUD_SIZE, BASE + 3 * PUD_SIZE + PMD_SIZE, far - 7, far - 7 + 512),
        Leaf(BASE + 2 * PGD_SIZE, BASE + 2 * PGD_SIZE + PAGE_SIZE, farther, farther + 1),
    ]
    assert list(table.walk.leaves(BASE + 2 * PMD_SIZE, BASE + 3 * PUD_SIZE)) == []
    assert list(table.walk.leaves(0, BASE)) == []
    assert next(leaf.start for leaf in table.walk.leaves(0, TOP)) == BASE


def test_ensured_leaves_are_all_there(table: PageTable) -> None:
    leaves = list(table.ensure_leaves(BASE + PMD_SIZE - PAGE_SIZE, BASE + 2 * PMD_SIZE + PAGE_SIZE))
    assert [(leaf.start - BASE, leaf.end - BASE) for leaf in leaves] == [
        (PMD_SIZE - PAGE_SIZE, PMD_SIZE),
        (PMD_SIZE, 2 * PMD_SIZE),
        (2 * PMD_SIZE, 2 * PMD_SIZE + PAGE_SIZE),
    ]
    assert all(leaf.high - leaf.low == (leaf.end - leaf.start) // PAGE_SIZE for leaf in leaves)


def test_entries_of_a_range_with_holes(table: PageTable, frames: Frames) -> None:
    vaddr = BASE + PMD_SIZE - PAGE_SIZE
    entry = make_pte(77, PTE_PRESENT | PTE_USER)
    frames.ram.words[table.ensure_pte(vaddr)] = entry
    frames.ram.words[table.ensure_pte(vaddr + 2 * PMD_SIZE)] = entry + 4096
    entries = table.walk.entries(vaddr - PAGE_SIZE, vaddr + 2 * PMD_SIZE + PAGE_SIZE)
    assert {at: int(found) for at, found in enumerate(entries) if found} == {1: entry, 1025: entry + 4096}
    assert len(entries) == 1026
    frames.ram.words[table.ensure_pte(vaddr)] = 0
    frames.ram.words[table.ensure_pte(vaddr + 2 * PMD_SIZE)] = 0


@pytest.mark.parametrize(
    ("start", "end", "floor", "ceiling", "left"),
    [
        pytest.param(0, PMD_SIZE, 0, TOP, 1, id="nothing else: all go but the root"),
        pytest.param(0, PMD_SIZE, BASE - PAGE_SIZE, TOP, 2, id="a neighbour below, in another table"),
        pytest.param(0, PMD_SIZE, BASE + PAGE_SIZE, TOP, 4, id="a neighbour below, in the same table"),
        pytest.param(0, PMD_SIZE, 0, BASE + PMD_SIZE, 3, id="a neighbour above, in the next table"),
        pytest.param(0, PMD_SIZE, 0, BASE + PMD_SIZE - PAGE_SIZE, 4, id="a neighbour above, in the same table"),
        pytest.param(0, PMD_SIZE, 0, BASE + PUD_SIZE, 2, id="a neighbour above, in the next upper table"),
        pytest.param(PAGE_SIZE, 2 * PAGE_SIZE, BASE, BASE + PMD_SIZE, 3, id="a hole in the middle frees its table"),
        pytest.param(PMD_SIZE, 2 * PMD_SIZE, BASE + PMD_SIZE, TOP, 4, id="another range leaves it"),
    ],
)
def test_which_tables_go(table: PageTable, start: int, end: int, floor: int, ceiling: int, left: int) -> None:
    table.ensure_pte(BASE)
    table.free_tables(BASE + start, BASE + end, floor, ceiling)
    assert table.table_pages == len(table.tables()) == left


def test_destroying_frees_all(machine: Machine, frames: Frames) -> None:
    before = frames.free_pages
    table = PageTable(frames)
    for vaddr in (0, BASE, BASE + PUD_SIZE, TASK_SIZE - PAGE_SIZE):
        table.ensure_pte(vaddr)
    list(table.destroy_in_pieces(Pace()))
    assert frames.free_pages == before


@pytest.mark.parametrize("number", range(4))
def test_without_a_frame_for_a_table(machine: Machine, table: PageTable, number: int) -> None:
    with machine.failing_allocation(number) as failed:
        if number < 3:
            with pytest.raises(SysError) as caught:
                table.ensure_pte(BASE)
            assert caught.value.errno == errno.ENOMEM
        else:
            table.ensure_pte(BASE)
    assert len(failed) == (number < 3)
    assert table.table_pages == len(table.tables()) == 1 + number


def test_a_walk_refuses_an_entry_that_names_no_table(table: PageTable, frames: Frames) -> None:
    table.ensure_pte(BASE)
    pud = table.tables()[1]
    slot = next(index for index in range(512) if frames.ram.frames_np[pud][index])
    good = int(frames.ram.frames_np[pud][slot])
    for bad in (good & ~PTE_USER, good | 1 << 7, make_pte(frames.ram.nr_frames, PTE_TABLE)):
        frames.ram.frames_np[pud][slot] = bad
        with pytest.raises(KernelBug, match="does not name a table"):
            walk_page_table(frames.ram, table.root)
    frames.ram.frames_np[pud][slot] = good
