"""mremap: what becomes of the mapping and its pages, row by row; `test_mremap_errors.py` has the errnos."""

from __future__ import annotations

from signal import SIGBUS, SIGSEGV

import pytest

from kerneld.hw.paging import PTE_SOFT_DIRTY
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.mm.calls.remapping import LOCKED, MAYMOVE, TO, frames, remap, write_pages
from tests.support.machine import (
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    entry,
    layout,
    load,
    mmap,
    page,
    pfn_of,
    signal_of,
    store,
    vma_at,
)


class TestShrink:
    """The tail is unmapped."""

    @pytest.mark.parametrize("flags", [0, MAYMOVE])
    def test_it_stays_and_its_tail_goes(self, mm: MmStruct, flags: int) -> None:
        mmap(mm, 4, at=BASE)
        held = write_pages(mm, 0, 4)
        assert remap(mm, 0, 4, 1, flags) == BASE
        assert layout(mm) == [(0, 1, RW)]
        assert frames(mm, BASE, 4) == [held[0], 0, 0, 0]
        assert mm.rss.counts[1] == 1

    def test_in_the_middle_of_a_mapping_it_leaves_a_hole(self, mm: MmStruct) -> None:
        mmap(mm, 6, at=BASE)
        assert remap(mm, 1, 3, 1) == page(1)
        assert layout(mm) == [(0, 2, RW), (4, 2, RW)]

    def test_the_tail_may_lie_in_other_mappings_and_holes(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        mmap(mm, 2, READ, at=page(3))
        mmap(mm, 2, at=page(6))
        assert remap(mm, 0, 7, 1) == BASE
        assert layout(mm) == [(0, 1, RW), (7, 1, RW)]

    def test_the_same_size_is_nothing_whatever_lies_there(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        assert remap(mm, 0, 9, 9, MAYMOVE) == BASE
        assert layout(mm) == [(0, 1, RW)]

    def test_lengths_are_rounded_up_to_pages(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        assert do_mremap(mm, BASE, 2 * PAGE_SIZE + 1, PAGE_SIZE + 1, 0, 0, privileged=False) == BASE
        assert layout(mm) == [(0, 2, RW)]
        assert do_mremap(mm, BASE, PAGE_SIZE + 1, 2 * PAGE_SIZE, 0, 0, privileged=False) == BASE
        assert layout(mm) == [(0, 2, RW)]

    def test_locked_pages_that_go_are_not_counted_any_more(self, mm: MmStruct) -> None:
        mmap(mm, 4, RW, LOCKED, at=BASE)
        remap(mm, 0, 4, 3)
        assert (mm.locked_vm, mm.rss.counts[1]) == (3, 3)


class TestGrowInPlace:
    """At the VMA's end, with room behind it."""

    @pytest.mark.parametrize("flags", [0, MAYMOVE])
    def test_it_grows_where_it_is(self, mm: MmStruct, flags: int) -> None:
        mmap(mm, 2, at=BASE)
        held = write_pages(mm, 0, 2)
        assert remap(mm, 0, 2, 4, flags) == BASE
        assert layout(mm) == [(0, 4, RW)]
        assert frames(mm, BASE, 4) == [*held, 0, 0]
        store(mm, page(3), b"x")
        assert mm.total_vm == mm.data_vm == 4

    def test_the_upper_part_of_a_mapping_grows_it(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        assert remap(mm, 2, 2, 5) == page(2)
        assert layout(mm) == [(0, 7, RW)]

    def test_what_fills_the_gap_merges_with_the_next(self, mm: MmStruct) -> None:
        mmap(mm, 5, at=BASE)
        write_pages(mm, 0, 5)
        split = remap(mm, 0, 4, 1)
        assert layout(mm) == [(0, 1, RW), (4, 1, RW)]
        assert remap(mm, 0, 1, 4) == split
        assert layout(mm) == [(0, 5, RW)]
        assert load(mm, page(4)) == b"\x04"

    def test_it_takes_the_anon_vma_of_the_next(self, mm: MmStruct) -> None:
        mmap(mm, 5, at=BASE)
        remap(mm, 0, 4, 1)
        write_pages(mm, 4, 1)
        anon_vma = vma_at(mm, page(4)).anon_vma
        assert anon_vma is not None
        remap(mm, 0, 1, 4)
        assert layout(mm) == [(0, 5, RW)]
        assert vma_at(mm, BASE).anon_vma is anon_vma

    def test_another_anon_vma_keeps_the_next_apart(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        mmap(mm, 1, at=page(4))
        write_pages(mm, 0, 1)
        write_pages(mm, 4, 1)
        remap(mm, 0, 1, 4)
        assert layout(mm) == [(0, 4, RW), (4, 1, RW)]

    def test_a_next_one_of_other_rights_stays_apart(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        mmap(mm, 1, READ, at=page(3))
        remap(mm, 0, 1, 3)
        assert layout(mm) == [(0, 3, RW), (3, 1, READ)]

    def test_a_file_goes_on_and_ends(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"a" * PAGE_SIZE + b"b" * PAGE_SIZE)
        mmap(mm, 1, READ, PRIVATE, at=BASE, file=file)
        remap(mm, 0, 1, 3)
        assert load(mm, page(1)) == b"b"
        assert signal_of(lambda: load(mm, page(2))) == SIGBUS

    def test_shared_anonymous_memory_has_the_size_it_was_made_with(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW, SHARED_ANON, at=BASE)
        remap(mm, 0, 1, 2)
        store(mm, BASE, b"x")
        assert signal_of(lambda: load(mm, page(1))) == SIGBUS

    def test_locked_memory_is_there_at_once(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW, LOCKED, at=BASE)
        remap(mm, 0, 1, 3)
        assert (mm.locked_vm, mm.rss.counts[1]) == (3, 3)


class TestMove:
    """Page tables move, frames stay."""

    def test_it_moves_where_it_cannot_grow(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        mmap(mm, 1, READ, at=page(3))
        held = write_pages(mm, 0, 3)
        free = mm.frames.free_pages
        new = remap(mm, 0, 3, 5, MAYMOVE)
        assert frames(mm, new, 5) == [*held, 0, 0]
        assert [load(mm, new + number * PAGE_SIZE) for number in range(3)] == [b"\0", b"\x01", b"\x02"]
        assert signal_of(lambda: load(mm, BASE)) == SIGSEGV
        assert mm.total_vm == 6
        assert mm.rss.counts[1] == 3
        assert free - mm.frames.free_pages == 3  # Three tables on the way to the new place; no page is copied.

    def test_a_part_of_a_mapping_moves_alone(self, mm: MmStruct) -> None:
        mmap(mm, 5, at=BASE)
        held = write_pages(mm, 0, 5)
        new = remap(mm, 1, 2, 3, MAYMOVE)
        assert layout(mm)[:2] == [(0, 1, RW), (3, 2, RW)]
        assert frames(mm, new, 3) == [*held[1:3], 0]
        assert frames(mm, page(3), 2) == held[3:]

    def test_dirty_and_accessed_and_rights_go_along(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        store(mm, BASE, b"x")
        load(mm, page(1))
        before = [entry(mm, BASE), entry(mm, page(1))]
        new = remap(mm, 0, 2, 2, TO, page(100))
        assert [entry(mm, new), entry(mm, new + PAGE_SIZE)] == [each | PTE_SOFT_DIRTY for each in before]

    def test_across_leaf_tables(self, mm: MmStruct) -> None:
        """Source and destination cross their tables at different pages: runs are cut at both."""
        start = BASE + PMD_SIZE - 3 * PAGE_SIZE
        mmap(mm, 8, at=start)
        mm_populate(mm, start, start + 8 * PAGE_SIZE)
        held = frames(mm, start, 8)
        to = BASE + 5 * PMD_SIZE - 6 * PAGE_SIZE
        assert do_mremap(mm, start, 8 * PAGE_SIZE, 8 * PAGE_SIZE, TO, to, privileged=False) == to
        assert frames(mm, to, 8) == held
        assert frames(mm, start, 8) == [0] * 8

    def test_fork_shares_what_has_moved(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        write_pages(mm, 0, 2)
        child = machine.fork(mm)
        remap(mm, 0, 2, 2, TO, page(50))
        assert frames(mm, page(50), 2) == frames(child, BASE, 2)
        store(mm, page(50), b"P")
        assert load(child, BASE) == b"\0"
        assert pfn_of(mm, page(50)) != pfn_of(child, BASE)

    def test_untouched_memory_takes_the_offsets_of_its_new_place(self, mm: MmStruct) -> None:
        """So it merges there (copy_vma()); memory that was faulted keeps the offsets that its frames know."""
        mmap(mm, 2, at=BASE)
        mmap(mm, 2, at=page(10))
        remap(mm, 0, 2, 2, TO, page(12))
        assert layout(mm) == [(10, 4, RW)]
        mmap(mm, 1, at=BASE)
        write_pages(mm, 0, 1)
        remap(mm, 0, 1, 1, TO, page(14))
        assert layout(mm) == [(10, 4, RW), (14, 1, RW)]
        assert vma_at(mm, page(14)).pgoff == BASE // PAGE_SIZE

    def test_it_fits_between_two_others(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(10))
        mmap(mm, 2, at=page(14))
        mmap(mm, 2, at=BASE)
        remap(mm, 0, 2, 2, TO, page(12))
        assert layout(mm) == [(10, 6, RW)]

    def test_it_grows_down_the_mapping_above_its_new_place(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(12))
        mmap(mm, 2, at=BASE)
        remap(mm, 0, 2, 2, TO, page(10))
        assert layout(mm) == [(10, 4, RW)]

    def test_there_and_back_it_is_one_again(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        held = write_pages(mm, 0, 3)
        remap(mm, 1, 1, 1, TO, page(20))
        assert layout(mm) == [(0, 1, RW), (2, 1, RW), (20, 1, RW)]
        remap(mm, 20, 1, 1, TO, page(1))
        assert layout(mm) == [(0, 3, RW)]
        assert frames(mm, BASE, 3) == held

    def test_a_file_keeps_its_offset(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"a" * PAGE_SIZE + b"b" * PAGE_SIZE)
        mmap(mm, 2, RW, SHARED, at=BASE, file=file)
        remap(mm, 1, 1, 1, TO, page(30))
        store(mm, page(30), b"B")
        remap(mm, 30, 1, 1, TO, page(31))
        assert load(mm, page(31)) == b"B"
        machine.exit(mm)
        assert backing.data[PAGE_SIZE : PAGE_SIZE + 1] == b"B"

    def test_locked_memory_moves_whole_and_the_rest_is_faulted_in(self, mm: MmStruct) -> None:
        mmap(mm, 2, RW, LOCKED, at=BASE)
        mmap(mm, 1, READ, at=page(2))
        new = remap(mm, 0, 2, 4, MAYMOVE)
        assert mm.locked_vm == 4
        assert all(frames(mm, new, 4))
        assert vma_at(mm, new).vm_flags & VM_LOCKED

    def test_the_peak_does_not_count_it_twice(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        remap(mm, 0, 4, 4, TO, page(100))
        assert max(mm.hiwater_vm, mm.total_vm) == 4

    def test_two_mib_of_anonymous_memory_go_to_a_boundary(self, mm: MmStruct) -> None:
        mmap(mm, 600, at=BASE)
        mmap(mm, 1, READ, at=page(600))
        assert remap(mm, 0, 600, 700, MAYMOVE) % PMD_SIZE == 0


class TestFixed:
    """What is at the new place goes first."""

    def test_it_replaces_what_is_there(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        mmap(mm, 4, READ, at=page(9))
        held = write_pages(mm, 0, 2)
        assert remap(mm, 0, 2, 2, TO, page(10)) == page(10)
        assert layout(mm) == [(9, 1, READ), (10, 2, RW), (12, 1, READ)]
        assert frames(mm, page(10), 2) == held

    def test_it_shrinks_on_the_way(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        held = write_pages(mm, 0, 4)
        remap(mm, 0, 4, 1, TO, page(10))
        assert layout(mm) == [(10, 1, RW)]
        assert frames(mm, page(10), 2) == [held[0], 0]

    def test_it_grows_on_the_way(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        held = write_pages(mm, 0, 1)
        remap(mm, 0, 1, 3, TO, page(10))
        assert layout(mm) == [(10, 3, RW)]
        assert frames(mm, page(10), 3) == [*held, 0, 0]


class TestOldSizeZero:
    """A second mapping of the same shared pages."""

    @pytest.mark.parametrize("kind", ["file", "anonymous"])
    def test_it_is_mapped_a_second_time(self, machine: Machine, mm: MmStruct, kind: str) -> None:
        if kind == "file":
            mmap(mm, 3, RW, SHARED, at=BASE, file=machine.new_file(bytes(3 * PAGE_SIZE))[0])
        else:
            mmap(mm, 3, RW, SHARED_ANON, at=BASE)
        store(mm, page(1), b"old")
        new = remap(mm, 1, 0, 2, MAYMOVE)
        assert layout(mm)[0] == (0, 3, RW)
        assert load(mm, new, 3) == b"old"
        store(mm, new + PAGE_SIZE, b"new")
        assert load(mm, page(2), 3) == b"new"
        assert pfn_of(mm, new) == pfn_of(mm, page(1))

    def test_to_a_place(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW, SHARED_ANON, at=BASE)
        store(mm, BASE, b"x")
        assert remap(mm, 0, 0, 1, TO, page(8)) == page(8)
        assert load(mm, page(8)) == b"x"
        assert [(at, pages) for at, pages, _ in layout(mm)] == [(0, 1), (8, 1)]


def test_an_empty_table_has_one_at_the_new_place(mm: MmStruct) -> None:
    """Source: Linux v6.8 mm/mremap.c:move_page_tables(): whether the old table holds an entry is not asked."""
    mmap(mm, 2, at=page(0))
    store(mm, page(0), b"x")
    do_madvise(mm, page(0), 2 * PAGE_SIZE, Madv.DONTNEED)
    tables = mm.page_table.table_pages
    to = page(0) + 5 * PMD_SIZE
    do_mremap(mm, page(0), 2 * PAGE_SIZE, 2 * PAGE_SIZE, TO, to, privileged=False)
    assert mm.page_table.find_pte(to) is not None
    # The old one has gone with the last mapping in its 2 MiB.
    assert mm.page_table.table_pages == tables
