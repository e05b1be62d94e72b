"""Shared memory that is swapped out, and what WILLNEED reads in of it: into the swap cache, and no further."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mincore import do_mincore
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.vm_fault import VM_FAULT_MAJOR
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames import swap_state
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.truncate import punch_hole
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import BASE, PRIVATE, RW, SHARED_ANON, Machine, checked, load, mmap, page, store, vma_at

PAGES = 4


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


@pytest.fixture
def mapping(machine: Machine, mm: MmStruct) -> AddressSpace:
    """Shared memory of four pages, each of which says its number, all swapped out."""
    mmap(mm, PAGES, RW, SHARED_ANON, at=BASE)
    for number in range(PAGES):
        store(mm, page(number), bytes([number + 1]))
    file = vma_at(mm, BASE).file
    assert file is not None
    machine.reclaim_all()
    assert (len(file.mapping.swapped), len(file.mapping.pages)) == (PAGES, 0)
    return file.mapping


def fault(mm: MmStruct, number: int) -> int:
    return handle_mm_fault(mm, vma_at(mm, BASE), page(number), False)


def test_willneed_fills_the_swap_cache_alone(machine: Machine, mm: MmStruct, mapping: AddressSpace) -> None:
    free = machine.frames.free_pages
    do_madvise(mm, page(1), 2 * PAGE_SIZE, Madv.WILLNEED)
    do_madvise(mm, page(1), 2 * PAGE_SIZE, Madv.WILLNEED)
    assert machine.frames.free_pages == free - 2
    assert (len(mapping.swapped), len(mapping.pages)) == (PAGES, 0)
    assert do_mincore(mm, BASE, PAGES * PAGE_SIZE, PAGES) == b"\0\1\1\0"
    machine.check()
    assert [fault(mm, number) for number in range(PAGES)] == [VM_FAULT_MAJOR, 0, 0, VM_FAULT_MAJOR]
    assert [load(mm, page(number)) for number in range(PAGES)] == [b"\1", b"\2", b"\3", b"\4"]
    assert (len(mapping.swapped), int(np.count_nonzero(machine.frames.swap.cache))) == (0, 0)


def test_what_the_swap_cache_has_goes_with_the_memory(machine: Machine, mm: MmStruct, mapping: AddressSpace) -> None:
    do_madvise(mm, BASE, PAGES * PAGE_SIZE, Madv.WILLNEED)
    punch_hole(mapping, 1, 2)
    machine.check()
    assert load(mm, page(1)) == b"\0"
    assert load(mm, page(2)) == b"\3"


def test_what_the_swap_cache_has_can_be_reclaimed_again(machine: Machine, mm: MmStruct, mapping: AddressSpace) -> None:
    do_madvise(mm, BASE, PAGES * PAGE_SIZE, Madv.WILLNEED)
    assert machine.reclaim_all() == PAGES
    assert fault(mm, 2) == VM_FAULT_MAJOR
    assert load(mm, page(2)) == b"\3"


def test_willneed_reads_no_private_copies_of_a_file(machine: Machine, mm: MmStruct) -> None:
    """Of a file's mapping Linux asks the file alone (mm/madvise.c:madvise_willneed())."""
    file, _ = machine.new_file(bytes(PAGE_SIZE))
    mmap(mm, 1, RW, PRIVATE, at=BASE, file=file)
    store(mm, BASE, b"x")
    machine.reclaim_all()
    do_madvise(mm, BASE, PAGE_SIZE, Madv.WILLNEED)
    assert not machine.frames.swap.cache.any()
    assert fault(mm, 0) == VM_FAULT_MAJOR
    assert load(mm, BASE) == b"x"


def test_very_much_that_the_swap_cache_has_goes_together(
    machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WILLNEED of a GiB fills the cache; the end of the process then frees 32,768 pages in a piece."""
    start = page(1000)
    mmap(mm, 20, at=start)
    for number in range(20):
        store(mm, start + number * PAGE_SIZE, b"x")
    do_madvise(mm, start, 20 * PAGE_SIZE, Madv.PAGEOUT)
    do_madvise(mm, start, 20 * PAGE_SIZE, Madv.WILLNEED)
    assert np.count_nonzero(machine.frames.swap.cache) == 20
    monkeypatch.setattr(swap_state, "folio_free_swap", None)
    do_munmap(mm, start, 20 * PAGE_SIZE)
    assert not np.count_nonzero(machine.frames.swap.cache)
