"""Tables above the leaf tables that fork and mremap make and move: VmPTE counts each.

Source: Linux v6.8 mm/memory.c:copy_page_range(), mm/mremap.c:move_page_tables(), get_extent(), try_realign_addr().
"""

from __future__ import annotations

import contextlib

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_PRESENT, pte_pfn
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from shared.uapi.mman import Madv, Mremap
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import BASE, RW, SHARED_ANON, Machine, errno_of, load, mmap, page, store

PUD_SIZE, PGD_SIZE = 1 << 30, 1 << 39
FIXED = (Mremap.MAYMOVE | Mremap.FIXED).value
KEEP = FIXED | Mremap.DONTUNMAP.value
AWAY = 0x20_0000_0000_00
"""In another 512 GiB than BASE, and nothing is there."""


def tables(mm: MmStruct, vaddr: int) -> str:
    """Return which tables there are on the way to an address: u for 512 GiB, m for a GiB, t for 2 MiB."""
    words, table, found = mm.frames.ram.words, mm.page_table.root << WORDS_SHIFT, ""
    for name, shift in (("u", 39), ("m", 30), ("t", 21)):
        entry = words[table | vaddr >> shift & 511]
        if not entry & PTE_PRESENT:
            break
        found += name
        table = pte_pfn(entry) << WORDS_SHIFT
    return found


def remap(mm: MmStruct, start: int, length: int, to: int, flags: int = KEEP) -> None:
    assert do_mremap(mm, start, length, length, flags, to, privileged=False) == to


class TestFork:
    """The child gets a table wherever the parent has one within a VMA whose entries are copied."""

    def test_an_empty_leaf_table(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        store(mm, BASE, b"x")
        do_madvise(mm, BASE, PAGE_SIZE, Madv.DONTNEED)
        assert tables(machine.fork(mm), BASE) == tables(mm, BASE) == "umt"

    @pytest.mark.parametrize(("neighbour", "found"), [(PMD_SIZE, "um"), (PUD_SIZE, "u"), (PGD_SIZE, "")])
    def test_only_upper_ones(self, machine: Machine, mm: MmStruct, neighbour: int, found: str) -> None:
        """Of shared memory nothing is copied, so what the child has is the other mapping's alone."""
        mmap(mm, 4, at=BASE)
        store(mm, BASE, b"x")
        mmap(mm, 4, RW, SHARED_ANON, at=BASE + neighbour)
        store(mm, BASE + neighbour, b"x")
        do_mremap(mm, BASE, PAGE_SIZE, PAGE_SIZE, FIXED, AWAY, privileged=False)
        child = machine.fork(mm)
        assert tables(child, BASE)[: len(found)] == found
        assert tables(child, BASE + neighbour) == found
        assert tables(child, AWAY) == "umt"

    def test_a_very_long_mapping(self, machine: Machine, mm: MmStruct) -> None:
        machine.sysctl.overcommit_memory = 1
        mmap(mm, 5 * PGD_SIZE // PAGE_SIZE, at=4 * PGD_SIZE)
        for offset in (0, 3 * PUD_SIZE, 2 * PGD_SIZE + 7 * PUD_SIZE, 5 * PGD_SIZE - PAGE_SIZE):
            store(mm, 4 * PGD_SIZE + offset, b"x")
        do_madvise(mm, 4 * PGD_SIZE + 3 * PUD_SIZE, PAGE_SIZE, Madv.DONTNEED)
        child = machine.fork(mm)
        assert child.page_table.table_pages == mm.page_table.table_pages
        assert tables(child, 4 * PGD_SIZE + 3 * PUD_SIZE) == "umt"

    def test_without_a_frame(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        store(mm, BASE, b"x")
        do_madvise(mm, BASE, PAGE_SIZE, Madv.DONTNEED)
        for allowed in range(4):
            with machine.failing_allocation(allowed):
                assert errno_of(lambda: machine.fork(mm))
        machine.fork(mm)


class TestMremap:
    """A table moves as a whole wherever both places lie alike in it; what Linux makes on the way it makes."""

    def test_a_gib_moves_by_one_entry(self, machine: Machine, mm: MmStruct) -> None:
        machine.sysctl.overcommit_memory = 1
        mmap(mm, 2 * PUD_SIZE // PAGE_SIZE, at=BASE)
        for offset in (0, 5 * PMD_SIZE, PUD_SIZE):
            store(mm, BASE + offset, b"%d" % (offset // PMD_SIZE % 10))
        before = mm.page_table.table_pages
        remap(mm, BASE, 2 * PUD_SIZE, AWAY)
        assert mm.page_table.table_pages == before + 1  # The one that holds the entries for GiBs.
        assert tables(mm, BASE) == "u"
        assert [load(mm, AWAY + offset) for offset in (0, 5 * PMD_SIZE, PUD_SIZE)] == [b"0", b"5", b"2"]
        machine.check()
        remap(mm, AWAY, 2 * PUD_SIZE, BASE + 8 * PUD_SIZE + PMD_SIZE, FIXED)
        assert load(mm, BASE + 8 * PUD_SIZE + 6 * PMD_SIZE) == b"5"

    def test_where_the_new_gib_has_a_table_its_entries_move(self, machine: Machine, mm: MmStruct) -> None:
        machine.sysctl.overcommit_memory = 1
        mmap(mm, PUD_SIZE // PAGE_SIZE, at=BASE)
        mmap(mm, PUD_SIZE // PAGE_SIZE, at=BASE + PUD_SIZE)
        mmap(mm, 1, at=BASE + 2 * PUD_SIZE)
        store(mm, BASE, b"a")
        pages = mm.page_table.table_pages
        remap(mm, BASE, PUD_SIZE, BASE + PUD_SIZE)
        assert mm.page_table.table_pages == pages
        assert (tables(mm, BASE), load(mm, BASE + PUD_SIZE)) == ("u", b"a")

    @pytest.mark.parametrize("alone", [True, False])
    def test_the_first_table_moves_whole_where_nothing_else_is_in_it(self, mm: MmStruct, alone: bool) -> None:
        start = BASE + 500 * PAGE_SIZE
        mmap(mm, 100, at=start)
        for number in (500, 511, 512):
            store(mm, page(number), b"x")
        if not alone:
            mmap(mm, 1, RW, SHARED_ANON, at=BASE)
        before = mm.page_table.table_pages
        remap(mm, start, 100 * PAGE_SIZE, AWAY + 500 * PAGE_SIZE)
        assert mm.page_table.table_pages == before + (3 if alone else 4)
        assert tables(mm, start) == ("um" if alone else "umt")
        assert tables(mm, page(512)) == "umt"  # The end is in the middle of its table: entries move, it stays.

    def test_it_does_not_reach_the_end_of_its_first_table(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=page(8))
        store(mm, page(8), b"x")
        remap(mm, page(8), 4 * PAGE_SIZE, AWAY + 8 * PAGE_SIZE)
        assert tables(mm, page(8)) == "umt"

    def test_a_part_does_not_take_its_neighbours_table(self, mm: MmStruct) -> None:
        mmap(mm, 1024, at=BASE)
        for number in (1, 300, 600):
            store(mm, page(number), b"%d" % (number % 10))
        remap(mm, page(256), 600 * PAGE_SIZE, AWAY + 256 * PAGE_SIZE)
        assert [load(mm, at) for at in (page(1), page(300), AWAY + 600 * PAGE_SIZE)] == [b"1", b"\0", b"0"]

    def test_a_gib_without_entries_here_makes_a_table_for_gibs_there(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW, SHARED_ANON, at=BASE + 4 * PMD_SIZE)
        store(mm, BASE + 4 * PMD_SIZE, b"x")
        mmap(mm, 600, at=BASE)
        remap(mm, BASE, 600 * PAGE_SIZE, AWAY)
        assert tables(mm, AWAY) == "u"
        remap(mm, BASE, PAGE_SIZE, 2 * AWAY + PAGE_SIZE)
        assert tables(mm, 2 * AWAY) == "u"
        mmap(mm, 1, at=3 * AWAY)
        remap(mm, 3 * AWAY, PAGE_SIZE, 3 * AWAY + PGD_SIZE)
        assert tables(mm, 3 * AWAY + PGD_SIZE) == ""

    def test_each_frame_missing_in_turn_leaves_all_where_it_was(self, machine: Machine, mm: MmStruct) -> None:
        machine.sysctl.overcommit_memory = 1
        start, length = BASE + 500 * PAGE_SIZE, 2 * PUD_SIZE + 40 * PAGE_SIZE
        mmap(mm, length // PAGE_SIZE, at=start)
        at = [start, BASE + PMD_SIZE, BASE + PUD_SIZE + 3 * PMD_SIZE, start + length - PAGE_SIZE]
        for number, vaddr in enumerate(at):
            store(mm, vaddr, b"%d" % number)
        for allowed in range(20):
            with machine.failing_allocation(allowed) as failed:
                with contextlib.suppress(SysError):
                    remap(mm, start, length, AWAY + 500 * PAGE_SIZE, FIXED)
                if not failed:
                    break
            machine.check()
            assert [load(mm, vaddr) for vaddr in at] == [b"0", b"1", b"2", b"3"]
        assert [load(mm, vaddr - BASE + AWAY) for vaddr in at] == [b"0", b"1", b"2", b"3"]
        do_munmap(mm, AWAY, length + PMD_SIZE)
        assert mm.page_table.table_pages == 1
