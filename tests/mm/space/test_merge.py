"""Which VMAs become one: Linux's cases 1 to 8, and what keeps neighbours apart."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_READ, VM_WRITE
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import (
    ANON,
    EXEC,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    errno_of,
    layout,
    load,
    mmap,
    page,
    store,
    vma_at,
)


def protect(mm: MmStruct, first: int, count: int, prot: int) -> None:
    do_mprotect(mm, page(first), count * PAGE_SIZE, prot)


class TestNewMappings:
    """Cases 1 to 3: nothing is where the new mapping comes."""

    def test_between_two_that_agree(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, at=page(4))
        mmap(mm, 2, at=page(2))
        assert layout(mm) == [(0, 6, RW)]

    def test_above_one(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, at=page(2))
        assert layout(mm) == [(0, 4, RW)]

    def test_below_one(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(2))
        mmap(mm, 2, at=page(0))
        assert layout(mm) == [(0, 4, RW)]
        assert vma_at(mm, page(0)).pgoff == page(0) // PAGE_SIZE

    def test_no_merge_with_other_rights(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, READ, at=page(2))
        mmap(mm, 2, at=page(4))
        assert layout(mm) == [(0, 2, RW), (2, 2, READ), (4, 2, RW)]

    def test_no_merge_with_other_flags(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, RW, ANON | Map.NORESERVE.value, at=page(2))
        assert len(layout(mm)) == 2

    def test_no_merge_across_a_hole(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, at=page(3))
        assert len(layout(mm)) == 2

    def test_shared_anonymous_memory_is_a_file_of_its_own(self, mm: MmStruct) -> None:
        mmap(mm, 2, RW, SHARED_ANON, at=page(0))
        mmap(mm, 2, RW, SHARED_ANON, at=page(2))
        assert len(layout(mm)) == 2

    @pytest.mark.parametrize("flags", [SHARED, PRIVATE])
    def test_a_file_merges_where_its_offsets_go_on(self, machine: Machine, mm: MmStruct, flags: int) -> None:
        file, _ = machine.new_file(bytes(8 * PAGE_SIZE))
        mmap(mm, 2, RW, flags, at=page(0), file=file, pgoff=1)
        mmap(mm, 2, RW, flags, at=page(4), file=file, pgoff=5)
        assert len(layout(mm)) == 2
        mmap(mm, 2, RW, flags, at=page(2), file=file, pgoff=3)
        assert layout(mm) == [(0, 6, RW)]
        assert vma_at(mm, page(0)).pgoff == 1
        mmap(mm, 2, RW, flags, at=page(6), file=file, pgoff=1)
        assert len(layout(mm)) == 2

    def test_the_same_file_opened_twice_does_not_merge(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(8 * PAGE_SIZE))
        other, _ = machine.new_file(bytes(8 * PAGE_SIZE))
        mmap(mm, 2, RW, SHARED, at=page(0), file=file)
        mmap(mm, 2, RW, SHARED, at=page(2), file=other, pgoff=2)
        assert len(layout(mm)) == 2

    def test_pages_and_their_owner_come_along(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        store(mm, page(0), b"low")
        owner = vma_at(mm, page(0)).anon_vma
        mmap(mm, 1, at=page(1))
        store(mm, page(1), b"up")
        assert layout(mm) == [(0, 2, RW)]
        assert vma_at(mm, page(1)).anon_vma is owner
        assert (load(mm, page(0), 3), load(mm, page(1), 2)) == (b"low", b"up")

    def test_two_owners_stay_apart_and_the_next_one_wins(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, at=page(2))
        store(mm, page(0), b"x")
        store(mm, page(2), b"x")
        mmap(mm, 1, at=page(1))
        assert layout(mm) == [(0, 1, RW), (1, 2, RW)]


class TestChangedParts:
    """Cases 4 to 8: a part of a VMA gets other flags, and joins a neighbour that has them."""

    @pytest.fixture(autouse=True)
    def _around(self, mm: MmStruct) -> None:
        """|RRRR|WWWW|RRRR|, four pages each."""
        mmap(mm, 12, READ, at=page(0))
        protect(mm, 4, 4, RW)
        assert layout(mm) == [(0, 4, READ), (4, 4, RW), (8, 4, READ)]

    def test_case_4_the_next_grows_down_over_the_end(self, mm: MmStruct) -> None:
        protect(mm, 6, 2, READ)
        assert layout(mm) == [(0, 4, READ), (4, 2, RW), (6, 6, READ)]

    def test_case_5_the_previous_grows_up_over_the_start(self, mm: MmStruct) -> None:
        protect(mm, 4, 2, READ)
        assert layout(mm) == [(0, 6, READ), (6, 2, RW), (8, 4, READ)]

    def test_case_6_all_three_become_one(self, mm: MmStruct) -> None:
        protect(mm, 4, 4, READ)
        assert layout(mm) == [(0, 12, READ)]

    def test_case_7_the_previous_alone_agrees(self, mm: MmStruct) -> None:
        protect(mm, 8, 4, 0)
        protect(mm, 4, 4, READ)
        assert layout(mm) == [(0, 8, READ), (8, 4, 0)]

    def test_case_8_the_next_alone_agrees(self, mm: MmStruct) -> None:
        protect(mm, 0, 4, 0)
        protect(mm, 4, 4, READ)
        assert layout(mm) == [(0, 4, 0), (4, 8, READ)]

    def test_nobody_agrees(self, mm: MmStruct) -> None:
        protect(mm, 4, 4, 0)
        assert layout(mm) == [(0, 4, READ), (4, 4, 0), (8, 4, READ)]

    def test_a_middle_part_is_cut_out(self, mm: MmStruct) -> None:
        protect(mm, 5, 2, READ)
        assert layout(mm) == [(0, 4, READ), (4, 1, RW), (5, 2, READ), (7, 1, RW), (8, 4, READ)]

    def test_over_several_vmas(self, mm: MmStruct) -> None:
        protect(mm, 2, 8, RW)
        assert layout(mm) == [(0, 2, READ), (2, 8, RW), (10, 2, READ)]

    def test_counters_follow(self, mm: MmStruct) -> None:
        protect(mm, 4, 2, READ)
        assert (mm.total_vm, mm.data_vm, mm.map_count) == (12, 2, 3)

    def test_offsets_follow(self, mm: MmStruct) -> None:
        protect(mm, 6, 2, READ)
        assert [vma.pgoff for vma in mm.vmas] == [vma.start // PAGE_SIZE for vma in mm.vmas]


class TestOwners:
    """What the anon_vma of each side allows, as v6.8 has it."""

    def test_halves_of_one_owner_join_again(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=page(0))
        store(mm, page(0), b"x")
        protect(mm, 2, 2, READ)
        protect(mm, 2, 2, RW)
        assert layout(mm) == [(0, 4, RW)]

    def test_the_untouched_joins_the_touched(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, READ, at=page(2))
        store(mm, page(0), b"x")
        protect(mm, 2, 2, RW)
        assert layout(mm) == [(0, 4, RW)]

    def test_the_touched_does_not_join_the_untouched(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, at=page(4))
        store(mm, page(4), b"x")
        mmap(mm, 2, READ, at=page(2))
        protect(mm, 4, 2, READ)
        protect(mm, 4, 2, READ)
        assert layout(mm) == [(0, 2, RW), (2, 2, READ), (4, 2, READ)]

    def test_a_fault_takes_the_neighbours_owner_and_they_can_join_later(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        mmap(mm, 2, RW | EXEC, at=page(2))
        store(mm, page(0), b"x")
        store(mm, page(2), b"x")
        assert vma_at(mm, page(0)).anon_vma is vma_at(mm, page(2)).anon_vma
        protect(mm, 2, 2, RW)
        assert layout(mm) == [(0, 4, RW)]

    def test_after_a_fork_a_new_mapping_stays_apart(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        store(mm, page(0), b"x")
        child = machine.fork(mm)
        mmap(child, 2, at=page(2))
        assert layout(child) == [(0, 2, RW), (2, 2, RW)]
        mmap(mm, 2, at=page(2))
        assert layout(mm) == [(0, 4, RW)]


def test_a_split_needs_room_in_the_map_count(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 6, at=page(0))
    machine.sysctl.max_map_count = 1
    assert errno_of(lambda: protect(mm, 2, 4, READ)) == errno.ENOMEM
    assert layout(mm) == [(0, 6, RW)]
    machine.sysctl.max_map_count = 2
    assert errno_of(lambda: protect(mm, 2, 2, READ)) == errno.ENOMEM
    assert [(first, count) for first, count, _ in layout(mm)] == [(0, 2), (2, 4)]
    assert [vma.vm_flags & (VM_READ | VM_WRITE) for vma in mm.vmas] == [RW, RW]
    machine.sysctl.max_map_count = 4
    protect(mm, 2, 2, READ)
    assert layout(mm) == [(0, 2, RW), (2, 2, READ), (4, 2, RW)]
