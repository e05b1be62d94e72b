"""Huge pages: where they come from, by a fault, by populate and by MADV_COLLAPSE, and who else may use them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from signal import SIGKILL

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PF_WRITE, PTE_ACCESSED, PTE_DIRTY, PTE_RW
from kerneld.mm.calls.access import pin_user_pages, read_remote_vm, unpin_user_pages, write_remote_vm
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mincore import do_mincore
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.fault.populate import fault_in_range, mm_populate
from kerneld.mm.fault.thp import thp_vma_suitable
from kerneld.mm.frames.frames import ZERO_PFN
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.rss import Rss
from kerneld.mm.space.vma import Vma
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
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
    PRIVATE,
    READ,
    RW,
    SHARED_ANON,
    access,
    checked,
    errno_of,
    failure,
    load,
    mmap,
    page,
    signal_of,
    store,
    vma_at,
)


def test_a_mapping_at_address_0_counts_as_long_enough() -> None:
    """2 MiB below its end wraps to the top of the address space, as in Linux; two pages further up it is too short."""
    assert thp_vma_suitable(Vma(0, PAGE_SIZE, 0, 0, None), PAGE_SIZE - PMD_SIZE)
    assert not thp_vma_suitable(Vma(PMD_SIZE, PMD_SIZE + PAGE_SIZE, 0, 0, None), PAGE_SIZE)
    assert thp_vma_suitable(Vma(PMD_SIZE, 2 * PMD_SIZE, 0, 0, None), PMD_SIZE)


@pytest.fixture
def machine() -> Iterator[HugeMachine]:
    yield from checked(HugeMachine())


def test_a_write_maps_two_mebibytes_at_once(machine: HugeMachine, mm: MmStruct) -> None:
    mmap(mm, 2 * HUGE, RW, ANON, at=BASE)
    free = machine.frames.free_pages
    store(mm, page(5), b"x")
    assert sizes(mm, 2) == "H-"
    assert mm.rss.counts[Rss.ANON] == HUGE
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
    assert mm.rss.counts[Rss.ANON] == 0
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
    assert mm.rss.counts[Rss.ANON] == 1
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


@pytest.mark.parametrize("write", [True, False])
def test_populate_fills_whole_ones_with_huge_pages(machine: HugeMachine, mm: MmStruct, write: bool) -> None:
    mmap(mm, 3 * HUGE, RW if write else READ, ANON, at=page(100))
    mm_populate(mm, page(100), page(100 + 3 * HUGE))
    assert sizes(mm, 4) == ("tHHt" if write else "tZZt")
    assert mm.rss.counts[Rss.ANON] == (3 * HUGE if write else 0)
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
    assert mm.rss.counts[Rss.ANON] == 4 * HUGE
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
    mm.pages.mark_accessed(page(3), page(5), write=True)
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
    unpin_user_pages(mm, [pinned], dirty=False)
    assert sizes(mm, 2) == "tH"
    assert frame_at(mm, page(61)) == pinned >> PAGE_SHIFT != frames[61]
    machine.exit(child)
    pages = pin_user_pages(mm, page(HUGE + 5), 4, write=False)
    assert pages == [frames[HUGE + 5] << PAGE_SHIFT]
    unpin_user_pages(mm, pages, dirty=False)
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
    assert mm.rss.counts[Rss.ANON] == 2 * HUGE
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


def test_collapse_ends_where_a_leaf_table_is_missing(machine: HugeMachine, mm: MmStruct) -> None:
    """What is behind it stays as it is. Source: Linux v6.8 mm/khugepaged.c:madvise_collapse(), SCAN_PMD_NONE."""
    machine.sysctl.transparent_hugepage = TransparentHugepage.NEVER
    mmap(mm, 3 * HUGE, RW, ANON, at=BASE)
    for at in (BASE, huge(2)):
        store(mm, at, b"x")
    assert failure(lambda: do_madvise(mm, BASE, 3 * PMD_SIZE, Madv.COLLAPSE)) == errno.EINVAL
    assert sizes(mm, 1) == "H"
    assert entry_at(mm, huge(2)) & PTE_RW
    assert machine.frames.huge.events["thp_collapse_alloc"] == 1
    machine.check()


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
    assert mm.page_table.walk.entries(BASE, huge(4)).size == 4 * PMD_SIZE >> PAGE_SHIFT
