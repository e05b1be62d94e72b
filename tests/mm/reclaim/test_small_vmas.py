"""Reclaim of pages that each have a VMA of their own: what neighbours have is taken together."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import create_autospec

import numpy as np
import pytest

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.frames.frames import Pfns
from kerneld.mm.reclaim.shrink import Users, reclaim_pages
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.notifier import MmuNotifier
from kerneld.mm.space.rmap_walk import Patience
from kerneld.mm.space.rss import Rss
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import BASE, EXEC, READ, Machine, checked, load, mmap, page, pfn_of, store


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


def small_vmas(mm: MmStruct, count: int) -> Pfns:
    """Map so many pages, each a VMA of its own, and return their frames."""
    mmap(mm, count, at=BASE)
    for number in range(count):
        store(mm, page(number), b"%d" % number)
    for number in range(0, count, 2):
        do_mprotect(mm, page(number), PAGE_SIZE, READ)
    assert mm.map_count >= count
    return np.array([pfn_of(mm, page(number)) for number in range(count)])


def test_the_entries_of_small_vmas_are_taken_together(machine: Machine, mm: MmStruct) -> None:
    """A step for each VMA took most of a direct reclaim."""
    pfns = small_vmas(mm, 40)
    (mapped,) = Users(machine.frames, pfns, Patience()).entries
    assert mapped.at.tolist() == [*range(40)]
    assert mapped.vaddrs.tolist() == [page(number) for number in range(40)]


def test_vmas_that_are_treated_differently_are_not_taken_together(machine: Machine, mm: MmStruct) -> None:
    pfns = small_vmas(mm, 8)
    do_mprotect(mm, page(2), PAGE_SIZE, READ | EXEC)
    do_madvise(mm, page(5), PAGE_SIZE, Madv.SEQUENTIAL)
    groups = Users(machine.frames, pfns, Patience()).entries
    assert [mapped.at.tolist() for mapped in groups] == [[0, 1], [2], [3, 4], [5], [6, 7]]


def test_those_of_parent_and_child_are_in_the_order_of_the_walk(machine: Machine, mm: MmStruct) -> None:
    pfns = small_vmas(mm, 4)
    child = machine.fork(mm)
    groups = Users(machine.frames, pfns, Patience()).entries
    assert [(mapped.mm, mapped.at.tolist()) for mapped in groups] == [
        (each, [number]) for number in range(4) for each in (mm, child)
    ]


def test_small_vmas_are_swapped_out_and_read_again(machine: Machine, mm: MmStruct) -> None:
    pfns = small_vmas(mm, 40)
    assert reclaim_pages(machine.frames, pfns) == 40
    machine.check()
    assert mm.rss.counts[Rss.SWAP] == 40
    assert [load(mm, page(number)) for number in range(10)] == [b"%d" % number for number in range(10)]


def test_what_a_listener_hears_is_of_each_vma(machine: Machine, mm: MmStruct) -> None:
    pfns = small_vmas(mm, 4)
    listener = create_autospec(MmuNotifier, instance=True)
    mm.notifiers.append(listener)
    assert len(Users(machine.frames, pfns, Patience()).entries) == 4
    mm.notifiers.clear()
