"""Pages of a file that go while they are mapped: by range, in every address space, with and without private copies."""

from __future__ import annotations

import errno
from signal import SIGBUS

import pytest

from kerneld.mm.calls.mlock import do_mlock
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.space.truncate import (
    drop_pages,
    pagecache_isize_extended,
    punch_hole,
    truncate_pagecache,
    unmap_mapping_range,
)
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SIZE
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
    failure,
    load,
    mmap,
    page,
    pfn_of,
    signal_of,
    store,
    vma_at,
)

PAGES = 6


def mapped(mm: MmStruct, first: int = 0, count: int = PAGES) -> list[int]:
    return [number for number in range(count) if entry(mm, page(first + number))]


class TestUnmapMappingRange:
    """Source: Linux v6.8 mm/memory.c:unmap_mapping_pages()."""

    @pytest.mark.parametrize(("first", "last", "left"), [(2, 4, [0, 1, 4, 5]), (0, 99, []), (5, 9, [0, 1, 2, 3, 4])])
    def test_the_range_in_every_address_space(
        self, machine: Machine, mm: MmStruct, first: int, last: int, left: list[int]
    ) -> None:
        file, _ = machine.new_file(bytes(PAGES * PAGE_SIZE))
        other = machine.new_mm()
        for each in (mm, other):
            mmap(each, PAGES, READ, SHARED, at=BASE, file=file)
            load(each, BASE)
        unmap_mapping_range(file.mapping, first, last, even_cows=False)
        assert mapped(mm) == mapped(other) == left
        assert len(file.mapping.pages) == PAGES

    def test_by_the_offset_of_each_mapping(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGES * PAGE_SIZE))
        mmap(mm, 2, READ, SHARED, at=page(0), file=file, pgoff=4)
        mmap(mm, 3, READ, SHARED, at=page(10), file=file, pgoff=1)
        load(mm, page(0))
        load(mm, page(10))
        unmap_mapping_range(file.mapping, 3, 5, even_cows=False)
        assert mapped(mm, 0, 2) == [1]
        assert mapped(mm, 10, 3) == [0, 1]

    @pytest.mark.parametrize("even_cows", [False, True])
    def test_private_copies(self, machine: Machine, mm: MmStruct, even_cows: bool) -> None:
        file, _ = machine.new_file(bytes(PAGES * PAGE_SIZE))
        mmap(mm, PAGES, RW, PRIVATE, at=BASE, file=file)
        load(mm, BASE)
        for number in (1, 3):
            store(mm, page(number), b"mine")
        unmap_mapping_range(file.mapping, 0, 3, even_cows=even_cows)
        assert mapped(mm) == ([3, 4, 5] if even_cows else [1, 3, 4, 5])
        assert load(mm, page(3), 4) == b"mine"

    def test_a_copy_that_is_shared_with_a_child(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, PRIVATE, at=BASE, file=file)
        store(mm, BASE, b"mine")
        child = machine.fork(mm)
        unmap_mapping_range(file.mapping, 0, 1, even_cows=False)
        assert pfn_of(mm, BASE) == pfn_of(child, BASE) != 0
        unmap_mapping_range(file.mapping, 0, 1, even_cows=True)
        assert pfn_of(mm, BASE) == pfn_of(child, BASE) == 0


class Listener:
    """Notes the ranges it is told of."""

    def __init__(self, mm: MmStruct) -> None:
        self.ranges: list[tuple[int, int]] = []
        mm.notifiers.append(self)

    def invalidate_range(self, start: int, end: int) -> None:
        self.ranges.append(((start - BASE) // PAGE_SIZE, (end - BASE) // PAGE_SIZE))

    def release(self) -> None:
        pass

    def exec_mmap(self, new_mm: MmStruct) -> None:
        raise AssertionError("no execve here")


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_a_shadow_table_learns_of_it(machine: Machine, mm: MmStruct, flags: int) -> None:
    """Also of what another process has done."""
    file, _ = machine.new_file(bytes(PAGES * PAGE_SIZE))
    mmap(mm, PAGES, READ, flags, at=BASE, file=file)
    load(mm, BASE)
    listener = Listener(mm)
    punch_hole(file.mapping, 2, 4)
    mm.notifiers.remove(listener)
    assert any(start <= 2 and end >= 4 for start, end in listener.ranges)


class TestDropAndPunch:
    """The pages themselves."""

    def test_drop_gives_frames_back_and_writes_nothing(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(bytes(PAGES * PAGE_SIZE))
        mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
        store(mm, page(1), b"lost")
        store(mm, page(4), b"kept")
        unmap_mapping_range(file.mapping, 0, 2, even_cows=True)
        free = machine.frames.free_pages
        drop_pages(file.mapping, 0, 2)
        assert machine.frames.free_pages == free + 1
        assert (set(file.mapping.pages), set(file.mapping.dirty)) == ({4}, {4})
        machine.exit(mm)
        assert backing.writes == [(4 * PAGE_SIZE, PAGE_SIZE)]

    def test_a_hole_in_shared_anonymous_memory(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 3, RW, SHARED_ANON, at=BASE)
        child = machine.fork(mm)
        for number in range(3):
            store(mm, page(number), b"x")
        file = vma_at(child, BASE).file
        assert file is not None
        punch_hole(file.mapping, 1, 2)
        assert [load(child, page(number)) for number in range(3)] == [b"x", b"\0", b"x"]

    def test_where_the_file_system_cannot_nothing_has_changed(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * PAGE_SIZE)
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        store(mm, BASE, b"y")
        backing.fail = errno.EOPNOTSUPP
        assert errno_of(lambda: punch_hole(file.mapping, 0, 1)) == errno.EOPNOTSUPP
        backing.fail = 0
        assert load(mm, BASE) == b"y"
        assert set(file.mapping.dirty) == {0}


class TestTruncatePagecache:
    """Source: Linux v6.8 mm/truncate.c:truncate_pagecache()."""

    @pytest.mark.parametrize("flags", [SHARED, PRIVATE])
    def test_what_lies_beyond_the_end_is_gone(self, machine: Machine, mm: MmStruct, flags: int) -> None:
        """Once the entries past its end have gone, an access there is SIGBUS; below it goes on."""
        file, backing = machine.new_file(b"f" * 3 * PAGE_SIZE)
        mmap(mm, 3, RW, flags, at=BASE, file=file)
        for number in range(3):
            store(mm, page(number), b"x")
        del backing.data[PAGE_SIZE:]
        truncate_pagecache(file.mapping, PAGE_SIZE)
        machine.check()
        assert mapped(mm) == [0]
        assert load(mm, BASE) == b"x"
        assert signal_of(lambda: load(mm, page(1))) == SIGBUS
        assert signal_of(lambda: store(mm, page(2), b"y")) == SIGBUS

    def test_the_rest_of_the_last_page_reads_as_zeros(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"f" * 2 * PAGE_SIZE)
        mmap(mm, 2, RW, SHARED, at=page(0), file=file)
        mmap(mm, 2, RW, PRIVATE, at=page(10), file=file)
        store(mm, page(10), b"own")
        load(mm, page(0))
        truncate_pagecache(file.mapping, 10)
        assert mapped(mm, 0, 2) == [0]
        assert load(mm, page(0), PAGE_SIZE) == b"f" * 10 + bytes(PAGE_SIZE - 10)
        assert load(mm, page(10), PAGE_SIZE) == b"own" + b"f" * (PAGE_SIZE - 3)

    def test_dirty_pages_past_the_end_are_never_written(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"f" * 2 * PAGE_SIZE)
        mmap(mm, 2, RW, SHARED, at=BASE, file=file)
        store(mm, page(1), b"lost")
        truncate_pagecache(file.mapping, PAGE_SIZE)
        machine.exit(mm)
        assert backing.writes == []

    def test_locked_pages_go_as_well(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"f" * 2 * PAGE_SIZE)
        mmap(mm, 2, RW, PRIVATE, at=BASE, file=file)
        store(mm, page(1), b"x")
        do_mlock(mm, BASE, 2 * PAGE_SIZE, VM_LOCKED, privileged=True)
        free = machine.frames.free_pages
        backing.data.clear()
        truncate_pagecache(file.mapping, 0)
        machine.check()
        # The page of the file, and the copy of it.
        assert (mapped(mm), machine.frames.free_pages) == ([], free + 2)


@pytest.mark.parametrize(("block_bytes", "asks_again"), [(1024, True), (PAGE_SIZE, False)])
def test_the_last_page_of_a_file_that_becomes_longer(
    machine: Machine, mm: MmStruct, block_bytes: int, asks_again: bool
) -> None:
    """With blocks smaller than a page it may need more of them, so the next store faults: it is still dirty."""
    file, backing = machine.new_file(bytes(PAGE_SIZE + 1000))
    mmap(mm, 2, RW, SHARED, at=BASE, file=file)
    store(mm, page(1), b"x")
    backing.data += bytes(PAGE_SIZE)
    run_at_once(pagecache_isize_extended(file.mapping, PAGE_SIZE + 1000, 2 * PAGE_SIZE, block_bytes))
    assert set(file.mapping.dirty) == {1}
    backing.without_room.add(1)
    assert (failure(lambda: store(mm, page(1), b"y")) == SIGBUS) == asks_again
