"""Many leaf tables at once against one at a time: what is walked is the same, and what calls on large ranges leave.

Two machines get the same calls on a range of 24 leaf tables, of which many miss, some are huge pages and most have a
few entries, some swapped out; in one of them the walk is told that no range is large. In the end every entry but for
its frame's number, every counter and every byte is the same, and so is what a listener has made of the notifications.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_ACCESSED, PTE_PFN_MASK, PTE_PRESENT, present_mask
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mlock import do_mlock, do_munlock
from kerneld.mm.calls.move_page_tables import move_ptes
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import copy_vma, do_mremap
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space import pagewalk
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.pagewalk import Leaf, Leaves, Run
from kerneld.mm.vm_flags import VM_LOCKED, VM_LOCKONFAULT, VM_READ, VM_WRITE
from shared.uapi.mman import Madv, Map, Mremap
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE
from tests.support.effort import examples
from tests.support.huge_machine import HUGE, HugeMachine
from tests.support.machine import ANON, BASE, NONE, READ, RW, SHARED_ANON, load, mmap, page, store

TABLES = 24
PAGES = TABLES * HUGE
FAR = BASE + (1 << 39) - 3 * PMD_SIZE
"""Where things are moved to: what comes there lies on both sides of a boundary of every level."""
EVERYWHERE = ((BASE, BASE + PAGES * PAGE_SIZE), (FAR, FAR + (PAGES + HUGE) * PAGE_SIZE))

places = st.integers(0, PAGES - 1) | st.integers(0, TABLES - 1).map(lambda table: table * HUGE)
large = st.tuples(st.integers(0, 2 * HUGE), st.integers(PAGES - 2 * HUGE, PAGES))
ranges = large | st.tuples(places, places).filter(lambda pair: pair[0] < pair[1])
layouts = st.lists(st.sampled_from("-0rwwW"), min_size=TABLES, max_size=TABLES)
"""What is in each 2 MiB at first: no table, an empty one, pages read, pages written, or such that are swapped out."""
advice = st.sampled_from([Madv.DONTNEED, Madv.FREE, Madv.COLD, Madv.PAGEOUT, Madv.NOHUGEPAGE])
calls = st.one_of(
    st.tuples(st.just("touch"), st.lists(st.tuples(places, st.booleans()), min_size=1, max_size=30)),
    st.tuples(st.just("mprotect"), ranges, st.sampled_from([NONE, READ, RW, RW])),
    st.tuples(st.just("madvise"), ranges, advice),
    st.tuples(st.just("mlock"), ranges, st.booleans()),
    st.tuples(st.just("munmap"), ranges),
    st.tuples(st.just("mremap"), ranges, st.sampled_from([0, 1, 511, 512])),
    st.tuples(st.just("become_child"), st.booleans()),
)


class World(HugeMachine):
    """A machine with the range mapped, and what happens in it."""

    def __init__(self, kind: int, thp: TransparentHugepage, layout: list[str]) -> None:
        # Never half full: what is swapped out, or gives its slot up, would hang on the order in which pages come.
        super().__init__(96 << 20, thp, PAGES, swap_bytes=256 << 20)
        self.mm = self.new_mm()
        mmap(self.mm, PAGES, RW, kind | Map.NORESERVE.value, at=BASE)
        for table, what in enumerate(layout):
            first = table * HUGE + table * 7
            if what != "-":
                self.touch([(first, what != "r"), (first + 1, False), (first + 300, what != "r")])
            if what in "0W":
                do_madvise(self.mm, page(first), 301 * PAGE_SIZE, Madv.PAGEOUT if what == "W" else Madv.DONTNEED)

    def call(self, name: str, *args: object) -> object:
        try:
            return getattr(self, name)(*args)
        except SysError as error:
            return error.errno

    def touch(self, pages: list[tuple[int, bool]]) -> None:
        for number, is_write in pages:
            vma = self.mm.vmas.lookup(page(number))
            if vma is not None and is_write and vma.vm_flags & VM_WRITE:
                store(self.mm, page(number), number.to_bytes(4, "little"))
            elif vma is not None and vma.vm_flags & VM_READ:
                load(self.mm, page(number))

    def mprotect(self, pair: tuple[int, int], prot: int) -> None:
        do_mprotect(self.mm, page(pair[0]), (pair[1] - pair[0]) << PAGE_SHIFT, prot)

    def madvise(self, pair: tuple[int, int], advice: Madv) -> None:
        do_madvise(self.mm, page(pair[0]), (pair[1] - pair[0]) << PAGE_SHIFT, advice)

    def mlock(self, pair: tuple[int, int], lock: bool) -> None:
        length = (pair[1] - pair[0]) << PAGE_SHIFT
        if lock:
            do_mlock(self.mm, page(pair[0]), length, VM_LOCKED | VM_LOCKONFAULT, privileged=True)
        else:
            do_munlock(self.mm, page(pair[0]), length)

    def munmap(self, pair: tuple[int, int]) -> None:
        do_munmap(self.mm, page(pair[0]), (pair[1] - pair[0]) << PAGE_SHIFT)

    def mremap(self, pair: tuple[int, int], shift: int) -> int:
        """Away, to a place that lies otherwise in its tables, and back."""
        length, flags = (pair[1] - pair[0]) << PAGE_SHIFT, (Mremap.MAYMOVE | Mremap.FIXED).value
        to = FAR + ((pair[0] % HUGE + shift) << PAGE_SHIFT)
        do_mremap(self.mm, page(pair[0]), length, length, flags, to, privileged=True)
        self.check()
        return do_mremap(self.mm, to, length, length, flags, page(pair[0]), privileged=True)

    def away(self, shift: int) -> None:
        length, flags = PAGES << PAGE_SHIFT, (Mremap.MAYMOVE | Mremap.FIXED).value
        do_mremap(self.mm, BASE, length, length, flags, FAR + (shift << PAGE_SHIFT), privileged=True)

    def become_child(self, parent_stays: bool) -> None:
        parent, self.mm = self.mm, self.fork(self.mm)
        if not parent_stays:
            self.exit(parent)

    def state(self) -> tuple[object, ...]:
        entries = self.mm.page_table.walk.entries(*EVERYWHERE[0])
        present = present_mask(entries)
        bits = np.where(present, entries & np.uint64(~PTE_PFN_MASK & (1 << 64) - 1), entries != 0)
        vmas = [(vma.start, vma.end, vma.vm_flags) for vma in self.mm.vmas]
        table_pages = self.mm.page_table.table_pages
        return bits.tolist(), vmas, self.mm.rss.counts, table_pages, self.frames.free_pages, self.frames.swap.nr_free

    def contents(self) -> list[bytes]:
        entries = self.mm.page_table.walk.entries(*EVERYWHERE[0])
        readable = np.flatnonzero((entries & np.uint64(PTE_PRESENT)) != 0).tolist()
        return [load(self.mm, page(number), 4) for number in readable[:: max(1, len(readable) // 100)]]


def run(kind: int, thp: TransparentHugepage, layout: list[str], steps: list[Any]) -> tuple[object, ...]:
    """Return what the calls have answered and what they have left."""
    world = World(kind, thp, layout)
    answers = []
    for name, *args in steps:
        answers.append(world.call(name, *args))
        world.check()
    found = (answers, world.state(), world.contents())
    world.close()
    return found


@pytest.mark.slow
@given(st.data())
@settings(max_examples=examples(40), deadline=None)
def test_many_at_once_is_as_one_by_one(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([ANON, ANON, SHARED_ANON]))
    thp = data.draw(st.sampled_from([TransparentHugepage.NEVER, TransparentHugepage.ALWAYS]))
    layout = data.draw(layouts)
    steps = data.draw(st.lists(calls, min_size=1, max_size=6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pagewalk, "_TABLES_AT_ONCE", data.draw(st.sampled_from([2, 3, 16])))
        at_once = run(kind, thp, layout, steps)
        patch.setattr(pagewalk, "_FEW_TABLES", TABLES)
        assert run(kind, thp, layout, steps) == at_once


def test_a_run_is_whole_tables_of_one_gib(mm: MmStruct) -> None:
    """Holes between tables are no end of a run; a table that the range has only a part of comes by itself."""
    gib = 1 << 30
    mmap(mm, gib // PAGE_SIZE, RW, ANON | Map.NORESERVE.value, at=BASE + gib // 2)
    touched = [BASE + gib // 2 + number * PMD_SIZE for number in (0, 1, 3, 7, 255, 256, 300, 511)]
    for vaddr in touched:
        load(mm, vaddr)
    runs = list(mm.page_table.walk.runs(touched[0] + PAGE_SIZE, touched[-1] + 2 * PAGE_SIZE))
    assert [type(run) for run in runs] == [Leaf, Leaves, Leaves, Leaf]
    assert [run.starts.tolist() for run in runs if isinstance(run, Leaves)] == [touched[1:5], touched[5:7]]
    assert [(run.start, run.end) for run in (runs[0], runs[-1])] == [
        (touched[0] + PAGE_SIZE, touched[0] + PMD_SIZE),
        (touched[-1], touched[-1] + 2 * PAGE_SIZE),
    ]
    for run in runs:
        for vaddr, entry in zip(run.vaddrs().tolist(), mm.page_table.walk.read(run).tolist(), strict=True):
            assert entry == mm.page_table.walk.entries(vaddr, vaddr + PAGE_SIZE)[0]


def sizes_mixed() -> World:
    """Return a world with leaf tables at 0, 3, 4 and 8, and huge pages at 5 and 12."""
    world = World(ANON, TransparentHugepage.ALWAYS, ["-"] * TABLES)
    for advice, tables in ((Madv.NOHUGEPAGE, (0, 3, 4, 8)), (Madv.HUGEPAGE, (5, 12))):
        do_madvise(world.mm, BASE, PAGES << PAGE_SHIFT, advice)
        for table in tables:
            store(world.mm, page(table * HUGE + table), b"x")
    return world


def numbers(runs: list[Run]) -> list[str]:
    """Return which 2 MiB each run is of, an H behind those of a huge page."""
    starts = [run.starts.tolist() if isinstance(run, Leaves) else [run.start] for run in runs]
    of = [",".join(str(start - BASE >> PMD_SHIFT) for start in some) for some in starts]
    return [what + "H" * run.huge for what, run in zip(of, runs, strict=True)]


def test_tables_and_huge_pages_come_in_order() -> None:
    world = sizes_mixed()
    walk = world.mm.page_table.walk
    assert numbers(list(walk.runs(BASE, page(PAGES)))) == ["0,3,4", "5H", "8", "12H"]
    assert numbers(list(walk.leaves(page(7), page(13 * HUGE)))) == ["0", "3", "4", "5H", "8", "12H"]
    world.close()


def test_a_huge_page_that_is_cut_up_when_it_is_met_is_walked_as_a_table() -> None:
    world = sizes_mixed()
    mm = world.mm
    met: list[Leaf] = []

    def cut_up_the_first(leaf: Leaf) -> bool:
        met.append(leaf)
        if len(met) == 1:
            mm.pages.split_huge_pmd(leaf.low, leaf.start)
            return False
        return True

    found: list[Run] = []
    mm.page_table.walk.page_range(page(7), page(PAGES), found.append, cut_up_the_first)
    assert numbers(list(met)) == ["5H", "12H"]
    assert numbers(found) == ["0", "3,4", "5", "8"]
    assert found[0].start == page(7)
    world.close()


@pytest.mark.parametrize("layout", ["0000wwww", "w0000w0w", "wwww0000", "0w00000W"])
def test_a_child_has_its_pages_where_its_parent_has_them(layout: str) -> None:
    """Tables that are there and empty, first, last or in between, are made for the child too (copy_pte_range())."""
    world = World(ANON, TransparentHugepage.NEVER, [*layout, *"-" * (TABLES - len(layout))])
    parent, child = world.mm, world.fork(world.mm)
    world.check()
    assert child.page_table.table_pages == parent.page_table.table_pages
    entries = [
        mm.page_table.walk.entries(*EVERYWHERE[0]) & np.uint64(~PTE_ACCESSED & (1 << 64) - 1) for mm in world.mms
    ]
    assert np.array_equal(entries[0], entries[1])
    world.close()


@pytest.mark.parametrize("shift", [0, 1])
def test_a_failed_move_brings_all_back(shift: int) -> None:
    """Tables and huge pages: which of them had moved when a table is not to be had."""
    world = sizes_mixed()
    before = world.state()[0]
    failures = 0
    while True:
        with world.failing_allocation(failures):
            answer = world.call("away", shift)
        world.check()
        if answer is None:
            break
        assert answer == errno.ENOMEM
        failures += 1
        assert world.state()[0] == before
    assert failures > 2
    world.close()


def test_a_huge_page_does_not_take_the_place_of_a_table() -> None:
    world = World(ANON, TransparentHugepage.ALWAYS, ["-"] * TABLES)
    mm = world.mm
    store(mm, page(3), b"x")
    vma = mm.vmas.lookup(BASE)
    assert vma is not None
    copy_vma(mm, vma, BASE, FAR, PMD_SIZE)
    mm.page_table.ensure_pte(FAR)
    assert mm.page_table.find_huge_pmd(BASE) is not None
    move_ptes(mm, BASE, FAR, PMD_SIZE)
    world.check()
    assert mm.page_table.find_huge_pmd(FAR) is None
    assert load(mm, FAR + 3 * PAGE_SIZE) == b"x"
    world.close()
