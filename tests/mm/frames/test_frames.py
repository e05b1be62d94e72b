"""Frames: counts, contents and flags from allocation to the last reference."""

from __future__ import annotations

import errno
import gc

import numpy as np
import pytest

from kerneld.errors import KernelBug, SysError
from kerneld.hw.ram import Ram
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import FIRST_PFN, LRU_CLOCK_END, PG_ANON, PG_DIRTY, PG_REFERENCED, ZERO_PFN, Frames
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import Machine


@pytest.fixture
def frames(machine: Machine) -> Frames:
    return machine.frames


def test_a_fresh_machine(frames: Frames) -> None:
    assert frames.free_pages == frames.total_pages == frames.ram.nr_frames - FIRST_PFN
    assert np.flatnonzero(frames.refcount).tolist() == [0, ZERO_PFN]


def test_one_frame(frames: Frames) -> None:
    pfn = frames.alloc_page(PG_ANON)
    assert (frames.refcount[pfn], frames.flags[pfn], frames.mapcount[pfn]) == (1, PG_ANON, 0)
    frames.mapping_at[pfn] = 7
    frames.refcount_at[pfn] += 1
    frames.put_page(pfn)
    assert frames.free_pages == frames.total_pages - 1
    frames.put_page(pfn)
    assert frames.free_pages == frames.total_pages
    assert (frames.refcount[pfn], frames.flags[pfn], frames.mapping[pfn]) == (0, 0, 0)


def test_many_frames(frames: Frames) -> None:
    pfns = frames.alloc_pages(100, PG_ANON | PG_DIRTY)
    assert len(set(pfns.tolist())) == 100
    assert pfns.min() >= FIRST_PFN
    frames.refcount[pfns[:40]] += 1
    frames.put_pages(pfns)
    assert frames.free_pages == frames.total_pages - 40
    assert set(frames.flags[pfns[:40]].tolist()) == {PG_ANON | PG_DIRTY}
    assert not frames.flags[pfns[40:]].any()
    frames.put_pages(pfns[:40])
    assert frames.free_pages == frames.total_pages


def test_flags_of_many_frames(frames: Frames) -> None:
    pfns = frames.alloc_pages(6, PG_ANON)
    frames.set(pfns[:4], PG_DIRTY | PG_REFERENCED)
    frames.clear(pfns[1:2], PG_REFERENCED)
    frames.clear(pfns[2:3], PG_DIRTY | PG_REFERENCED)
    assert frames.has(pfns, PG_DIRTY).tolist() == [True, True, False, True, False, False]
    assert frames.has(pfns, PG_DIRTY | PG_REFERENCED).tolist() == [True, True, False, True, False, False]
    assert frames.has(pfns, PG_REFERENCED).tolist() == [True, False, False, True, False, False]
    assert frames.has(pfns, PG_ANON).all(), "the other flags stay"
    assert frames.has(slice(0, FIRST_PFN), PG_ANON | PG_DIRTY | PG_REFERENCED).tolist() == [False, False]
    frames.put_pages(pfns)


@pytest.mark.parametrize("zero", [True, False])
def test_contents_of_a_frame_that_was_used_before(frames: Frames, zero: bool) -> None:
    pfn = frames.alloc_page()
    frames.ram.write(pfn * PAGE_SIZE, b"left over")
    frames.put_page(pfn)
    again = frames.alloc_page(zero=zero)
    assert again == pfn
    assert bytes(frames.ram.page(pfn)[:9]) == (bytes(9) if zero else b"left over")
    frames.put_page(pfn)
    pfns = frames.alloc_pages(frames.free_pages)
    assert not frames.ram.frames_np[pfns].any()
    frames.put_pages(pfns)


def test_all_are_taken(frames: Frames) -> None:
    pfns = frames.alloc_pages(frames.free_pages - 1)
    with pytest.raises(SysError) as caught:
        frames.alloc_pages(2)
    assert caught.value.errno == errno.ENOMEM
    last = frames.alloc_page()
    with pytest.raises(SysError) as caught:
        frames.alloc_page()
    assert caught.value.errno == errno.ENOMEM
    frames.put_page(last)
    frames.put_pages(pfns)


def test_put_more_often_than_got(frames: Frames) -> None:
    pfns = frames.alloc_pages(20)
    frames.put_pages(pfns)
    with pytest.raises(KernelBug, match="more often"):
        frames.put_page(int(pfns[0]))
    frames.refcount[pfns] = 0
    with pytest.raises(KernelBug, match="more often"):
        frames.put_pages(pfns)
    frames.refcount[pfns] = 0


def test_freed_while_mapped(frames: Frames) -> None:
    pfn = frames.alloc_page()
    frames.mapcount_at[pfn] = 1
    with pytest.raises(KernelBug, match="while 1 entries map it"):
        frames.put_page(pfn)
    frames.mapcount_at[pfn] = 0
    frames.refcount_at[pfn] = 1
    frames.put_page(pfn)


def test_a_frame_names_its_mapping_as_long_as_that_lives(frames: Frames) -> None:
    mapping: AddressSpace | None = AddressSpace(frames, None, PAGE_SIZE)
    assert mapping is not None
    pfn = frames.alloc_page()
    assert frames.find_mapping(pfn) is None
    frames.mapping_at[pfn] = number = mapping.number
    assert frames.find_mapping(pfn) is frames.find_mapping_number(number) is mapping
    mapping = None
    gc.collect()
    assert frames.find_mapping(pfn) is None
    frames.put_page(pfn)


def test_the_lru_clock_is_turned_back_before_it_overflows_and_the_order_stays() -> None:
    frames = Frames(Ram(4 << 20))
    old = [frames.alloc_page(), *frames.alloc_pages(3).tolist()]
    frames.lru_clock = LRU_CLOCK_END - 1
    young = [frames.alloc_page(), frames.alloc_page(), *frames.alloc_pages(5).tolist(), frames.alloc_page()]
    stamps = [int(frames.lru[pfn]) for pfn in old + young]
    assert stamps == sorted(set(stamps))
    assert stamps[-1] == frames.lru_clock < 100
    frames.lru_clock = LRU_CLOCK_END - 1
    more = frames.alloc_pages(2).tolist()
    assert [int(frames.lru[pfn]) for pfn in old + young + more] == sorted(
        int(frames.lru[pfn]) for pfn in old + young + more
    )
