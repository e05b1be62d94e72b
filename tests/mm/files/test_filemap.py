"""The page cache: what is read and when, and when dirty pages reach the file."""

from __future__ import annotations

import errno
import itertools

import pytest

from kerneld.hw.paging import PTE_DIRTY, PTE_RW
from kerneld.mm.calls.mremap import mremap_in_pieces
from kerneld.mm.frames.frames import PG_DIRTY, PG_REFERENCED
from kerneld.mm.space import pace
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap, munmap_in_pieces
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.space.truncate import punch_hole
from kerneld.mm.space.writeback import do_msync
from shared.uapi.mman import Map, Mremap, Ms
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import (
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    entry,
    errno_of,
    load,
    mmap,
    page,
    store,
)

MOVE = (Mremap.MAYMOVE | Mremap.FIXED).value
SYNC, ASYNC, INVALIDATE = Ms.SYNC.value, Ms.ASYNC.value, Ms.INVALIDATE.value


class TestCache:
    """Pages are read once, kept while anything maps the file, and dropped after that."""

    def test_a_page_is_read_once(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 20 * PAGE_SIZE)
        mmap(mm, 20, READ, SHARED, at=BASE, file=file)
        load(mm, page(3))
        load(mm, page(7))
        load(mm, page(18))
        assert backing.reads == [(0, 16 * PAGE_SIZE), (16 * PAGE_SIZE, 4 * PAGE_SIZE)]

    def test_what_is_cached_is_not_read_over(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 16 * PAGE_SIZE)
        mmap(mm, 16, RW, SHARED, at=BASE, file=file)
        store(mm, page(3), b"new")
        load(mm, page(4))
        assert load(mm, page(3), 4) == b"newx"
        assert len(file.mapping.pages) == 16
        assert backing.reads[0] == (3 * PAGE_SIZE, PAGE_SIZE)

    def test_it_goes_with_the_last_mapping(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * PAGE_SIZE)
        free = machine.frames.free_pages
        for at in (0, 4):
            mmap(mm, 1, READ, SHARED, at=page(at), file=file)
            load(mm, page(at))
        do_munmap(mm, page(0), PAGE_SIZE)
        assert (len(file.mapping.pages), backing.releases) == (1, 0)
        do_munmap(mm, page(4), PAGE_SIZE)
        assert (len(file.mapping.pages), backing.releases) == (0, 1)
        assert machine.frames.free_pages == free

    def test_parts_of_one_mapping_are_users_each(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 3 * PAGE_SIZE)
        mmap(mm, 3, READ, SHARED, at=BASE, file=file)
        do_munmap(mm, page(1), PAGE_SIZE)
        do_munmap(mm, page(0), PAGE_SIZE)
        assert backing.releases == 0
        do_munmap(mm, page(2), PAGE_SIZE)
        assert backing.releases == 1

    def test_a_file_that_shrinks_while_it_is_read(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 2 * PAGE_SIZE)
        mmap(mm, 2, READ, SHARED, at=BASE, file=file)
        size = backing.size_bytes
        backing.size_bytes = lambda: 2 * PAGE_SIZE  # type: ignore[method-assign]
        del backing.data[100:]
        assert load(mm, page(0) + 98, 4) == b"xx\0\0"
        assert load(mm, page(1)) == b"\0"
        backing.size_bytes = size  # type: ignore[method-assign]


class TestWriteback:
    """Shared dirty pages reach the file on munmap, exit and msync; private ones never."""

    def test_on_munmap(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 3 * PAGE_SIZE)
        mmap(mm, 3, RW, SHARED, at=BASE, file=file)
        store(mm, page(1), b"new")
        do_munmap(mm, page(1), PAGE_SIZE)
        assert backing.writes == [(PAGE_SIZE, PAGE_SIZE)]
        assert backing.data[PAGE_SIZE : PAGE_SIZE + 4] == b"newx"

    def test_on_exit(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 3 * PAGE_SIZE)
        mmap(mm, 3, RW, SHARED, at=BASE, file=file)
        store(mm, page(2), b"new")
        load(mm, page(0))
        machine.exit(mm)
        assert backing.writes == [(2 * PAGE_SIZE, PAGE_SIZE)]

    @pytest.mark.parametrize("how", ["munmap", "in pieces", "exit"])
    def test_who_still_maps_a_page_sees_nothing_of_it(self, machine: Machine, mm: MmStruct, how: str) -> None:
        """On Linux an unmap writes nothing: the page stays dirty, and the next store needs no fault."""
        file, backing = machine.new_file(b"x" * 2 * PAGE_SIZE)
        other = machine.new_mm()
        for each in (mm, other):
            mmap(each, 2, RW, SHARED, at=BASE, file=file)
            store(each, BASE, b"new")
        before = entry(other, BASE)
        assert before & PTE_RW
        assert before & PTE_DIRTY
        if how == "exit":
            machine.exit(mm)
        elif how == "munmap":
            do_munmap(mm, BASE, 2 * PAGE_SIZE)
        else:
            run_at_once(munmap_in_pieces(mm, BASE, 2 * PAGE_SIZE))
        assert backing.data[:4] == b"newx"
        assert entry(other, BASE) == before
        assert set(file.mapping.dirty) == {0}

    @pytest.mark.parametrize("call", ["munmap", "mremap"])
    def test_no_page_is_written_twice_or_between_two_pieces_with_others(
        self, machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        """Of a page that another process maps too it looked as if it had to be written again, all in one piece.

        Memory that moves stays mapped, and nothing is written.
        """
        file, backing = machine.new_file(b"x" * PMD_SIZE)
        other = machine.new_mm()
        for each in (mm, other):
            mmap(each, PMD_SIZE // PAGE_SIZE, RW, SHARED, at=BASE, file=file)
            for number in range(PMD_SIZE // PAGE_SIZE):
                store(each, page(number), b"new")
        monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
        seen = [0]
        to = BASE + 64 * PMD_SIZE
        steps = (
            munmap_in_pieces(mm, BASE, PMD_SIZE)
            if call == "munmap"
            else mremap_in_pieces(mm, BASE, PMD_SIZE, PMD_SIZE, MOVE, to, privileged=True)
        )
        for _ in steps:
            seen.append(len(backing.writes))
        seen.append(len(backing.writes))
        assert max(after - before for before, after in itertools.pairwise(seen)) <= 1
        assert len(backing.writes) == (PMD_SIZE // PAGE_SIZE if call == "munmap" else 0)

    def test_never_past_the_end(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 100)
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        store(mm, BASE + 98, b"abcd")
        do_munmap(mm, BASE, PAGE_SIZE)
        assert bytes(backing.data) == b"x" * 98 + b"ab"

    def test_pages_that_the_file_has_lost(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 2 * PAGE_SIZE)
        mmap(mm, 2, RW, SHARED, at=BASE, file=file)
        store(mm, page(1), b"new")
        del backing.data[PAGE_SIZE:]
        do_munmap(mm, BASE, 2 * PAGE_SIZE)
        assert backing.writes == []

    def test_private_writes_never(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * PAGE_SIZE)
        mmap(mm, 1, RW, PRIVATE, at=BASE, file=file)
        store(mm, BASE, b"new")
        do_msync(mm, BASE, PAGE_SIZE, SYNC)
        do_munmap(mm, BASE, PAGE_SIZE)
        assert backing.writes == []

    def test_a_page_is_clean_after_it_and_dirty_after_the_next_store(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 2 * PAGE_SIZE)
        other = machine.new_mm()
        mmap(mm, 2, RW, SHARED, at=BASE, file=file)
        mmap(other, 1, RW, SHARED, at=page(9), file=file, pgoff=1)
        store(mm, page(1), b"one")
        store(other, page(9) + 3, b"two")
        do_msync(mm, BASE, 2 * PAGE_SIZE, SYNC)
        machine.check()
        assert backing.data[PAGE_SIZE : PAGE_SIZE + 7] == b"onetwox"
        assert set(file.mapping.dirty) == set()
        assert not (entry(mm, page(1)) | entry(other, page(9))) & (PTE_RW | PTE_DIRTY)
        assert not machine.frames.flags[file.mapping.pages[1]] & PG_DIRTY
        store(other, page(9), b"again")
        assert set(file.mapping.dirty) == {1}
        do_msync(mm, page(1), PAGE_SIZE, SYNC)
        assert backing.data[PAGE_SIZE : PAGE_SIZE + 7] == b"againox"
        assert len(backing.writes) == 2

    def test_only_the_range_that_is_asked_for(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 4 * PAGE_SIZE)
        mmap(mm, 3, RW, SHARED, at=BASE, file=file, pgoff=1)
        for number in range(3):
            store(mm, page(number), b"new")
        do_msync(mm, page(1), 1, SYNC)
        assert backing.writes == [(2 * PAGE_SIZE, PAGE_SIZE)]
        assert set(file.mapping.dirty) == {1, 3}

    def test_a_failure_is_told_once(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * PAGE_SIZE)
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        store(mm, BASE, b"new")
        backing.fail = errno.ENOSPC
        assert errno_of(lambda: do_msync(mm, BASE, PAGE_SIZE, SYNC)) == errno.ENOSPC
        do_msync(mm, BASE, PAGE_SIZE, SYNC)
        backing.fail = 0

    def test_shared_anonymous_memory_has_no_file(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW, SHARED_ANON, at=BASE)
        store(mm, BASE, b"x")
        do_msync(mm, BASE, PAGE_SIZE, SYNC)
        assert load(mm, BASE) == b"x"
        assert entry(mm, BASE) & PTE_RW

    def test_a_dirty_page_is_not_forgotten_by_the_table_that_goes(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 20 * PAGE_SIZE)
        other = machine.new_mm()
        mmap(mm, 20, RW, SHARED, at=BASE, file=file)
        mmap(other, 20, READ, SHARED, at=BASE, file=file)
        for number in range(20):
            store(mm, page(number), b"new")
        machine.exit(mm)
        assert load(other, page(19), 4) == b"newx"
        assert {offset // PAGE_SIZE for offset, _ in backing.writes} == set(range(20))
        machine.check()


def test_a_punched_hole_reads_zero_for_all_and_copies_stay(machine: Machine, mm: MmStruct) -> None:
    file, backing = machine.new_file(b"x" * 4 * PAGE_SIZE)
    other = machine.new_mm()
    mmap(mm, 4, RW, SHARED, at=BASE, file=file)
    mmap(other, 4, RW, PRIVATE, at=BASE, file=file)
    store(mm, page(1), b"dirty")
    store(other, page(1), b"mine")
    load(other, page(2))
    punch_hole(file.mapping, 1, 3)
    machine.check()
    assert [load(mm, page(number)) for number in range(4)] == [b"x", b"\0", b"\0", b"x"]
    assert [load(other, page(number)) for number in range(4)] == [b"x", b"m", b"\0", b"x"]
    assert bytes(backing.data[PAGE_SIZE : 3 * PAGE_SIZE]) == bytes(2 * PAGE_SIZE)
    backing.fail = errno.EOPNOTSUPP
    assert errno_of(lambda: punch_hole(file.mapping, 0, 1)) == errno.EOPNOTSUPP
    backing.fail = 0
    assert load(mm, page(0)) == b"x"


class TestMsync:
    """The checks of msync."""

    @pytest.mark.parametrize(
        ("start", "length", "flags", "expected"),
        [
            (BASE + 1, PAGE_SIZE, SYNC, errno.EINVAL),
            (BASE, PAGE_SIZE, SYNC | ASYNC, errno.EINVAL),
            (BASE, PAGE_SIZE, 8, errno.EINVAL),
            (BASE, (1 << 64) - BASE, SYNC, errno.ENOMEM),
            (page(1), PAGE_SIZE, 0, errno.ENOMEM),
            (page(1), 2 * PAGE_SIZE, ASYNC, errno.ENOMEM),
            (page(6), PAGE_SIZE, ASYNC, errno.ENOMEM),
            (page(4), PAGE_SIZE, INVALIDATE, errno.EBUSY),
        ],
    )
    def test_errors(self, mm: MmStruct, start: int, length: int, flags: int, expected: int) -> None:
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, at=page(2))
        mmap(mm, 1, RW, PRIVATE | Map.ANONYMOUS.value | Map.LOCKED.value, at=page(4))
        assert errno_of(lambda: do_msync(mm, start, length, flags)) == expected

    def test_fine(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        for flags in (0, SYNC, ASYNC, INVALIDATE, SYNC | INVALIDATE):
            do_msync(mm, page(0), 2 * PAGE_SIZE, flags)
        do_msync(mm, page(5), 0, SYNC)
        assert mm.map_count == 1

    def test_a_hole_does_not_keep_the_rest_from_the_file(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 2 * PAGE_SIZE)
        mmap(mm, 2, RW, SHARED, at=page(2), file=file)
        store(mm, page(3), b"new")
        assert errno_of(lambda: do_msync(mm, page(0), 4 * PAGE_SIZE, SYNC)) == errno.ENOMEM
        assert backing.writes == [(PAGE_SIZE, PAGE_SIZE)]


def test_whose_copy_was_made_is_not_marked_as_used(machine: Machine, mm: MmStruct) -> None:
    """Linux: wp_page_copy() flushes the accessed bit of the old entry; a zap passes it on to the page."""
    file, _ = machine.new_file(b"x" * PAGE_SIZE)
    mmap(mm, 1, RW, PRIVATE, at=BASE, file=file)
    load(mm, BASE)
    pfn = file.mapping.pages[0]
    store(mm, BASE, b"y")
    assert not machine.frames.flags_at[pfn] & PG_REFERENCED
    other = machine.new_mm()
    mmap(other, 1, RW, PRIVATE, at=BASE, file=file)
    load(other, BASE)
    machine.exit(other)
    assert machine.frames.flags_at[pfn] & PG_REFERENCED
