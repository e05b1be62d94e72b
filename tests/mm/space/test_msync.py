"""msync: errors in order, holes, what is written and what is not. Source: Linux v6.8 mm/msync.c."""

from __future__ import annotations

import errno

import pytest

from kerneld.hw.paging import PTE_DIRTY, PTE_RW
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pages import Pages
from kerneld.mm.space.writeback import do_msync
from shared.uapi.mman import Map, Ms
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import (
    ANON,
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    FakeBacking,
    Machine,
    entry,
    errno_of,
    load,
    mmap,
    page,
    store,
)

ASYNC, INVALIDATE, SYNC = Ms.ASYNC.value, Ms.INVALIDATE.value, Ms.SYNC.value


def msync(mm: MmStruct, first: int, count: int, flags: int = SYNC) -> None:
    do_msync(mm, page(first), count * PAGE_SIZE, flags)


def shared_file(machine: Machine, mm: MmStruct, pages: int, first: int = 0) -> FakeBacking:
    """Map a file of so many pages, shared and writable, and write each page's number into it."""
    file, backing = machine.new_file(bytes(pages * PAGE_SIZE))
    mmap(mm, pages, RW, SHARED, at=page(first), file=file)
    for number in range(pages):
        store(mm, page(first + number), bytes([number + 1]))
    return backing


def written(backing: FakeBacking) -> list[int]:
    return list(backing.data[::PAGE_SIZE])


class TestErrorsInOrder:
    """Arguments, then the range, VMA by VMA."""

    @pytest.mark.parametrize(
        ("start", "length", "flags", "expected"),
        [
            pytest.param(BASE + 1, 0, 8, errno.EINVAL, id="unknown flag"),
            pytest.param(BASE + 1, 0, SYNC, errno.EINVAL, id="not aligned, although the length is 0"),
            pytest.param(BASE, 0, SYNC | ASYNC, errno.EINVAL, id="both, although the length is 0"),
            pytest.param(BASE, (1 << 64) - BASE, SYNC, errno.ENOMEM, id="wraps"),
            pytest.param(BASE, PAGE_SIZE, SYNC, errno.ENOMEM, id="nothing there"),
        ],
    )
    def test_row(self, mm: MmStruct, start: int, length: int, flags: int, expected: int) -> None:
        assert errno_of(lambda: do_msync(mm, start, length, flags)) == expected

    def test_nothing_to_do(self, mm: MmStruct) -> None:
        """No length, or one that wraps to none when it is rounded up."""
        for flags in (0, SYNC, ASYNC, INVALIDATE, SYNC | INVALIDATE, ASYNC | INVALIDATE):
            do_msync(mm, BASE, 0, flags)
            do_msync(mm, BASE, (1 << 64) - 1, flags)
        assert mm.map_count == 0

    def test_invalidate_of_locked_memory(self, machine: Machine, mm: MmStruct) -> None:
        backing = shared_file(machine, mm, 1)
        mmap(mm, 1, RW, ANON | Map.LOCKED.value, at=page(1))
        assert errno_of(lambda: msync(mm, 0, 2, SYNC | INVALIDATE)) == errno.EBUSY
        assert written(backing) == [1]
        msync(mm, 0, 2, SYNC)
        assert errno_of(lambda: msync(mm, 1, 1, INVALIDATE)) == errno.EBUSY
        msync(mm, 0, 1, INVALIDATE)


class TestHoles:
    """What is mapped is written all the same; MS_ASYNC alone stops at the first hole."""

    @pytest.mark.parametrize(
        ("first", "count", "expected"),
        [(0, 6, [1, 2]), (0, 2, [1, 0]), (1, 3, [1, 0]), (5, 2, [0, 0]), (4, 4, [0, 2])],
    )
    def test_sync(self, machine: Machine, mm: MmStruct, first: int, count: int, expected: list[int]) -> None:
        """Page 1 is the first page of a file, page 5 the second."""
        file, backing = machine.new_file(bytes(2 * PAGE_SIZE))
        for number, at in enumerate((1, 5)):
            mmap(mm, 1, RW, SHARED, at=page(at), file=file, pgoff=number)
            store(mm, page(at), bytes([number + 1]))
        covered = all(at in (1, 5) for at in range(first, first + count))
        assert not covered
        assert errno_of(lambda: msync(mm, first, count)) == errno.ENOMEM
        assert written(backing) == (expected if first != 5 else [0, 2])

    def test_async(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, RW, ANON | Map.LOCKED.value, at=page(2))
        assert errno_of(lambda: msync(mm, 0, 3, ASYNC)) == errno.ENOMEM
        assert errno_of(lambda: msync(mm, 0, 3, ASYNC | INVALIDATE)) == errno.EBUSY


class TestWriting:
    """Only MS_SYNC writes, and only what is shared, of a file, dirty and in the range."""

    def test_the_range_alone(self, machine: Machine, mm: MmStruct) -> None:
        backing = shared_file(machine, mm, 4)
        do_msync(mm, page(1), PAGE_SIZE + 1, SYNC)
        assert written(backing) == [0, 2, 3, 0]
        assert [offset for offset, _ in backing.writes] == [PAGE_SIZE, 2 * PAGE_SIZE]

    @pytest.mark.parametrize("flags", [0, ASYNC, INVALIDATE, ASYNC | INVALIDATE])
    def test_no_other_flag_writes(self, machine: Machine, mm: MmStruct, flags: int) -> None:
        backing = shared_file(machine, mm, 1)
        msync(mm, 0, 1, flags)
        assert backing.writes == []

    def test_a_page_is_written_once_until_it_is_dirty_again(self, machine: Machine, mm: MmStruct) -> None:
        backing = shared_file(machine, mm, 1)
        msync(mm, 0, 1)
        assert not entry(mm, BASE) & (PTE_RW | PTE_DIRTY)
        msync(mm, 0, 1)
        assert len(backing.writes) == 1
        store(mm, BASE + 1, b"z")
        assert entry(mm, BASE) & PTE_RW
        msync(mm, 0, 1)
        assert len(backing.writes) == 2
        assert backing.data[1:2] == b"z"

    def test_what_another_process_has_written(self, machine: Machine, mm: MmStruct) -> None:
        backing = shared_file(machine, mm, 1)
        child = machine.fork(mm)
        msync(mm, 0, 1)
        store(child, BASE, b"\x09")
        msync(mm, 0, 1)
        assert written(backing) == [9]
        assert not entry(child, BASE) & PTE_RW

    def test_private_and_anonymous_memory_is_nobodys(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, PRIVATE, at=page(0), file=file)
        mmap(mm, 1, RW, SHARED_ANON, at=page(1))
        mmap(mm, 1, RW, ANON, at=page(2))
        for number in range(3):
            store(mm, page(number), b"x")
        msync(mm, 0, 3)
        assert backing.writes == []
        assert [load(mm, page(number)) for number in range(3)] == [b"x"] * 3

    def test_the_last_page_only_up_to_the_files_end(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(bytes(100))
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        store(mm, BASE + 98, b"abcd")
        msync(mm, 0, 1)
        assert backing.writes == [(0, 100)]
        assert backing.data[98:] == b"ab"

    def test_through_a_mapping_that_cannot_write_itself(self, machine: Machine, mm: MmStruct) -> None:
        """A descriptor opened for reading makes a mapping that is not VM_SHARED: it does not write for others."""
        file, backing = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, SHARED, at=page(0), file=file)
        mmap(mm, 1, READ, SHARED, at=page(4), file=file)
        store(mm, page(0), b"x")
        msync(mm, 4, 1)
        assert written(backing) == [ord("x")]


class TestFailedWrite:
    """The error is told once, and ends the call."""

    def test_it_is_told_once(self, machine: Machine, mm: MmStruct) -> None:
        backing = shared_file(machine, mm, 1)
        backing.fail = errno.ENOSPC
        assert errno_of(lambda: msync(mm, 0, 1)) == errno.ENOSPC
        backing.fail = 0
        msync(mm, 0, 1)

    def test_it_wins_over_a_hole_and_stops_there(self, machine: Machine, mm: MmStruct) -> None:
        first = shared_file(machine, mm, 1, first=0)
        second = shared_file(machine, mm, 1, first=2)
        first.fail = errno.EIO
        assert errno_of(lambda: msync(mm, -1, 4)) == errno.EIO
        assert written(second) == [0]
        first.fail = 0


def test_a_page_that_is_mapped_very_often_is_cleaned_a_table_at_a_time(
    machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, backing = machine.new_file(bytes(3 * PAGE_SIZE))
    shared = [page(number) for number in range(0, 600, 3)]
    for vaddr in shared:
        mmap(mm, 2, RW, SHARED, at=vaddr, file=file, pgoff=1)
    copy = page(601)
    mmap(mm, 1, RW, PRIVATE, at=copy, file=file, pgoff=1)
    store(mm, copy, b"p")
    child = machine.fork(mm)
    for each in (mm, child):
        for vaddr in shared[1:]:  # The first one is never used, so it has no entry.
            store(each, vaddr, b"s")
            store(each, vaddr + PAGE_SIZE, b"t")
    monkeypatch.setattr(Pages, "update_pte", None)
    do_msync(mm, shared[0], PAGE_SIZE, SYNC)
    assert written(backing) == [0, ord("s"), 0]
    for each in (mm, child):
        assert entry(each, shared[0]) == 0
        assert not any(entry(each, vaddr) & (PTE_RW | PTE_DIRTY) for vaddr in shared[1:])
        assert all(entry(each, vaddr + PAGE_SIZE) & PTE_RW and entry(each, vaddr) for vaddr in shared[1:])
    assert entry(mm, copy) & PTE_DIRTY
