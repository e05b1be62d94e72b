"""Huge pages under calls on ranges: what keeps them, what cuts them up, and that no page is another for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from signal import SIGSEGV

import pytest

from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_RW
from kerneld.mm.calls.brk import do_brk
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mlock import do_mlock
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.rss import Rss
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv, Mremap
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.huge_machine import (
    HUGE,
    HugeMachine,
    check_marks,
    entry_at,
    frame_at,
    frames_of,
    huge,
    marked,
    sizes,
)
from tests.support.machine import (
    ANON,
    BASE,
    NONE,
    READ,
    RW,
    checked,
    failure,
    load,
    mmap,
    page,
    signal_of,
    store,
)


@pytest.fixture
def machine() -> Iterator[HugeMachine]:
    yield from checked(HugeMachine())


@pytest.mark.parametrize(("low", "high"), [(0, 1), (HUGE - 1, HUGE), (100, 200), (0, HUGE - 1)])
def test_munmap_of_a_part_cuts_it_up(machine: HugeMachine, mm: MmStruct, low: int, high: int) -> None:
    marked(mm, 2 * HUGE)
    frames = frames_of(mm, BASE, huge(2))
    free = machine.frames.free_pages
    do_munmap(mm, page(low), (high - low) * PAGE_SIZE)
    assert sizes(mm, 2) == "tH"
    assert machine.frames.free_pages == free + high - low
    assert frames_of(mm, BASE, huge(2)) == frames[:low] + [0] * (high - low) + frames[high:]
    for number in [n for n in range(0, HUGE, 61) if not low <= n < high]:
        assert load(mm, page(number), 4) == number.to_bytes(4, "little")
    assert signal_of(lambda: load(mm, page(low))) == SIGSEGV


def test_munmap_of_the_whole_frees_all_at_once(machine: HugeMachine, mm: MmStruct) -> None:
    free = machine.frames.free_pages
    marked(mm, 4 * HUGE)
    do_munmap(mm, BASE, 4 * PMD_SIZE)
    assert machine.frames.free_pages == free
    assert mm.page_table.table_pages == 1
    assert mm.rss.resident_pages == 0
    assert mm.rss.hiwater == 4 * HUGE


def test_mprotect_of_whole_huge_pages_keeps_them(mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    do_mprotect(mm, huge(0), PMD_SIZE, READ)
    assert sizes(mm, 2) == "HH"
    assert signal_of(lambda: store(mm, page(4), b"y")) == SIGSEGV
    do_mprotect(mm, huge(0), PMD_SIZE, NONE)
    assert sizes(mm, 2) == "HH"
    assert signal_of(lambda: load(mm, page(4))) == SIGSEGV
    assert not entry_at(mm, page(4)) & PTE_PRESENT
    assert frames_of(mm, BASE, page(1)) != [0]
    do_mprotect(mm, huge(0), PMD_SIZE, RW)
    assert sizes(mm, 2) == "HH"
    assert entry_at(mm, page(4)) & PTE_RW
    check_marks(mm, 2 * HUGE)


def test_mprotect_of_a_part_cuts_it_up(mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    frames = frames_of(mm, BASE, huge(2))
    do_mprotect(mm, page(10), 20 * PAGE_SIZE, NONE)
    assert sizes(mm, 2) == "tH"
    do_mprotect(mm, page(10), 20 * PAGE_SIZE, READ)
    assert frames_of(mm, BASE, huge(2)) == frames
    check_marks(mm, 2 * HUGE)
    assert signal_of(lambda: store(mm, page(29), b"y")) == SIGSEGV
    store(mm, page(30), b"y")
    assert sizes(mm, 2) == "tH"


def test_memory_without_rights_can_be_huge_and_gone(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    do_mprotect(mm, BASE, PMD_SIZE, NONE)
    machine.check()
    child = machine.fork(mm)
    assert sizes(child, 1) == "H"
    do_munmap(mm, page(3), PAGE_SIZE)
    assert sizes(mm, 1) == "t"
    machine.check()
    do_mprotect(child, BASE, PMD_SIZE, RW)
    check_marks(child, HUGE)


def test_fork_shares_and_a_write_cuts_up_one_side(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    load(mm, page(HUGE))
    child = machine.fork(mm)
    assert sizes(mm, 2) == sizes(child, 2) == "HH"
    assert frames_of(mm, BASE, huge(2)) == frames_of(child, BASE, huge(2))
    assert not entry_at(mm, BASE) & PTE_RW
    assert not entry_at(child, BASE) & (PTE_RW | PTE_ACCESSED)
    assert child.rss.counts == mm.rss.counts
    machine.check()
    store(child, page(9), b"child")
    assert (sizes(mm, 2), sizes(child, 2)) == ("HH", "tH")
    assert load(mm, page(9), 5) == bytes(5)
    check_marks(mm, 2 * HUGE)
    check_marks(child, 2 * HUGE)
    assert [n for n in range(HUGE) if frame_at(mm, page(n)) != frame_at(child, page(n))] == [9]
    machine.check()
    store(mm, page(9), b"parent")  # its other owner has gone for this page alone: the huge page is not reused
    assert sizes(mm, 2) == "tH"
    assert load(child, page(9), 5) == b"child"


def test_the_last_owner_reuses_a_huge_page_whole(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    child = machine.fork(mm)
    store(mm, page(1), b"x")
    frames = frames_of(child, BASE, huge(1))
    machine.exit(mm)
    machine.check()
    store(child, page(5), b"child")
    assert sizes(child, 1) == "H"
    assert frames_of(child, BASE, huge(1)) == frames
    assert load(child, page(1)) == b"\0"
    check_marks(child, HUGE)


def test_fork_shares_the_huge_zero_page(machine: HugeMachine, mm: MmStruct) -> None:
    mmap(mm, HUGE, RW, ANON, at=BASE)
    load(mm, BASE)
    child = machine.fork(mm)
    assert sizes(child, 1) == "Z"
    machine.exit(mm)
    machine.check()
    store(child, BASE, b"x")
    assert machine.frames.huge.zero_pfn is None


def test_a_fork_without_memory_leaves_nothing(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    mmap(mm, HUGE, RW, ANON, at=huge(2))
    load(mm, huge(2))
    free = machine.frames.free_pages
    number = 0
    while True:
        with machine.failing_allocation(number) as failed:
            ended = failure(lambda: machine.fork(mm))
        machine.check()
        if not failed:
            break
        assert ended == errno.ENOMEM
        assert machine.frames.free_pages == free
        number += 1
    assert number == 1 + 2 + 3  # the root, the tables of two levels above huge pages, and three deposited ones
    check_marks(machine.mms[-1], 2 * HUGE)


def test_mremap_moves_whole_huge_pages(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    frames = frames_of(mm, BASE, huge(2))
    flags = (Mremap.MAYMOVE | Mremap.FIXED).value
    do_mremap(mm, BASE, 2 * PMD_SIZE, 2 * PMD_SIZE, flags, huge(2), privileged=False)
    assert sizes(mm) == "--HH"
    assert frames_of(mm, huge(2), huge(4)) == frames
    machine.check()
    check_marks(mm, 2 * HUGE, at=huge(2))
    assert mm.rss.counts[Rss.ANON] == 2 * HUGE


def test_mremap_to_another_alignment_cuts_them_up(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    frames = frames_of(mm, BASE, huge(2))
    flags = (Mremap.MAYMOVE | Mremap.FIXED).value
    do_mremap(mm, BASE, 2 * PMD_SIZE, 2 * PMD_SIZE, flags, huge(2) + PAGE_SIZE, privileged=False)
    assert sizes(mm, 5) == "--ttt"
    assert frames_of(mm, huge(2) + PAGE_SIZE, huge(4) + PAGE_SIZE) == frames
    machine.check()
    check_marks(mm, 2 * HUGE, at=huge(2) + PAGE_SIZE)


def test_mremap_of_a_part(machine: HugeMachine, mm: MmStruct) -> None:
    """From the middle of one to the middle of another: the whole one between moves as it is."""
    marked(mm, 3 * HUGE)
    frames = frames_of(mm, BASE, huge(3))
    flags = (Mremap.MAYMOVE | Mremap.FIXED).value
    length = 2 * PMD_SIZE
    do_mremap(mm, page(256), length, length, flags, page(8 * HUGE + 256), privileged=False)
    assert sizes(mm, 11) == "t-t-----tHt"
    assert frames_of(mm, page(8 * HUGE + 256), page(10 * HUGE + 256)) == frames[256:-256]
    assert frames_of(mm, BASE, page(256)) == frames[:256]
    machine.check()


def test_mremap_shrinks_and_grows(mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    do_mremap(mm, BASE, 2 * PMD_SIZE, PMD_SIZE + 4 * PAGE_SIZE, 0, 0, privileged=False)
    assert sizes(mm, 2) == "Ht"
    do_mremap(mm, BASE, PMD_SIZE + 4 * PAGE_SIZE, 3 * PMD_SIZE, 0, 0, privileged=False)
    store(mm, huge(2), b"x")
    assert sizes(mm, 3) == "HtH"
    assert load(mm, page(61 * 8), 4) == (61 * 8).to_bytes(4, "little")


def test_a_move_without_memory_goes_back(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    frames = frames_of(mm, BASE, huge(2))
    far = BASE + (1 << 39)
    flags = (Mremap.MAYMOVE | Mremap.FIXED).value
    for number in range(2):
        with machine.failing_allocation(number) as failed:
            moved = failure(lambda: do_mremap(mm, BASE, 2 * PMD_SIZE, 2 * PMD_SIZE, flags, far, privileged=False))
        assert (moved, bool(failed)) == (errno.ENOMEM, True)
        assert sizes(mm, 2) == "HH"
        assert frames_of(mm, BASE, huge(2)) == frames
        machine.check()
    check_marks(mm, 2 * HUGE)


def test_dontneed_of_the_whole_and_of_a_part(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, 2 * HUGE)
    do_madvise(mm, huge(0), PMD_SIZE, Madv.DONTNEED)
    machine.check()
    assert sizes(mm, 2) == "-H"
    assert mm.rss.counts[Rss.ANON] == HUGE
    do_madvise(mm, huge(1) + PAGE_SIZE, PAGE_SIZE, Madv.DONTNEED)
    assert sizes(mm, 2) == "-t"
    assert mm.rss.counts[Rss.ANON] == HUGE - 1
    assert load(mm, huge(0)) == b"\0"
    assert sizes(mm, 2) == "Zt"
    do_madvise(mm, page(1), PAGE_SIZE, Madv.DONTNEED)
    assert sizes(mm, 2) == "tt"
    machine.check()
    store(mm, page(1), b"x")
    assert sizes(mm, 2) == "tt"


def test_free_and_cold_change_state_bits_and_cut_up_at_the_edges(mm: MmStruct) -> None:
    marked(mm, 3 * HUGE)
    do_madvise(mm, huge(0), PMD_SIZE, Madv.FREE)
    assert not entry_at(mm, BASE) & (PTE_ACCESSED | PTE_DIRTY)
    do_madvise(mm, huge(1), PMD_SIZE, Madv.COLD)
    assert entry_at(mm, huge(1)) & (PTE_ACCESSED | PTE_DIRTY) == PTE_DIRTY
    do_madvise(mm, huge(2) + PAGE_SIZE, PAGE_SIZE, Madv.FREE)
    assert sizes(mm, 3) == "HHt"
    assert not entry_at(mm, huge(2) + PAGE_SIZE) & PTE_DIRTY
    assert entry_at(mm, huge(2)) & PTE_DIRTY
    check_marks(mm, 3 * HUGE)
    load(mm, BASE)
    assert entry_at(mm, BASE) & (PTE_ACCESSED | PTE_DIRTY) == PTE_ACCESSED


def test_advice_and_locks_for_a_part_cut_it_up(mm: MmStruct) -> None:
    marked(mm, 3 * HUGE)
    do_madvise(mm, page(5), PAGE_SIZE, Madv.DONTFORK)
    do_mlock(mm, page(HUGE + 5), PAGE_SIZE, VM_LOCKED, privileged=True)
    do_mlock(mm, huge(2), PMD_SIZE, VM_LOCKED, privileged=True)
    assert sizes(mm, 3) == "ttH"
    check_marks(mm, 3 * HUGE)


def test_a_hole_for_another_mapping_cuts_it_up(mm: MmStruct) -> None:
    marked(mm, HUGE)
    mmap(mm, 1, READ, ANON, at=page(200))
    assert sizes(mm, 1) == "t"
    assert load(mm, page(200)) == b"\0"


def test_the_heap_gets_huge_pages_and_gives_them_back(machine: HugeMachine, mm: MmStruct) -> None:
    mm.start_brk = mm.brk = BASE
    do_brk(mm, huge(2) + 100, privileged=False)
    store(mm, page(3), b"x")
    store(mm, huge(1), b"y")
    assert sizes(mm, 2) == "HH"
    do_brk(mm, page(7), privileged=False)
    assert sizes(mm, 2) == "t-"
    assert mm.rss.counts[Rss.ANON] == 7
    assert load(mm, page(3)) == b"x"
