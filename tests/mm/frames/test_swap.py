"""The swap file and the swap cache: slots, counts, and what is written and read back."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.errors import KernelBug, SysError
from kerneld.mm.frames import swap as swap_module
from kerneld.mm.frames.frames import PG_DIRTY, PG_LRU, PG_SWAPBACKED, PG_SWAPCACHE, Pfns
from kerneld.mm.frames.swap import SwapFile
from kerneld.mm.frames.swap_state import (
    add_to_swap,
    delete_from_swap_cache,
    folio_free_swap,
    folios_free_swap,
    free_swap_and_cache,
    read_swap_cache,
    swap_writepages,
)
from kerneld.mm.space.munmap import do_munmap
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE
from tests.support.machine import Machine, checked, load, mmap, page, store

SLOTS = 7
"""Of eight pages: the first is the header's."""


@pytest.fixture
def swap() -> Iterator[SwapFile]:
    made = SwapFile((SLOTS + 1) * PAGE_SIZE)
    yield made
    made.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=(SLOTS + 1) * PAGE_SIZE))


def take(swap: SwapFile, count: int) -> list[int]:
    """Take slots, each named by one entry."""
    slots = swap.get_swap_pages(count)
    swap.swap_duplicate(slots)
    return [int(slot) for slot in slots]


def test_a_machine_without_swap_has_no_slot() -> None:
    swap = SwapFile()
    assert (swap.total_pages, swap.nr_free, swap.get_swap_pages(3).tolist()) == (0, 0, [])
    swap.close()


def test_slots_are_taken_in_order_and_the_header_never_is(swap: SwapFile) -> None:
    assert take(swap, 3) == [1, 2, 3]
    assert take(swap, 10) == [4, 5, 6, 7]
    assert (swap.nr_free, take(swap, 1)) == (0, [])


def test_the_search_goes_on_where_the_last_one_ended_and_wraps(swap: SwapFile) -> None:
    take(swap, 5)
    assert swap.swap_free(2)
    assert swap.swap_free(4)
    assert take(swap, 4) == [6, 7, 2, 4]


def test_a_search_longer_than_one_look_at_the_map(swap: SwapFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap_module, "_SCAN_SLOTS", 2)
    take(swap, 3)
    swap.swap_free(1)
    assert take(swap, 5) == [4, 5, 6, 7, 1]


def test_a_slot_is_free_once_neither_an_entry_nor_the_cache_has_it(swap: SwapFile) -> None:
    (slot,) = take(swap, 1)
    swap.swap_duplicate(np.array([slot, slot]))
    swap.set_cache(slot, 9)
    assert [swap.swap_free(slot) for _ in range(3)] == [False, False, True]
    assert swap.nr_free == SLOTS - 1
    swap.clear_cache(slot)
    assert swap.nr_free == SLOTS


def test_many_are_freed_at_once_and_the_cached_ones_told(swap: SwapFile) -> None:
    slots = np.array(take(swap, 3))
    swap.set_cache(2, 9)
    swap.swap_duplicate(slots[2:])
    assert swap.swap_free_many(slots).tolist() == [2]
    assert swap.nr_free == SLOTS - 2
    swap.clear_cache_many(np.array([2]))
    assert swap.nr_free == SLOTS - 1


def test_a_slot_that_is_freed_too_often_is_a_bug_of_ours(swap: SwapFile) -> None:
    with pytest.raises(KernelBug):
        swap.swap_free(1)
    with pytest.raises(KernelBug):
        swap.swap_free_many(np.array([1, 2]))


def test_half_of_it_is_full(swap: SwapFile) -> None:
    take(swap, 3)
    assert not swap.is_full
    take(swap, 1)
    assert swap.is_full


def test_pages_come_back_as_they_were_written(swap: SwapFile) -> None:
    pages = [memoryview(bytes([number]) * PAGE_SIZE) for number in (1, 2, 3)]
    swap.write_pages(2, pages)
    assert [swap.read_page(slot) for slot in (2, 3, 4)] == [bytes(page) for page in pages]
    assert swap.read_page(5) == bytes(PAGE_SIZE)


def test_a_page_behind_the_end_is_an_error_of_the_disk(swap: SwapFile) -> None:
    with pytest.raises(OSError, match="Input/output") as caught:
        swap.read_page(SLOTS + 1)
    assert caught.value.errno == errno.EIO


class TestSwapCache:
    """Frames that have a slot."""

    def frames_of(self, machine: Machine, count: int) -> Pfns:
        """Return anonymous frames, each of which says its number."""
        pfns = np.array([machine.frames.alloc_page(PG_LRU | PG_SWAPBACKED) for _ in range(count)])
        for number, pfn in enumerate(pfns.tolist()):
            machine.ram.write(pfn << PAGE_SHIFT, bytes([number + 1]) * PAGE_SIZE)
        return pfns

    def test_as_many_as_there_are_slots_are_given_one(self, machine: Machine) -> None:
        frames, pfns = machine.frames, self.frames_of(machine, SLOTS + 2)
        given = add_to_swap(frames, pfns)
        assert given.tolist() == pfns[:SLOTS].tolist()
        assert ((frames.flags[given] & np.uint32(PG_SWAPCACHE | PG_DIRTY)) == PG_SWAPCACHE | PG_DIRTY).all()
        assert frames.swap.cache[frames.swap_slot[given]].tolist() == given.tolist()
        assert frames.refcount[pfns].tolist() == [2] * SLOTS + [1] * 2
        for pfn in given.tolist():
            delete_from_swap_cache(frames, pfn)
        frames.put_pages(pfns)

    def test_what_is_written_is_read_into_another_frame(self, machine: Machine) -> None:
        frames, pfns = machine.frames, self.frames_of(machine, 2)
        add_to_swap(frames, pfns)
        slots = frames.swap_slot[pfns].astype(np.int64)
        frames.swap.swap_duplicate(slots)
        assert swap_writepages(frames, pfns, slots).all()
        for pfn in pfns.tolist():
            delete_from_swap_cache(frames, pfn)
        frames.put_pages(pfns)
        back = [read_swap_cache(frames, slot) for slot in slots.tolist()]
        assert [bytes(machine.ram.read(pfn << PAGE_SHIFT, 2)) for pfn in back] == [b"\1\1", b"\2\2"]
        assert (frames.vmstat["pswpout"], frames.vmstat["pswpin"]) == (2, 2)
        free_swap_and_cache(frames, slots)
        assert frames.swap.nr_free == SLOTS

    def test_a_page_that_cannot_be_read_takes_no_frame(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        frames = machine.frames
        (slot,) = take(frames.swap, 1)
        monkeypatch.setattr(frames.swap, "read_page", lambda slot: (_ for _ in ()).throw(OSError(errno.EIO, "")))
        with pytest.raises(SysError) as caught:
            read_swap_cache(frames, slot)
        assert caught.value.errno == errno.EIO
        assert frames.free_pages == frames.total_pages
        frames.swap.swap_free(slot)

    def test_what_a_full_disk_has_no_room_for_is_told_page_by_page(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frames, pfns = machine.frames, self.frames_of(machine, 3)
        add_to_swap(frames, pfns)
        real = frames.swap.write_pages

        def write(first: int, pages: list[memoryview]) -> None:
            if len(pages) > 1 or first == 2:
                raise OSError(errno.ENOSPC, "full")
            real(first, pages)

        monkeypatch.setattr(frames.swap, "write_pages", write)
        assert swap_writepages(frames, pfns, frames.swap_slot[pfns].astype(np.int64)).tolist() == [True, False, True]
        for pfn in pfns.tolist():
            delete_from_swap_cache(frames, pfn)
        frames.put_pages(pfns)

    def test_a_slot_is_given_up_where_no_entry_names_it(self, machine: Machine) -> None:
        frames, pfns = machine.frames, self.frames_of(machine, 1)
        (pfn,) = pfns.tolist()
        assert not folio_free_swap(frames, pfn)
        add_to_swap(frames, pfns)
        slot = frames.swap_slot_at[pfn]
        frames.swap.swap_duplicate(np.array([slot]))
        assert not folio_free_swap(frames, pfn)
        frames.swap.swap_free(slot)
        frames.flags_at[pfn] &= ~PG_DIRTY
        assert folio_free_swap(frames, pfn)
        assert frames.flags_at[pfn] & (PG_DIRTY | PG_SWAPCACHE) == PG_DIRTY, "the frame alone has the contents now"
        frames.put_pages(pfns)


def test_the_slots_of_many_are_given_up_at_once(machine: Machine) -> None:
    """Memory that was swapped out and read again leaves: one by one, 128 MiB took 100 ms."""
    mm = machine.new_mm()
    mmap(mm, 4, at=page(0))
    for number in range(4):
        store(mm, page(number), bytes([number + 1]))
    machine.reclaim_all()
    child = machine.fork(mm)
    for number in range(3):
        load(mm, page(number))
    frames, free = machine.frames, machine.frames.swap.nr_free
    cached = np.flatnonzero(frames.has(slice(None), PG_SWAPCACHE))
    folios_free_swap(frames, cached)
    assert frames.has(cached, PG_SWAPCACHE).all(), "the child's entries name the slots"
    do_munmap(child, page(0), 4 * PAGE_SIZE)
    folios_free_swap(frames, np.concatenate([cached, cached]))
    assert not frames.has(cached, PG_SWAPCACHE).any()
    assert frames.has(cached, PG_DIRTY).all()
    assert frames.swap.nr_free == free + 3
    machine.check()
