"""Files in memory with a real file behind them: memory files and those of a tmpfs, whose pages go to the swap file."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from signal import SIGBUS

import pytest

from kerneld.fs.proc_smaps import shmem_swap_usage
from kerneld.hw.paging import PTE_RW, PTE_UNNOTICED
from kerneld.mm.calls.clear_refs import ClearRefs, clear_refs
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mincore import do_mincore
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.files.file import File
from kerneld.mm.frames.frames import PG_DIRTY, PG_SWAPBACKED
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.space.pagewalk import FEW_ENTRIES
from kerneld.mm.space.rss import Rss
from kerneld.mm.space.truncate import punch_hole, truncate_pagecache
from kerneld.mm.space.writeback import do_msync
from shared.uapi.mman import Madv, Ms
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import (
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    FakeBacking,
    Machine,
    checked,
    entry,
    load,
    mmap,
    page,
    pfn_of,
    signal_of,
    store,
    vma_at,
)

PAGES = 6
LENGTH = PAGES * PAGE_SIZE
HOLES = {4, 5}
LONG_PAGES = FEW_ENTRIES + 1


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


@pytest.fixture
def mm(machine: Machine) -> MmStruct:
    return machine.new_mm()


@pytest.fixture
def memory(machine: Machine) -> tuple[File, FakeBacking]:
    """A file whose last two pages are holes."""
    file, backing = machine.new_file(
        b"".join(bytes([n + 1]) * PAGE_SIZE for n in range(4)) + bytes(8192), is_shmem=True
    )
    backing.holes |= HOLES
    return file, backing


def mapped(mm: MmStruct) -> list[int]:
    return [number for number in range(PAGES) if entry(mm, page(number))]


def pageout(mm: MmStruct, first: int = 0, pages: int = PAGES) -> None:
    do_madvise(mm, page(first), pages * PAGE_SIZE, Madv.PAGEOUT)


class TestWhatKindOfPages:
    @pytest.mark.parametrize("flags", [PRIVATE, SHARED])
    def test_they_count_as_memory(self, mm: MmStruct, memory: tuple[File, FakeBacking], flags: int) -> None:
        mmap(mm, PAGES, RW, flags, at=BASE, file=memory[0])
        load(mm, BASE)
        assert (mm.rss.counts[Rss.SHMEM], mm.rss.counts[Rss.FILE], mm.rss.counts[Rss.ANON]) == (4, 0, 0)
        assert mm.frames.flags_at[pfn_of(mm, BASE)] & PG_SWAPBACKED

    def test_around_a_fault_no_hole_is_filled(self, mm: MmStruct, memory: tuple[File, FakeBacking]) -> None:
        mmap(mm, PAGES, READ, SHARED, at=BASE, file=memory[0])
        load(mm, page(1))
        assert mapped(mm) == [0, 1, 2, 3]
        load(mm, page(5))
        assert mapped(mm) == [0, 1, 2, 3, 5]

    def test_what_has_been_written_to_is_dirty_and_a_hole_is_not(
        self, mm: MmStruct, memory: tuple[File, FakeBacking]
    ) -> None:
        file, backing = memory
        backing.data[PAGE_SIZE : 2 * PAGE_SIZE] = bytes(PAGE_SIZE)
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        for number in range(PAGES):
            load(mm, page(number))
        assert set(file.mapping.dirty) == {0, 1, 2, 3}
        assert not file.mapping.unsaved
        store(mm, page(5), b"x")
        assert set(file.mapping.dirty) == {0, 1, 2, 3}  # only the entry is dirty
        assert set(file.mapping.unsaved) == {5}
        do_madvise(mm, page(5), PAGE_SIZE, Madv.DONTNEED)
        assert set(file.mapping.dirty) == {0, 1, 2, 3, 5}
        assert set(file.mapping.unsaved) == {5}

    def test_what_was_written_to_the_file_is_not_written_again_when_its_entry_goes(
        self, mm: MmStruct, memory: tuple[File, FakeBacking]
    ) -> None:
        file, backing = memory
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        load(mm, page(5))
        store(mm, page(5), b"x")
        do_msync(mm, page(5), PAGE_SIZE, Ms.SYNC)
        assert backing.data[5 * PAGE_SIZE] == ord("x")
        assert (set(file.mapping.unsaved), 5 in file.mapping.dirty) == (set(), False)
        do_madvise(mm, page(5), PAGE_SIZE, Madv.DONTNEED)
        assert (set(file.mapping.unsaved), 5 in file.mapping.dirty) == (set(), True)
        store(mm, page(5), b"y")
        do_munmap(mm, BASE, LENGTH)
        assert backing.data[5 * PAGE_SIZE] == ord("y")

    def test_each_page_is_promised_when_it_comes(
        self, machine: Machine, mm: MmStruct, memory: tuple[File, FakeBacking]
    ) -> None:
        """Source: Linux v6.8 mm/shmem.c:shmem_acct_block()."""
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=memory[0])
        assert machine.frames.committed_as == 0
        load(mm, BASE)
        assert machine.frames.committed_as == 4
        pageout(mm)
        assert machine.frames.committed_as == 4
        punch_hole(memory[0].mapping, 0, 2)
        assert machine.frames.committed_as == 2
        do_munmap(mm, BASE, LENGTH)
        assert machine.frames.committed_as == 0

    def test_mincore_knows_holes_and_what_is_swapped_out(self, mm: MmStruct, memory: tuple[File, FakeBacking]) -> None:
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=memory[0])
        load(mm, page(5))
        load(mm, page(0))
        pageout(mm, 2, 1)
        assert list(do_mincore(mm, BASE, LENGTH, 99, lambda file: True)) == [1, 1, 0, 1, 0, 1]


class TestWrittenToTheFile:
    def test_msync_writes_and_leaves_pages_dirty(self, mm: MmStruct, memory: tuple[File, FakeBacking]) -> None:
        file, backing = memory
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        store(mm, page(2), b"new")
        do_msync(mm, BASE, LENGTH, Ms.SYNC)
        assert backing.data[2 * PAGE_SIZE :][:4] == b"new\3"
        assert mm.frames.flags_at[pfn_of(mm, page(2))] & PG_DIRTY
        assert not entry(mm, page(2)) & PTE_RW
        do_msync(mm, BASE, LENGTH, Ms.SYNC)
        assert len(backing.writes) == 1
        store(mm, page(2), b"newer")
        do_msync(mm, BASE, LENGTH, Ms.SYNC)
        assert backing.data[2 * PAGE_SIZE :][:6] == b"newer\3"

    @pytest.mark.parametrize("is_tracked", [False, True])
    @pytest.mark.parametrize("pages", [1, LONG_PAGES])
    def test_a_store_after_the_rights_went_and_came_back(self, machine: Machine, is_tracked: bool, pages: int) -> None:
        """The entry has stayed dirty, but the file has the page. With few entries and with many; and while soft-dirty
        pages are looked for, where the entry gets the right to write because it is dirty (mm/mprotect.c)."""
        mm = machine.new_mm()
        file, backing = machine.new_file(bytes(LONG_PAGES * PAGE_SIZE), is_shmem=True)
        mmap(mm, LONG_PAGES, RW, SHARED, at=BASE, file=file)
        if is_tracked:
            run_at_once(clear_refs(mm, ClearRefs.SOFT_DIRTY))
        store(mm, BASE, b"one")
        do_msync(mm, BASE, PAGE_SIZE, Ms.SYNC)
        do_mprotect(mm, BASE, pages * PAGE_SIZE, READ)
        do_mprotect(mm, BASE, pages * PAGE_SIZE, RW)
        assert entry(mm, BASE) & (PTE_RW | PTE_UNNOTICED)  # on Linux it is writable
        machine.check()
        store(mm, BASE, b"two")
        do_msync(mm, BASE, PAGE_SIZE, Ms.SYNC)
        assert backing.data[:3] == b"two"

    def test_what_was_only_read_is_not_written(self, mm: MmStruct, memory: tuple[File, FakeBacking]) -> None:
        file, backing = memory
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        load(mm, BASE)
        do_munmap(mm, BASE, LENGTH)
        assert backing.writes == []

    @pytest.mark.parametrize("how", ["msync", "munmap"])
    def test_a_page_that_is_in_the_swap_file(self, mm: MmStruct, memory: tuple[File, FakeBacking], how: str) -> None:
        file, backing = memory
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        store(mm, page(1), b"out")
        pageout(mm)
        assert set(file.mapping.swapped) == {1}
        if how == "msync":
            do_msync(mm, BASE, LENGTH, Ms.SYNC)
            assert set(file.mapping.swapped) == {1}
            assert backing.data[PAGE_SIZE:][:4] == b"out\2"
            assert load(mm, page(1), 4) == b"out\2"
        do_munmap(mm, BASE, LENGTH)
        assert backing.data[PAGE_SIZE:][:4] == b"out\2"
        assert len(backing.writes) == 1


class TestSwappedOut:
    def test_pageout_swaps_what_is_dirty_and_drops_a_hole(self, mm: MmStruct, memory: tuple[File, FakeBacking]) -> None:
        """Source: Linux v6.8 mm/shmem.c:shmem_writepage()."""
        file, backing = memory
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        load(mm, BASE)
        load(mm, page(4))
        store(mm, page(5), b"filled")
        pageout(mm)
        assert mapped(mm) == []
        assert (set(file.mapping.swapped), list(file.mapping.pages)) == ({0, 1, 2, 3, 5}, [])
        backing.data[:] = bytes(LENGTH)
        assert load(mm, BASE) == b"\1"
        assert mapped(mm) == [0]
        assert load(mm, page(5), 6) == b"filled"
        assert set(file.mapping.dirty) == {0, 5}

    def test_another_process_finds_it(self, machine: Machine, mm: MmStruct, memory: tuple[File, FakeBacking]) -> None:
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=memory[0])
        store(mm, BASE, b"both")
        child = machine.fork(mm)
        pageout(mm)
        assert load(child, BASE, 4) == b"both"
        store(child, BASE, b"BOTH")
        assert load(mm, BASE, 4) == b"BOTH"

    @pytest.mark.parametrize(("flags", "pages"), [(SHARED, 4), (PRIVATE, 3)])
    def test_smaps_counts_it_where_no_copy_is(
        self, machine: Machine, mm: MmStruct, memory: tuple[File, FakeBacking], flags: int, pages: int
    ) -> None:
        mmap(mm, PAGES, RW, flags, at=BASE, file=memory[0])
        load(mm, BASE)
        store(mm, page(1), b"own")
        machine.reclaim_all()
        assert set(memory[0].mapping.swapped) == {0, 1, 2, 3}
        assert shmem_swap_usage(mm, vma_at(mm, BASE)) == pages * PAGE_SIZE

    def test_without_room_it_stays(self, mm: MmStruct, memory: tuple[File, FakeBacking]) -> None:
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=memory[0])
        load(mm, BASE)
        slots = mm.frames.swap.get_swap_pages(mm.frames.swap.total_pages)
        mm.frames.swap.count[slots] = 1
        pageout(mm)
        assert (mapped(mm), set(memory[0].mapping.pages)) == ([], {0, 1, 2, 3})
        for slot in slots.tolist():
            mm.frames.swap.swap_free(slot)

    @pytest.mark.parametrize("broken", [False, True])
    def test_a_file_that_is_cut_in_such_a_page(
        self, mm: MmStruct, memory: tuple[File, FakeBacking], monkeypatch: pytest.MonkeyPatch, broken: bool
    ) -> None:
        """Source: Linux v6.8 mm/shmem.c:shmem_undo_range()."""
        file, backing = memory
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        store(mm, page(1), b"abc")
        store(mm, page(3), b"gone")
        pageout(mm)
        del backing.data[PAGE_SIZE + 2 :]

        def fail(slot: int) -> bytes:
            raise OSError(errno.EIO, "swap")

        with monkeypatch.context() as patch:
            if broken:
                patch.setattr(mm.frames.swap, "read_page", fail)
            truncate_pagecache(file.mapping, len(backing.data))
        backing.data.extend(bytes(3 * PAGE_SIZE))
        assert load(mm, page(1), 4) == (b"\2\2\0\0" if broken else b"ab\0\0")
        assert load(mm, page(3), 4) == bytes(4)
        assert signal_of(lambda: load(mm, page(5))) == SIGBUS

    def test_a_swap_file_that_cannot_be_read_is_told_by_msync(
        self, mm: MmStruct, memory: tuple[File, FakeBacking], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file, _ = memory
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        store(mm, BASE, b"lost")
        pageout(mm)

        def fail(slot: int) -> bytes:
            raise OSError(errno.EIO, "swap")

        monkeypatch.setattr(mm.frames.swap, "read_page", fail)
        file.mapping.writeback()
        assert file.mapping.take_error() == errno.EIO
        assert signal_of(lambda: load(mm, BASE)) == SIGBUS
