"""Pages that a program takes by itself: what is booked is what its faults would have done, and nothing is lost.

A stub of a few lines follows the protocol of docs/abi.md, "Advances". A second machine, the *twin*, takes each fault
when it happens. Both must have the same entries, counters and contents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pytest

from kerneld.hw.paging import PTE_PFN_MASK
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_LRU, PG_SWAPBACKED
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.truncate import truncate_pagecache
from shared.uapi.mman import Madv
from shared.uapi.native import ADVANCE_TAKEN, ADVANCES_COUNT
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Vaddr
from tests.support.machine import (
    ANON,
    BASE,
    READ,
    RW,
    SHARED_ANON,
    FakeBacking,
    Machine,
    access,
    advise,
    checked,
    entry,
    load,
    mmap,
    page,
    store,
)
from tests.tlb.advancing import FILE, PAGES, RAM, REASONS, TEXT, Stub, begun, pattern, seen


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(RAM, swap_bytes=4 << 20))


@pytest.fixture
def stub(machine: Machine) -> Iterator[Stub]:
    stub = Stub(machine, begun(machine))
    yield stub
    stub.all.book()
    stub.advances.end()
    assert not machine.frames.given.pfns


def test_a_row_of_pages_needs_few_requests(stub: Stub) -> None:
    for number in range(PAGES):
        stub.store(page(number), pattern(number))
    assert stub.asked == 2
    assert stub.taken == PAGES - stub.asked
    stub.all.book()
    assert stub.process.min_flt == PAGES
    assert stub.mm.rss.counts[1] == PAGES
    assert all(load(stub.mm, page(number), 8) == pattern(number) for number in range(PAGES))
    assert not stub.tlb.check()


def test_a_page_that_is_read_is_copied_where_it_is_written(stub: Stub) -> None:
    for number in range(0, PAGES, 16):
        stub.read(FILE + (number << PAGE_SHIFT))
    for number in range(PAGES):
        stub.store(FILE + (number << PAGE_SHIFT), b"x")
    assert stub.asked == 2
    stub.all.book()
    stub.machine.check()
    for number in range(PAGES):
        assert load(stub.mm, FILE + (number << PAGE_SHIFT), 3) == b"x" + bytes([number]) * 2
    assert stub.mm.rss.counts[1] == PAGES


def test_a_page_that_no_host_mapping_shows_is_not_given(stub: Stub) -> None:
    access(stub.mm, FILE)
    stub.store(FILE, b"x")
    assert not stub.all.live


@pytest.mark.parametrize("reason", REASONS)
def test_nothing_is_given_where_it_could_be_seen(stub: Stub, reason: str) -> None:
    with seen(stub, reason, BASE):
        stub.store(BASE, b"x")
    assert not stub.all.live


def test_nothing_is_given_of_shared_memory(stub: Stub) -> None:
    at = BASE + (2048 << PAGE_SHIFT)
    mmap(stub.mm, 32, RW, SHARED_ANON, at=at)
    stub.store(at, b"x")
    assert not stub.all.live


def test_what_is_given_is_recalled_before_others_look(stub: Stub) -> None:
    stub.store(page(0), b"a")
    stub.store(page(1), b"b")
    free = stub.machine.frames.free_pages
    stub.all.recall()
    assert stub.machine.frames.free_pages == free + 63
    assert load(stub.mm, page(1)) == b"b"
    assert not stub.take(page(2), b"c")
    stub.store(page(2), b"c")
    assert load(stub.mm, page(2)) == b"c"


def test_a_request_behind_a_fault_takes_its_wish_away(stub: Stub) -> None:
    """A datagram may have both: the mapping that the fault was in is gone when its answer is sent."""
    mmap(stub.mm, 1, RW, ANON, at=page(PAGES + 1))
    store(stub.mm, page(PAGES + 1), b"its leaf table stays")
    stub.has_ring = True
    stub.store_by_request(page(0), b"a")
    stub.call(lambda mm: do_munmap(mm, BASE, PAGES << PAGE_SHIFT), BASE, page(PAGES))
    stub.end_request()
    assert not stub.all.live
    stub.store(FILE, b"b")
    stub.machine.check()


def test_a_second_thread_ends_the_first_ones_advances(stub: Stub) -> None:
    stub.store(page(0), b"a")
    stub.tlb.enter(2)
    assert not stub.take(page(1), b"b")


def test_a_recall_in_the_middle_of_a_copy_loses_nothing(stub: Stub) -> None:
    stub.read(FILE)
    stub.store(FILE, b"x")
    given = set(stub.machine.frames.given.pfns)
    assert not stub.take(FILE + PAGE_SIZE, b"y", when_busy=stub.all.recall)
    assert stub.machine.frames.given.pfns & given, "the stub could still write to its frame"
    stub.store(FILE + PAGE_SIZE, b"y")
    assert load(stub.mm, FILE + PAGE_SIZE, 2) == b"y\x01"
    assert not stub.machine.frames.given.pfns & given or stub.all.live


def test_frames_of_a_thread_that_ends_in_the_middle_stay_until_the_memory_ends(stub: Stub) -> None:
    stub.read(FILE)
    stub.store(FILE, b"x")
    given = set(stub.machine.frames.given.pfns)
    assert not stub.take(FILE + PAGE_SIZE, b"y", when_busy=stub.advances.end)
    assert stub.machine.frames.given.pfns & given
    stub.machine.check()
    stub.tlb.release()
    assert not stub.machine.frames.given.pfns


def test_a_fault_at_another_page_leaves_an_advance(stub: Stub) -> None:
    """A page of the file that is not mapped yet lies between those that are given."""
    stub.read(FILE)
    stub.read(FILE + (32 << PAGE_SHIFT))
    stub.store(FILE, b"x")
    stub.read(FILE + (16 << PAGE_SHIFT))
    assert stub.take(FILE + PAGE_SIZE, b"y")
    assert stub.take(FILE + (40 << PAGE_SHIFT), b"z")


def test_a_page_beyond_a_file_that_was_cut_is_gone(stub: Stub) -> None:
    stub.read(FILE)
    stub.store(FILE, b"x")
    assert stub.take(FILE + PAGE_SIZE, b"y")
    vma = stub.mm.vmas.lookup(FILE)
    assert vma is not None
    assert vma.file is not None
    mapping = vma.file.mapping
    del cast("FakeBacking", mapping.backing).data[PAGE_SIZE:]
    truncate_pagecache(mapping, PAGE_SIZE)
    stub.all.book()
    assert not entry(stub.mm, FILE + PAGE_SIZE)
    stub.machine.check()


def test_what_the_program_says_of_pages_that_it_has_not_is_ignored(stub: Stub) -> None:
    stub.store(page(0), b"a")
    stub.words[ADVANCE_TAKEN] = (1 << 64) - 1
    stub.words[ADVANCES_COUNT] = 7
    stub.all.book()
    assert stub.mm.rss.counts[1] == 64
    stub.machine.check()


def state(mm: MmStruct) -> list[tuple[int, int, int, bytes]]:
    """Return what each page is: its entry's bits, its frame's flags and index, and its first bytes."""
    found = []
    frames = mm.frames
    for start in (BASE, FILE, TEXT):
        for number in range(PAGES):
            vaddr = start + (number << PAGE_SHIFT)
            pte = entry(mm, vaddr) if mm.page_table.find_pte(vaddr) is not None else 0
            pfn = (pte & PTE_PFN_MASK) >> PAGE_SHIFT if pte & 1 else 0
            flags = frames.flags_at[pfn] & (PG_ANON | PG_SWAPBACKED | PG_ANON_EXCLUSIVE | PG_LRU) if pfn > 1 else 0
            data = bytes(frames.ram.page(pfn)[:16]) if pfn else b""
            bits = pte & ~PTE_PFN_MASK if pte & 1 or not pte else -1  # -1: in the swap file, at whichever place.
            found.append((bits, flags, frames.index_at[pfn] if pfn > 1 else 0, data))
    return found


def lru_order(mm: MmStruct) -> list[Vaddr]:
    """Return the anonymous pages, the first that came to its list first."""
    pages = []
    for start in (BASE, FILE):
        for number in range(PAGES):
            vaddr = start + (number << PAGE_SHIFT)
            pte = entry(mm, vaddr) if mm.page_table.find_pte(vaddr) is not None else 0
            pfn = (pte & PTE_PFN_MASK) >> PAGE_SHIFT
            if pte & 1 and pfn > 1 and mm.frames.flags_at[pfn] & PG_ANON:
                pages.append((mm.frames.lru_at[pfn], vaddr))
    return [vaddr for _, vaddr in sorted(pages)]


class Both:
    """A program that takes pages by itself, and its twin that faults."""

    def __init__(self, machine: Machine, twin: Machine, chosen: random.Random) -> None:
        self.stub, self.twin, self.chosen = Stub(machine, begun(machine)), begun(twin), chosen
        self.stub.has_ring = chosen.random() < 0.5
        self.machine, self.twin_machine = machine, twin
        self.faults = 0

    def store(self) -> None:
        start = self.chosen.choice((BASE, BASE, FILE))
        first = self.chosen.randrange(PAGES)
        for number in range(first, min(PAGES, first + self.chosen.choice((1, 3, 20)))):
            vaddr, data = start + (number << PAGE_SHIFT), pattern(self.chosen.randrange(250))
            vma = self.twin.vmas.lookup(vaddr)
            if vma is None or not vma.vm_flags & 2:
                continue
            pte = self.twin.page_table.find_pte(vaddr)
            is_mapped = pte is not None and self.twin_machine.ram.words[pte] & 3 == 3
            store(self.twin, vaddr, data)
            self.faults += not is_mapped
            if is_mapped:
                self.stub.all.book()
                store(self.stub.mm, vaddr, data)
            elif self.chosen.random() < 0.1:
                if not self.stub.take(vaddr, data, when_busy=self.stub.all.recall):
                    self.stub.store(vaddr, data)
            else:
                self.stub.store(vaddr, data)

    def read(self) -> None:
        vaddr = self.chosen.choice((BASE, FILE, TEXT, TEXT)) + (self.chosen.randrange(PAGES) << PAGE_SHIFT)
        if self.twin.vmas.lookup(vaddr) is not None:
            pte = self.twin.page_table.find_pte(vaddr)
            self.faults += pte is None or not self.twin_machine.ram.words[pte] & 1
            access(self.twin, vaddr)
            self.stub.read(vaddr)

    def own_call(self) -> None:
        first, count = self.chosen.randrange(PAGES - 8), self.chosen.randrange(1, 8)
        start = self.chosen.choice((BASE, FILE, TEXT)) + (first << PAGE_SHIFT)
        length = count << PAGE_SHIFT
        made: Callable[[MmStruct], object] = self.chosen.choice((
            lambda mm: do_munmap(mm, start, length),
            lambda mm: advise(mm, start - BASE >> PAGE_SHIFT, count, Madv.DONTNEED),
            lambda mm: do_mprotect(mm, start, length, READ),
            lambda mm: do_mprotect(mm, start, length, RW),
        ))  # fmt: skip
        if mapped(self.twin, start, length):
            made(self.twin)
            self.stub.call(made, start, start + length)

    def recall(self) -> None:
        self.stub.all.recall()

    def reclaim(self) -> None:
        """Take away what only the program itself has not just written: a background pass may run at any time."""
        self.stub.all.recall()
        for each in (self.machine, self.twin_machine):
            each.reclaim_all()

    def compare(self) -> None:
        self.stub.book()
        self.machine.check()
        assert not self.stub.tlb.check()
        assert state(self.stub.mm) == state(self.twin)
        assert lru_order(self.stub.mm) == lru_order(self.twin)
        assert self.stub.mm.rss.counts == self.twin.rss.counts


def mapped(mm: MmStruct, start: Vaddr, length: int) -> bool:
    return all(mm.vmas.lookup(at) is not None for at in range(start, start + length, PAGE_SIZE))


@pytest.mark.parametrize("seed", range(40))
def test_a_program_and_its_twin_are_the_same(machine: Machine, seed: int) -> None:
    chosen = random.Random(seed)
    twin = Machine(RAM, swap_bytes=4 << 20)
    both = Both(machine, twin, chosen)
    for _ in range(60):
        chosen.choices((both.store, both.read, both.own_call, both.recall, both.reclaim), (12, 8, 3, 1, 1))[0]()
        # What is taken between two turns of the loop comes to its LRU list in the order of the addresses.
        both.stub.all.book()
        if chosen.random() < 0.5:
            both.compare()
    both.compare()
    assert both.stub.process.min_flt == both.faults
    assert both.stub.taken, "nothing was taken: the test shows nothing"
    both.stub.advances.end()
    twin.close()


def test_the_frames_are_zeros(stub: Stub) -> None:
    frames = stub.machine.frames
    dirty = frames.alloc_pages(frames.free_pages - 64, 0)
    frames.ram.frames_np[dirty] = np.uint64(0xFF)
    frames.ram.written[dirty] = True
    frames.put_pages(dirty)
    for number in range(PAGES):
        stub.store(page(number) + 64, pattern(number))
    assert stub.taken
    stub.all.book()
    assert all(load(stub.mm, page(number), 64) == bytes(64) for number in range(PAGES))
