"""The pages around a read fault of a file are a favour: where they cannot be had, the one page still can."""

from __future__ import annotations

import errno
from signal import SIGBUS, SIGKILL

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.vm_fault import VM_FAULT_MAJOR
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import (
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    Machine,
    entry,
    load,
    mmap,
    page,
    pfn_of,
    signal_of,
    store,
)

PAGES = 16


def drop(mapping: AddressSpace, first: int, last: int) -> None:
    for index in range(first, last):
        mapping.host.drop(index)


class Listener:
    """Notes the ranges that it is told of."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def invalidate_range(self, start: int, end: int) -> None:
        self.told.append((start, end))

    def release(self) -> None:
        raise AssertionError("nobody exits here")

    def exec_mmap(self, new_mm: MmStruct) -> None:
        raise AssertionError("no execve here")


def contents(pages: int) -> bytes:
    return b"".join(bytes([number]) * PAGE_SIZE for number in range(pages))


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
@pytest.mark.parametrize("left", [1, PAGES - 1])
def test_too_few_frames_for_all_are_enough_for_one(machine: Machine, mm: MmStruct, flags: int, left: int) -> None:
    file, _ = machine.new_file(contents(PAGES))
    mmap(mm, PAGES, READ, flags, at=BASE, file=file)
    mm.page_table.ensure_pte(BASE)
    held = machine.frames.alloc_pages(machine.frames.free_pages - left)
    assert load(mm, page(9)) == bytes([9])
    assert [number for number in range(PAGES) if pfn_of(mm, page(number))] == [9]
    machine.frames.put_pages(held)
    assert load(mm, page(3)) == bytes([3])
    assert all(pfn_of(mm, page(number)) for number in range(PAGES))


def test_what_is_cached_is_mapped_all_the_same(machine: Machine, mm: MmStruct) -> None:
    file, _ = machine.new_file(contents(PAGES))
    mmap(mm, PAGES, READ, SHARED, at=BASE, file=file)
    mm.page_table.ensure_pte(BASE)
    file.mapping.ensure_page(4)
    held = machine.frames.alloc_pages(machine.frames.free_pages - 1)
    assert load(mm, page(9)) == bytes([9])
    assert [number for number in range(PAGES) if entry(mm, page(number))] == [4, 9]
    machine.frames.put_pages(held)


def test_no_frame_even_for_the_one(machine: Machine, mm: MmStruct) -> None:
    file, _ = machine.new_file(contents(PAGES))
    mmap(mm, PAGES, READ, SHARED, at=BASE, file=file)
    mm.page_table.ensure_pte(BASE)
    held = machine.frames.alloc_pages(machine.frames.free_pages)
    assert signal_of(lambda: load(mm, page(9))) == SIGKILL
    machine.frames.put_pages(held)


def test_each_allocation_that_fails_while_others_are_read(machine: Machine, mm: MmStruct) -> None:
    """Whether the read-around came or not: the fault has its page, or says OOM where that page itself has no frame."""
    file, _ = machine.new_file(contents(PAGES))
    mmap(mm, PAGES, READ, SHARED, at=BASE, file=file)
    mm.page_table.ensure_pte(BASE)
    for number in range(2):
        with machine.failing_allocation(number) as failed:
            if number:
                assert load(mm, page(9)) == bytes([9])
            else:
                assert signal_of(lambda: load(mm, page(9))) == SIGKILL
        assert len(failed) == (0 if number else 2)
        machine.check()
        mm.pages.zap_range(BASE, page(PAGES))
        for index in list(file.mapping.pages):
            file.mapping.drop_pages([index])


@pytest.mark.parametrize("order", [range(PAGES), range(PAGES - 1, -1, -1)], ids=["frames in order", "in disorder"])
@pytest.mark.parametrize("absent", [(), (0, 5), (PAGES - 1,)])
def test_all_are_mapped_and_told_at_once(machine: Machine, mm: MmStruct, order: range, absent: tuple[int, ...]) -> None:
    """Whatever frames they are in, and whichever of them may not be mapped."""
    file, _ = machine.new_file(contents(PAGES))
    mmap(mm, PAGES, READ, SHARED, at=BASE, file=file)
    for index in order:
        file.mapping.ensure_page(index)
    for index in absent:
        drop(file.mapping, index, index + 1)
    listener = Listener()
    mm.notifiers.append(listener)
    assert load(mm, page(9)) == bytes([9])
    mm.notifiers.clear()
    found = [number for number in range(PAGES) if number not in absent]
    assert listener.told == [(page(found[0]), page(found[-1] + 1))]
    for number in found:
        pfn = pfn_of(mm, page(number))
        assert pfn == file.mapping.pages[number]
        assert (machine.frames.refcount_at[pfn], machine.frames.mapcount_at[pfn]) == (2, 1)
    assert [number for number in range(PAGES) if entry(mm, page(number))] == found
    assert mm.rss.counts == [len(found), 0, 0, 0]
    machine.check()


class TestWhatTheHostHasNot:
    """Pages that are not in the host's cache: a fault waits for them, and maps around itself again when they are there.

    Source: Linux v6.8 mm/filemap.c:filemap_fault(), next_uptodate_folio().
    """

    @pytest.fixture
    def mapping(self, machine: Machine, mm: MmStruct) -> AddressSpace:
        file, _ = machine.new_file(contents(PAGES))
        mmap(mm, PAGES, READ, SHARED, at=BASE, file=file)
        return file.mapping

    def mapped(self, mm: MmStruct) -> list[int]:
        return [number for number in range(PAGES) if entry(mm, page(number))]

    def fault(self, mm: MmStruct, number: int) -> int:
        vma = mm.vmas.lookup(page(number))
        assert vma is not None
        return handle_mm_fault(mm, vma, page(number), False)

    def test_a_cached_page_leaves_them_alone(self, mm: MmStruct, mapping: AddressSpace) -> None:
        drop(mapping, 3, 6)
        assert self.fault(mm, 0) == 0
        assert self.mapped(mm) == [0, 1, 2, *range(6, PAGES)]

    def test_one_of_them_brings_the_others(self, mm: MmStruct, mapping: AddressSpace) -> None:
        drop(mapping, 3, 6)
        assert self.fault(mm, 4) == VM_FAULT_MAJOR
        assert self.mapped(mm) == list(range(PAGES))

    def test_a_hole_waits_for_no_disk(self, mm: MmStruct, mapping: AddressSpace) -> None:
        drop(mapping, 3, 6)
        mapping.host.add_hole(4, 5)
        assert self.fault(mm, 4) == VM_FAULT_MAJOR
        assert self.mapped(mm) == [0, 1, 2, 4, *range(6, PAGES)]
        assert self.fault(mm, 3) == 0
        assert self.mapped(mm) == list(range(PAGES))

    @pytest.mark.parametrize("flags", [PRIVATE, SHARED])
    def test_what_a_write_has_asked_for_has_come_when_others_look(
        self, machine: Machine, mm: MmStruct, flags: int
    ) -> None:
        file, _ = machine.new_file(contents(PAGES))
        mmap(mm, PAGES, RW, flags, at=BASE, file=file)
        drop(file.mapping, 3, 6)
        file.mapping.host.add_hole(4, 5)
        store(mm, page(4), b"x")
        assert self.fault(mm, 0) == 0
        assert self.mapped(mm) == list(range(PAGES))

    def test_so_has_what_a_fault_that_failed_has_asked_for(
        self, machine: Machine, mm: MmStruct, mapping: AddressSpace
    ) -> None:
        drop(mapping, 3, 6)
        mapping.host.add_hole(4, 5)
        mm.page_table.ensure_pte(BASE)
        held = machine.frames.alloc_pages(machine.frames.free_pages)
        assert signal_of(lambda: load(mm, page(4))) == SIGKILL
        machine.frames.put_pages(held)
        assert self.fault(mm, 0) == 0
        assert self.mapped(mm) == list(range(PAGES))

    @pytest.mark.parametrize(("advice", "brought"), [(Madv.RANDOM, [4]), (Madv.SEQUENTIAL, [4, 5])])
    def test_advice_says_how_many_are_read(
        self, mm: MmStruct, mapping: AddressSpace, advice: Madv, brought: list[int]
    ) -> None:
        do_madvise(mm, BASE, PAGES * PAGE_SIZE, advice)
        drop(mapping, 3, 6)
        assert self.fault(mm, 4) == VM_FAULT_MAJOR
        assert self.mapped(mm) == sorted([0, 1, 2, *brought, *range(6, PAGES)])

    def test_willneed_reads_them(self, mm: MmStruct, mapping: AddressSpace) -> None:
        drop(mapping, 3, 6)
        do_madvise(mm, page(3), 2 * PAGE_SIZE, Madv.WILLNEED)
        assert self.fault(mm, 0) == 0
        assert self.mapped(mm) == [0, 1, 2, 3, 4, *range(6, PAGES)]

    def test_paged_out_clean_is_gone_and_dirty_is_not(self, mm: MmStruct, mapping: AddressSpace) -> None:
        do_mprotect(mm, BASE, PAGES * PAGE_SIZE, RW)
        self.fault(mm, 0)
        store(mm, page(2), b"x")
        do_madvise(mm, BASE, PAGES * PAGE_SIZE, Madv.PAGEOUT)
        assert not self.mapped(mm)
        assert set(mapping.dirty) == {2}
        assert mapping.host.has_reclaim(2)
        assert self.fault(mm, 5) == VM_FAULT_MAJOR
        assert self.mapped(mm) == [0, 1, *range(3, PAGES)]
        assert self.fault(mm, 2) == 0
        assert load(mm, page(2)) == b"x"

    def test_a_fault_that_fails_leaves_no_table(self, mm: MmStruct, mapping: AddressSpace) -> None:
        """Source: Linux v6.8 mm/memory.c:do_fault(), the table made beforehand."""
        tables = mm.page_table.table_pages
        mmap(mm, 2, READ, SHARED, at=BASE + PMD_SIZE, file=next(iter(mapping.i_mmap)).file, pgoff=PAGES + 20)
        assert signal_of(lambda: load(mm, BASE + PMD_SIZE)) == SIGBUS
        assert mm.page_table.find_pte(BASE + PMD_SIZE) is None
        do_madvise_fails(mm, BASE + PMD_SIZE)
        assert mm.page_table.find_pte(BASE + PMD_SIZE) is None
        assert mm.page_table.table_pages == tables + 2
        assert load(mm, BASE) == b"\0"


def do_madvise_fails(mm: MmStruct, vaddr: int) -> None:
    with pytest.raises(SysError) as caught:
        do_madvise(mm, vaddr, PAGE_SIZE, Madv.POPULATE_READ)
    assert caught.value.errno == errno.EFAULT


def test_a_file_that_cannot_be_read(machine: Machine, mm: MmStruct) -> None:
    file, backing = machine.new_file(contents(PAGES))
    mmap(mm, PAGES, READ, SHARED, at=BASE, file=file)
    backing.fail = errno.EIO
    assert signal_of(lambda: load(mm, page(9))) == SIGBUS
    backing.fail = 0
    assert load(mm, page(9)) == bytes([9])
