"""Huge pages: where they come from, what cuts them up, and that every page of them is what it would be without."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from signal import SIGKILL, SIGSEGV

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PF_WRITE, PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_RW
from kerneld.mm.access import pin_user_pages, read_remote_vm, unpin_user_pages, write_remote_vm
from kerneld.mm.brk import do_brk
from kerneld.mm.frames import ZERO_PFN
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.madvise import do_madvise
from kerneld.mm.mincore import do_mincore
from kerneld.mm.mlock import do_mlock
from kerneld.mm.mm import MmStruct
from kerneld.mm.mprotect import do_mprotect
from kerneld.mm.mremap import do_mremap
from kerneld.mm.munmap import do_munmap
from kerneld.mm.populate import fault_in_range, mark_accessed, mm_populate
from kerneld.mm.pte_ops import Rss
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv, Map, Mremap
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from tests.mm.huge_world import HUGE, HugeMachine, entry_at, frame_at, frames_of, huge, sizes
from tests.mm.world import (
    ANON,
    BASE,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED_ANON,
    access,
    errno_of,
    failure,
    load,
    mmap,
    page,
    signal_of,
    store,
    vma_at,
)


@pytest.fixture
def machine() -> Iterator[HugeMachine]:
    made = HugeMachine()
    yield made
    made.check()
    made.close()


@pytest.fixture
def mm(machine: HugeMachine) -> MmStruct:
    return machine.new_mm()


def marked(mm: MmStruct, pages: int, at: int = BASE) -> None:
    """Make writable memory in which some pages have a mark of their own, in huge pages as far as there are some."""
    mmap(mm, pages, RW, ANON, at=at)
    for number in [*range(0, pages, 61), pages - 1]:
        store(mm, at + number * PAGE_SIZE, number.to_bytes(4, "little"))


def check_marks(mm: MmStruct, pages: int, at: int = BASE) -> None:
    for number in [*range(0, pages, 61), pages - 1]:
        assert load(mm, at + number * PAGE_SIZE, 4) == number.to_bytes(4, "little")


def test_a_write_maps_two_mebibytes_at_once(machine: HugeMachine, mm: MmStruct) -> None:
    mmap(mm, 2 * HUGE, RW, ANON, at=BASE)
    free = machine.frames.free_pages
    store(mm, page(5), b"x")
    assert sizes(mm, 2) == "H-"
    assert mm.rss[Rss.ANON] == HUGE
    assert machine.frames.free_pages == free - HUGE - 3  # two upper tables and the deposited one
    head = frame_at(mm, BASE)
    assert head % HUGE == 0
    assert frames_of(mm, BASE, huge(1)) == [*range(head, head + HUGE)]
    assert frames_of(mm, page(100), huge(1) + PAGE_SIZE) == [*range(head + 100, head + HUGE), 0]
    assert load(mm, page(5)) == b"x"
    assert load(mm, page(HUGE - 1)) == b"\0"
    assert machine.frames.huge.events["thp_fault_alloc"] == 1


@pytest.mark.parametrize(("first", "pages"), [(1, HUGE), (0, HUGE - 1), (1, 2 * HUGE - 2)], ids=["low", "high", "both"])
def test_a_vma_that_does_not_cover_them_gets_single_pages(mm: MmStruct, first: int, pages: int) -> None:
    mmap(mm, pages, RW, ANON, at=page(first))
    for number in range(first, first + pages, 100):
        store(mm, page(number), b"x")
    store(mm, page(first + pages - 1), b"x")
    assert set(sizes(mm)) == {"t", "-"}


def test_who_gets_huge_pages(machine: HugeMachine, mm: MmStruct) -> None:
    file, _ = machine.new_file(bytes(PMD_SIZE))
    mmap(mm, HUGE, RW, SHARED_ANON, at=huge(0))
    mmap(mm, HUGE, RW, PRIVATE, at=huge(1), file=file)
    mmap(mm, HUGE, RW, ANON | Map.STACK.value, at=huge(2))
    mmap(mm, HUGE, RW, ANON, at=huge(3))
    do_madvise(mm, huge(3), PMD_SIZE, Madv.NOHUGEPAGE)
    for number in range(4):
        store(mm, huge(number), b"x")
    assert sizes(mm) == "tttt"


@pytest.mark.parametrize(
    ("thp", "plain", "advised"),
    [
        (TransparentHugepage.ALWAYS, "H", "H"),
        (TransparentHugepage.MADVISE, "t", "H"),
        (TransparentHugepage.NEVER, "t", "t"),
    ],
)
def test_always_madvise_never(thp: TransparentHugepage, plain: str, advised: str) -> None:
    machine = HugeMachine(thp=thp)
    mm = machine.new_mm()
    mmap(mm, HUGE, RW, ANON, at=huge(0))
    mmap(mm, HUGE, RW, ANON, at=huge(1))
    do_madvise(mm, huge(1), PMD_SIZE, Madv.HUGEPAGE)
    store(mm, huge(0), b"x")
    store(mm, huge(1), b"x")
    assert sizes(mm, 2) == plain + advised
    machine.check()
    machine.close()


def test_a_read_maps_the_huge_zero_page_which_is_there_once(machine: HugeMachine, mm: MmStruct) -> None:
    mmap(mm, 2 * HUGE, RW, ANON, at=BASE)
    free = machine.frames.free_pages
    assert load(mm, page(7)) == b"\0"
    assert load(mm, page(HUGE + 7)) == b"\0"
    assert sizes(mm, 2) == "ZZ"
    assert frame_at(mm, page(7)) == frame_at(mm, page(HUGE + 7))
    assert mm.rss[Rss.ANON] == 0
    machine.check()
    do_munmap(mm, huge(0), PMD_SIZE)
    assert machine.frames.huge.zero_users == 1
    do_munmap(mm, huge(1), PMD_SIZE)
    assert machine.frames.huge.zero_users == 0
    assert machine.frames.free_pages == free


def test_a_write_to_the_huge_zero_page_copies_one_page(machine: HugeMachine, mm: MmStruct) -> None:
    mmap(mm, HUGE, RW, ANON, at=BASE)
    load(mm, BASE)
    store(mm, page(3), b"x")
    assert sizes(mm, 1) == "t"
    assert mm.rss[Rss.ANON] == 1
    assert frames_of(mm, page(0), page(3)) == [ZERO_PFN] * 3
    assert load(mm, page(3)) == b"x"
    assert machine.frames.huge.zero_pfn is None


def test_without_a_free_block_there_are_single_pages(machine: HugeMachine, mm: MmStruct) -> None:
    blocks = []
    while True:
        try:
            blocks.append(machine.frames.huge.alloc())
        except SysError:
            break
    mmap(mm, HUGE, RW, ANON, at=BASE)
    assert load(mm, BASE) == b"\0"
    store(mm, BASE, b"x")
    assert sizes(mm, 1) == "t"
    assert machine.frames.huge.events["thp_fault_fallback"] == 1
    assert machine.frames.huge.events["thp_zero_page_alloc_failed"] == 1
    for head in blocks:
        machine.frames.huge.put(head)


def test_frames_of_single_pages_come_back_as_a_huge_page(machine: HugeMachine, mm: MmStruct) -> None:
    """What is on the per-cpu list and in small blocks makes a huge page again."""
    mmap(mm, 4 * HUGE, RW, ANON, at=BASE)
    do_madvise(mm, BASE, 4 * PMD_SIZE, Madv.NOHUGEPAGE)
    mm_populate(mm, BASE, huge(4))
    assert sizes(mm) == "tttt"
    for number in range(0, 4 * HUGE, 3):
        do_madvise(mm, page(number), PAGE_SIZE, Madv.DONTNEED)
    do_munmap(mm, BASE, 4 * PMD_SIZE)
    marked(mm, 4 * HUGE)
    assert sizes(mm) == "HHHH"
    check_marks(mm, 4 * HUGE)


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
    assert mm.resident_pages == 0
    assert mm.hiwater_rss == 4 * HUGE


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
    assert child.rss == mm.rss
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
    assert mm.rss[Rss.ANON] == 2 * HUGE


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
    assert mm.rss[Rss.ANON] == HUGE
    do_madvise(mm, huge(1) + PAGE_SIZE, PAGE_SIZE, Madv.DONTNEED)
    assert sizes(mm, 2) == "-t"
    assert mm.rss[Rss.ANON] == HUGE - 1
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
    assert mm.rss[Rss.ANON] == 7
    assert load(mm, page(3)) == b"x"


@pytest.mark.parametrize("write", [True, False])
def test_populate_fills_whole_ones_with_huge_pages(machine: HugeMachine, mm: MmStruct, write: bool) -> None:
    mmap(mm, 3 * HUGE, RW if write else READ, ANON, at=page(100))
    mm_populate(mm, page(100), page(100 + 3 * HUGE))
    assert sizes(mm, 4) == ("tHHt" if write else "tZZt")
    assert mm.rss[Rss.ANON] == (3 * HUGE if write else 0)
    assert do_mincore(mm, page(100), 3 * PMD_SIZE, 3 * HUGE) == b"\1" * 3 * HUGE
    machine.check()
    vma = vma_at(mm, page(100))
    assert fault_in_range(mm, vma, vma.start, vma.end, write) == (vma.end, 0)
    assert sizes(mm, 4) == ("tHHt" if write else "tZZt")


def test_populate_meets_every_kind(machine: HugeMachine, mm: MmStruct) -> None:
    """A huge page shared with a child, the huge zero page, one of NOHUGEPAGE memory, and nothing at all."""
    mmap(mm, 4 * HUGE, RW, ANON, at=BASE)
    store(mm, huge(0), b"x")
    load(mm, huge(1))
    store(mm, huge(2), b"y")
    child = machine.fork(mm)
    do_madvise(mm, BASE, 4 * PMD_SIZE, Madv.NOHUGEPAGE)
    mm_populate(mm, BASE, huge(4))
    assert sizes(mm) == "tttt"
    assert sizes(child) == "HZH-"
    assert mm.rss[Rss.ANON] == 4 * HUGE
    assert len(set(frames_of(mm, BASE, huge(4)))) == 4 * HUGE
    assert (load(mm, huge(0)), load(mm, huge(2))) == (b"x", b"y")


def test_populate_without_memory_says_where_it_stopped(machine: HugeMachine, mm: MmStruct) -> None:
    mmap(mm, 4 * HUGE, RW, ANON, at=BASE)
    vma = vma_at(mm, BASE)
    number = 0
    while True:
        with machine.failing_allocation(number) as failed:
            reached, fault = fault_in_range(mm, vma, BASE, huge(4), write=True)
        machine.check()
        assert all(frames_of(mm, BASE, reached))
        assert (fault != 0) == (reached < huge(4))
        if not failed:
            break
        do_madvise(mm, BASE, 4 * PMD_SIZE, Madv.DONTNEED)
        number += 1
    assert sizes(mm) == "HHHH"


def test_touching_a_part_marks_the_whole_entry(mm: MmStruct) -> None:
    marked(mm, HUGE)
    do_madvise(mm, BASE, PMD_SIZE, Madv.FREE)
    mark_accessed(mm, page(3), page(5), write=True)
    assert entry_at(mm, BASE) & (PTE_ACCESSED | PTE_DIRTY) == PTE_ACCESSED | PTE_DIRTY


@pytest.mark.parametrize("write", [True, False])
def test_a_fault_without_any_memory_is_an_oom(machine: HugeMachine, mm: MmStruct, write: bool) -> None:
    mmap(mm, HUGE, RW, ANON, at=BASE)
    for number in range(3):
        with machine.failing_allocation(number):
            assert signal_of(lambda: access(mm, BASE, PF_WRITE if write else 0)) == SIGKILL
        assert sizes(mm, 1) == "-"
        machine.check()
    assert load(mm, BASE) == b"\0"


def test_reading_and_writing_from_outside(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, HUGE)
    assert read_remote_vm(mm, page(61), 4) == (61).to_bytes(4, "little")
    do_madvise(mm, BASE, PMD_SIZE, Madv.FREE)
    write_remote_vm(mm, page(62) - 2, b"over")
    assert sizes(mm, 1) == "H"
    assert entry_at(mm, BASE) & PTE_DIRTY
    assert load(mm, page(62), 2) == b"er"
    do_mprotect(mm, BASE, PMD_SIZE, READ)
    write_remote_vm(mm, page(70), b"forced", force=True)
    assert sizes(mm, 1) == "H"
    assert load(mm, page(70), 6) == b"forced"
    child = machine.fork(mm)
    write_remote_vm(mm, page(70), b"copied", force=True)
    assert (sizes(mm, 1), sizes(child, 1)) == ("t", "H")
    assert load(child, page(70), 6) == b"forced"
    assert load(mm, page(70), 6) == b"copied"
    assert not entry_at(mm, page(70)) & PTE_RW


def test_pinning_unshares(machine: HugeMachine, mm: MmStruct) -> None:
    """What is pinned to be read is the process's own: a shared huge page is cut up, a former owner's taken over."""
    marked(mm, 2 * HUGE)
    child = machine.fork(mm)
    frames = frames_of(mm, BASE, huge(2))
    (pinned,) = pin_user_pages(mm, page(61), 4, write=False)
    unpin_user_pages(mm, [pinned])
    assert sizes(mm, 2) == "tH"
    assert frame_at(mm, page(61)) == pinned >> PAGE_SHIFT != frames[61]
    machine.exit(child)
    pages = pin_user_pages(mm, page(HUGE + 5), 4, write=False)
    assert pages == [frames[HUGE + 5] << PAGE_SHIFT]
    unpin_user_pages(mm, pages)
    assert sizes(mm, 2) == "tH"
    assert not entry_at(mm, page(HUGE)) & PTE_RW
    machine.check()
    check_marks(mm, 2 * HUGE)


def test_collapse_makes_a_huge_page_of_single_ones(machine: HugeMachine, mm: MmStruct) -> None:
    machine.sysctl.transparent_hugepage = TransparentHugepage.NEVER
    marked(mm, 2 * HUGE)
    child = machine.fork(mm)
    assert sizes(mm, 2) == "tt"
    store(mm, page(HUGE), HUGE.to_bytes(4, "little"))
    store(mm, BASE, bytes(4))
    tables = mm.page_table.table_pages
    do_madvise(mm, page(HUGE - 3), PMD_SIZE + 3 * PAGE_SIZE, Madv.COLLAPSE)
    assert sizes(mm, 2) == "tH"
    assert mm.page_table.table_pages == tables
    do_madvise(mm, BASE, 2 * PMD_SIZE, Madv.COLLAPSE)
    assert sizes(mm, 2) == "HH"
    assert mm.rss[Rss.ANON] == 2 * HUGE
    machine.check()
    check_marks(mm, 2 * HUGE)
    check_marks(child, 2 * HUGE)
    store(mm, page(61), b"mine")
    assert load(child, page(61), 4) == (61).to_bytes(4, "little")
    assert machine.frames.huge.events["thp_collapse_alloc"] == 2


def test_what_cannot_be_collapsed(machine: HugeMachine, mm: MmStruct) -> None:
    def collapse(start: int, end: int) -> int:
        return failure(lambda: do_madvise(mm, start, end - start, Madv.COLLAPSE))

    mmap(mm, 3 * HUGE, RW, ANON, at=BASE)
    assert collapse(BASE, huge(1)) == errno.EINVAL  # no anon_vma yet
    do_madvise(mm, BASE, 3 * PMD_SIZE, Madv.NOHUGEPAGE)
    store(mm, BASE, b"x")
    assert collapse(BASE, huge(1)) == errno.EINVAL  # MADV_NOHUGEPAGE
    do_madvise(mm, BASE, 3 * PMD_SIZE, Madv.HUGEPAGE)
    assert collapse(huge(1), huge(2)) == errno.EINVAL  # no leaf table
    assert collapse(page(1), page(2)) == errno.EINVAL  # between two boundaries
    assert collapse(BASE, page(2)) == 0  # from a boundary: nothing to do
    assert collapse(BASE, huge(2)) == errno.EINVAL
    assert sizes(mm, 3) == "H--"
    mm_populate(mm, huge(1), huge(2))
    do_mprotect(mm, page(HUGE), PAGE_SIZE, READ)
    do_mprotect(mm, huge(1), PMD_SIZE, READ)
    assert sizes(mm, 3) == "Ht-"
    assert collapse(huge(1), huge(2)) == errno.EINVAL  # nothing writable
    mmap(mm, HUGE, RW, SHARED_ANON, at=huge(3))
    store(mm, huge(3), b"x")
    assert collapse(huge(3), huge(4)) == errno.EINVAL


def test_collapse_without_a_huge_page_changes_nothing(machine: HugeMachine, mm: MmStruct) -> None:
    machine.sysctl.transparent_hugepage = TransparentHugepage.NEVER
    marked(mm, HUGE)
    frames = frames_of(mm, BASE, huge(1))
    with machine.failing_allocation(0):
        assert errno_of(lambda: do_madvise(mm, BASE, PMD_SIZE, Madv.COLLAPSE)) == errno.ENOMEM
    assert frames_of(mm, BASE, huge(1)) == frames
    assert machine.frames.huge.events["thp_collapse_alloc_failed"] == 1


def test_a_huge_page_taken_from_used_memory_reads_as_zeros(machine: HugeMachine, mm: MmStruct) -> None:
    marked(mm, 4 * HUGE)
    do_munmap(mm, BASE, 4 * PMD_SIZE)
    mmap(mm, 4 * HUGE, RW, ANON, at=BASE)
    mm_populate(mm, BASE, huge(4))
    assert sizes(mm) == "HHHH"
    assert not any(machine.ram.frames_np[pfn].any() for pfn in frames_of(mm, BASE, huge(4)))
    assert mm.page_table.entries(BASE, huge(4)).size == 4 * PMD_SIZE >> PAGE_SHIFT
