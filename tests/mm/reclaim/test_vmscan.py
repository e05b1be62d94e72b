"""The scan of the LRU lists: what is looked at first, when it is enough, and the background pass."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.hw.paging import PTE_PRESENT
from kerneld.mm.frames.lru import LruList, folio_activate, lru_sizes
from kerneld.mm.reclaim import scan_control
from kerneld.mm.reclaim.page_alloc import init_per_zone_wmark_min
from kerneld.mm.reclaim.scan_control import ScanControl, Speed
from kerneld.mm.reclaim.vmscan import MAX_RECLAIM_RETRIES
from kerneld.mm.space.mm import MmStruct
from shared.uapi.page import PAGE_SIZE
from tests.mm.reclaim.old import make_old
from tests.support.machine import (
    BASE,
    PRIVATE,
    READ,
    Machine,
    checked,
    entry,
    errno_of,
    load,
    mmap,
    page,
    pfn_of,
    store,
)

RAM = 4 << 20
PAGES = 64


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(RAM, swap_bytes=4 << 20))


def write(mm: MmStruct, count: int, at: int = BASE) -> None:
    """Map `count` pages, each of which says its number, not used since."""
    mmap(mm, count, at=at)
    for number in range(count):
        store(mm, at + number * PAGE_SIZE, bytes([number % 255 + 1]))
        make_old(mm, at + number * PAGE_SIZE)


def test_batches_of_a_direct_reclaim_grow_while_all_pages_are_in_use() -> None:
    """Each batch costs what a few pages do not; and nobody else runs meanwhile."""
    scan, background = ScanControl(1, "direct", Speed()), ScanControl(1, "kswapd", Speed())
    sizes = []
    for _ in range(7):
        sizes.append(scan.batch)
        scan.nr_scanned += scan.batch
    assert sizes == [32, 32, 64, 128, 256, 512, 512]
    scan.nr_reclaimed = 1
    background.nr_scanned = 400
    assert (scan.batch, background.batch) == (32, 32)


def test_the_oldest_go_first(machine: Machine, mm: MmStruct) -> None:
    write(mm, PAGES)
    freed = machine.vmscan.try_to_free_pages(1)
    assert 32 <= freed < PAGES
    present = [number for number in range(PAGES) if entry(mm, page(number)) & PTE_PRESENT]
    assert present == list(range(freed, PAGES))
    assert all(load(mm, page(number)) == bytes([number + 1]) for number in range(PAGES))


def test_the_first_reclaim_imports_nothing(machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy imports a part of itself where it is first asked for some functions: everybody would wait for that."""
    monkeypatch.delattr(np, "ma", raising=False)
    monkeypatch.setitem(sys.modules, "numpy.ma", None)
    write(mm, PAGES)
    assert machine.vmscan.try_to_free_pages(1) >= 32


def test_files_go_before_anonymous_memory_while_there_are_enough(machine: Machine, mm: MmStruct) -> None:
    write(mm, PAGES)
    file, _ = machine.new_file(bytes(PAGES * PAGE_SIZE))
    at = mmap(mm, PAGES, READ, PRIVATE, file=file)
    for number in range(PAGES):
        load(mm, at + number * PAGE_SIZE)
        make_old(mm, at + number * PAGE_SIZE)
    assert machine.vmscan.try_to_free_pages(8)
    assert machine.frames.vmstat["pgsteal_file"] > 0
    assert machine.frames.vmstat["pswpout"] <= machine.frames.vmstat["pgsteal_file"]


def test_without_swap_anonymous_memory_is_not_scanned(mm: MmStruct) -> None:
    machine = Machine(RAM)
    mm = machine.new_mm()
    write(mm, PAGES)
    assert machine.vmscan.reclaimable_pages() == 0
    assert machine.vmscan.try_to_free_pages(8) == 0
    assert machine.frames.vmstat["pgscan_anon"] == 0
    machine.close()


def test_what_is_in_use_is_taken_in_the_end(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, PAGES, at=BASE)
    for number in range(PAGES):
        store(mm, page(number), b"x")
    assert machine.vmscan.try_to_free_pages(8) >= 8


def test_active_pages_become_inactive_where_these_are_few(machine: Machine, mm: MmStruct) -> None:
    write(mm, PAGES)
    folio_activate(machine.frames, np.array([pfn_of(mm, page(number)) for number in range(PAGES)]))
    assert lru_sizes(machine.frames)[LruList.ACTIVE_ANON] == PAGES
    freed = machine.vmscan.try_to_free_pages(1)
    assert freed >= 32
    assert machine.frames.vmstat["pgdeactivate"] >= freed
    assert [number for number in range(PAGES) if not entry(mm, page(number)) & PTE_PRESENT] == list(range(freed))


def fill(machine: Machine, mm: MmStruct) -> None:
    """Use memory until less is free than the background pass wants."""
    init_per_zone_wmark_min(machine.frames, machine.sysctl)
    count = machine.frames.free_pages - machine.frames.watermark_low
    write(mm, count)
    assert machine.frames.free_pages < machine.frames.watermark_high


def test_the_background_pass_ends_at_the_high_watermark(machine: Machine, mm: MmStruct) -> None:
    fill(machine, mm)
    machine.vmscan.wakeup_kswapd()
    assert not machine.vmscan.is_awake
    assert machine.frames.free_pages >= machine.frames.watermark_high
    assert machine.frames.vmstat["pgsteal_kswapd"] > 0


def test_in_pieces_it_goes_on_when_it_is_told_to(
    machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kerneld.mm.space.pace._PIECE_SECONDS", 0.0)
    fill(machine, mm)
    vmscan = machine.vmscan
    vmscan.in_pieces = True
    vmscan.wakeup_kswapd()
    turns = 0
    assert machine.frames.free_pages < machine.frames.watermark_high
    while vmscan.is_awake:
        vmscan.kswapd()
        machine.check()
        turns += 1
    assert turns > 1
    assert machine.frames.free_pages >= machine.frames.watermark_high


def test_a_pass_that_frees_nothing_rests_after_sixteen_times() -> None:
    machine = Machine(RAM)
    mm = machine.new_mm()
    fill(machine, mm)
    for _ in range(MAX_RECLAIM_RETRIES + 3):
        machine.vmscan.wakeup_kswapd()
    assert machine.vmscan.kswapd_failures == MAX_RECLAIM_RETRIES
    machine.close()


def test_an_allocation_reclaims_before_it_fails(mm: MmStruct) -> None:
    machine = Machine(RAM, swap_bytes=1 << 20, reclaims=True)
    mm = machine.new_mm()
    total = machine.frames.total_pages
    mmap(mm, total + 100, at=BASE)
    for number in range(total + 100):
        store(mm, page(number), b"x")
        make_old(mm, page(number))
    assert machine.frames.vmstat["pswpout"] >= 100
    assert machine.frames.vmstat["allocstall_movable"] + machine.frames.vmstat["pgsteal_kswapd"] > 0
    assert entry(mm, page(0))
    machine.close()


def test_an_allocation_fails_where_nothing_can_be_reclaimed_and_nobody_killed() -> None:
    machine = Machine(RAM, reclaims=True)
    taken = machine.frames.alloc_pages(machine.frames.free_pages - machine.frames.watermark_min)
    assert errno_of(lambda: machine.frames.alloc_page(0)) == errno.ENOMEM
    assert machine.frames.free_pages <= machine.frames.watermark_min
    machine.frames.put_pages(taken)
    machine.close()


def test_a_batch_is_as_long_as_the_time_allows() -> None:
    """With every function told to many traces a page takes a millisecond: nobody waits for 128 of them."""
    speed = Speed()
    direct, background = ScanControl(512, "direct", speed), ScanControl(512, "kswapd", speed)
    assert (direct.batch, background.batch) == (512, 128)
    speed.note(32, 0.032)
    assert direct.batch == background.batch == 8
    speed.note(8, 0.00008)
    assert (direct.batch, background.batch) == (512, 128)


def test_a_direct_reclaim_that_takes_long_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1.0, 1.005, 1.02, 1.03, 1.03))
    monkeypatch.setattr(scan_control, "thread_time", lambda: next(times))
    scan = ScanControl(512, "direct", Speed())
    late = [scan.is_late, scan.is_late]
    scan.begin_again()
    assert [*late, scan.is_late] == [False, True, False]
