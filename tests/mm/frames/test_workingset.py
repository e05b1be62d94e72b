"""Whether a page that comes back is made active, and that to ask so does not take a look at all of memory."""

from __future__ import annotations

import numpy as np
import pytest

from kerneld.mm.calls.madvise_pages import madvise_pageout
from kerneld.mm.calls.mlock import do_mlock
from kerneld.mm.fault.populate import mm_populate, populate_in_pieces
from kerneld.mm.frames import lru
from kerneld.mm.frames.frames import PG_ACTIVE, Frames
from kerneld.mm.frames.lru import folio_activate, lru_sizes, recent_lru_sizes
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.pace import drain
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import ANON, BASE, RW, SHARED, Machine, load, mmap, page, pfn_of, store, vma_at

PAGES = 600


@pytest.fixture
def machine() -> Machine:
    """64 MiB, so that a thousandth of them is more than one page."""
    return Machine(64 << 20, swap_bytes=8 << 20)


def paged_out(machine: Machine, pages: int) -> MmStruct:
    """Return a new address space with so many pages from BASE, all of them in the swap file."""
    mm = machine.new_mm()
    mmap(mm, pages, RW, ANON, at=BASE)
    for number in range(pages):
        store(mm, page(number), b"x")
    madvise_pageout(mm, vma_at(mm, BASE), BASE, BASE + pages * PAGE_SIZE, lambda file: True)
    return mm


def test_memory_is_not_counted_for_each_page_that_comes_in(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def counting(frames: Frames) -> list[int]:
        counted.append(frames.lru_clock)
        return lru_sizes(frames)

    mm = paged_out(machine, PAGES)
    monkeypatch.setattr(lru, "lru_sizes", counting)
    for number in range(PAGES):
        load(mm, page(number))
    # Each page comes to the head of a list twice: as it comes in, and as it is made active.
    assert 1 <= len(counted) <= 2 * PAGES // (machine.frames.total_pages >> 10) + 1
    machine.close()


def test_what_is_said_is_what_was_a_moment_ago(machine: Machine) -> None:
    lag = machine.frames.total_pages >> 10
    mm = machine.new_mm()
    mmap(mm, PAGES, RW, ANON, at=BASE)
    assert recent_lru_sizes(machine.frames) == lru_sizes(machine.frames)
    for number in range(PAGES):
        store(mm, page(number), b"x")
        ahead = sum(lru_sizes(machine.frames)) - sum(recent_lru_sizes(machine.frames))
        assert 0 <= ahead <= lag
    machine.close()


@pytest.mark.parametrize("thp", ["never", "always"])
def test_what_has_been_freed_is_not_said_to_be_there(thp: str) -> None:
    """Frames that go have no new stamp: many of them are noticed all the same, at the next question."""
    machine = Machine(64 << 20)
    machine.sysctl.transparent_hugepage = TransparentHugepage(thp)
    frames, lag = machine.frames, machine.frames.total_pages >> 10
    mm = machine.new_mm()
    mmap(mm, 8 * PAGES, RW, ANON, at=BASE)
    mm_populate(mm, BASE, BASE + 8 * PAGES * PAGE_SIZE)
    assert sum(recent_lru_sizes(frames)) == sum(lru_sizes(frames)) >= 8 * PAGES
    for number in range(8):
        do_munmap(mm, page(number * PAGES), PAGES * PAGE_SIZE)
        # Some frames are taken meanwhile: that fewer are free for it must not hide the others.
        held = [frames.alloc_page() for _ in range(lag)]
        assert abs(sum(recent_lru_sizes(frames)) - sum(lru_sizes(frames))) <= 2 * lag
        for pfn in held:
            frames.put_page(pfn)
    assert sum(recent_lru_sizes(frames)) <= 2 * lag
    machine.close()


@pytest.mark.parametrize("at_once", [True, False])
def test_what_has_been_locked_is_not_said_to_be_evictable(machine: Machine, at_once: bool) -> None:
    """Pages of a file that another mapping has brought in are locked: all by the call, or one by one by faults."""
    lag = machine.frames.total_pages >> 10
    mm = machine.new_mm()
    file, _ = machine.new_file(bytes(PAGES * PAGE_SIZE))
    mmap(mm, PAGES, RW, SHARED, at=BASE, file=file)
    mm_populate(mm, BASE, page(PAGES))
    locked = page(2 * PAGES) if not at_once else BASE
    if not at_once:
        mmap(mm, PAGES, RW, SHARED, at=locked, file=file)
    assert recent_lru_sizes(machine.frames)[-1] == 0
    start, end = do_mlock(mm, locked, PAGES * PAGE_SIZE, VM_LOCKED, privileged=True)
    assert drain(populate_in_pieces(mm, start, end, ignore_errors=False)) == 0
    assert lru_sizes(machine.frames)[-1] == PAGES
    assert PAGES - recent_lru_sizes(machine.frames)[-1] <= lag
    machine.close()


@pytest.mark.parametrize("is_soon", [True, False])
def test_a_page_that_comes_back_soon_is_active(machine: Machine, is_soon: bool) -> None:
    """Soon: fewer pages have been evicted since than there is active memory that it could have stayed instead of."""
    mm = machine.new_mm()
    mmap(mm, 2 * PAGES, RW, ANON, at=page(4096))
    for number in range(2 * PAGES):
        store(mm, page(4096 + number), b"x")
    if is_soon:
        in_use = [pfn_of(mm, page(4096 + number)) for number in range(2 * PAGES)]
        folio_activate(machine.frames, np.array(in_use))
    other = paged_out(machine, PAGES)
    load(other, page(0))
    assert bool(machine.frames.flags_at[pfn_of(other, page(0))] & PG_ACTIVE) is is_soon
    machine.close()
