"""The pages around a read fault of a file are a favour: where they cannot be had, the one page still can."""

from __future__ import annotations

import errno
from signal import SIGBUS, SIGKILL

import pytest

from kerneld.mm.mm import MmStruct
from shared.uapi.page import PAGE_SIZE
from tests.mm.world import BASE, PRIVATE, READ, SHARED, Machine, entry, load, mmap, page, pfn_of, signal_of

PAGES = 16


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
    """However far the read-around came: the fault has its page, or says OOM where that page itself has no frame."""
    file, _ = machine.new_file(contents(PAGES))
    mmap(mm, PAGES, READ, SHARED, at=BASE, file=file)
    mm.page_table.ensure_pte(BASE)
    for number in range(PAGES):
        with machine.failing_allocation(number) as failed:
            if number > 9:
                assert load(mm, page(9)) == bytes([9])
            else:
                assert signal_of(lambda: load(mm, page(9))) == SIGKILL
        assert failed
        machine.check()
        mm.zap_range(BASE, page(PAGES))
        for index in list(file.mapping.pages):
            file.mapping.drop_page(index)


def test_a_file_that_cannot_be_read(machine: Machine, mm: MmStruct) -> None:
    file, backing = machine.new_file(contents(PAGES))
    mmap(mm, PAGES, READ, SHARED, at=BASE, file=file)
    backing.fail = errno.EIO
    assert signal_of(lambda: load(mm, page(9))) == SIGBUS
    backing.fail = 0
    assert load(mm, page(9)) == bytes([9])
