"""Reclaim of pages that very many VMAs may map: a scan does not look at all of them at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.files import i_mmap
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import PG_ACTIVE
from kerneld.mm.frames.lru import SWAP_CLUSTER_MAX, Lists, LruList, isolate
from kerneld.mm.reclaim import scan_control, shrink
from kerneld.mm.reclaim.shrink import shrink_folio_list
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rmap_walk import Patience
from shared.uapi.page import PAGE_SIZE
from tests.mm.reclaim.old import make_old
from tests.support.machine import BASE, READ, SHARED, Machine, checked, entry, load, mmap, page, pfn_of, store

TIMES = 40
PAGES = 16


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(i_mmap, "CROWD", 32)
    monkeypatch.setattr(i_mmap, "_WALKED_AT_ONCE", 4)
    monkeypatch.setattr("kerneld.mm.space.pace._PIECE_SECONDS", 0.0)
    yield from checked(Machine(4 << 20, swap_bytes=4 << 20))


def place(number: int) -> int:
    return BASE + number * 2 * PAGES * PAGE_SIZE


@pytest.fixture
def file(machine: Machine, mm: MmStruct) -> File:
    """A file that is mapped forty times, and whose first page has not been used since."""
    file, _ = machine.new_file(b"x" * PAGES * PAGE_SIZE)
    for number in range(TIMES):
        mmap(mm, PAGES, READ, SHARED, at=place(number), file=file)
        assert load(mm, place(number)) == b"x"
        make_old(mm, place(number))
    return file


def count_searches(monkeypatch: pytest.MonkeyPatch, mapping: AddressSpace) -> list[int]:
    """Return a list that gets the number of VMAs that each search in a file's has found."""
    found: list[int] = []
    overlapping = type(mapping.i_mmap).overlapping

    def counted(self: i_mmap.IMmap, first: int, last: int) -> list[object]:
        vmas = overlapping(self, first, last)
        found.append(len(vmas))
        return list(vmas)

    monkeypatch.setattr(i_mmap.IMmap, "overlapping", counted)
    return found


def test_a_direct_reclaim_leaves_it(
    machine: Machine, mm: MmStruct, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = count_searches(monkeypatch, file.mapping)
    pfn = pfn_of(mm, place(0))
    batch = np.array([pfn])
    isolate(machine.frames, batch)
    crowded: list[int] = []
    assert shrink_folio_list(machine.frames, batch, crowded=crowded) == 0
    assert (found, crowded) == ([], [pfn])
    assert not machine.frames.flags_at[pfn] & PG_ACTIVE


def test_a_direct_reclaim_does_not_look_for_it_again_and_again(
    machine: Machine, mm: MmStruct, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of memory is in use, too. To find a page of a short list takes a look at all of memory."""
    mmap(mm, 4 * TIMES, at=page(1 << 20))
    for number in range(4 * TIMES):
        store(mm, page((1 << 20) + number), b"x")
    monkeypatch.setattr(scan_control, "MOST_SCANNED", 2 * TIMES)
    looked: list[LruList] = []
    refill = Lists._refill

    def noted(self: Lists, kind: LruList) -> bool:
        looked.append(kind)
        return refill(self, kind)

    monkeypatch.setattr(Lists, "_refill", noted)
    assert machine.vmscan.try_to_free_pages(1) >= SWAP_CLUSTER_MAX
    assert len(file.mapping.pages) >= 1
    assert sum(kind >= LruList.INACTIVE_FILE for kind in looked) <= 4


def test_the_background_pass_unmaps_it_in_pieces(machine: Machine, mm: MmStruct, file: File) -> None:
    frames, vmscan = machine.frames, machine.vmscan
    frames.watermark_high = frames.free_pages + PAGES // 2
    vmscan.in_pieces = True
    still_mapped = set()
    # A pass unmaps what it meets. What was in use becomes active then, and inactive again; a later pass drops it.
    for _ in range(4):
        vmscan.wakeup_kswapd()
        while vmscan.is_awake:
            vmscan.kswapd()
            still_mapped.add(sum(entry(mm, place(number)) != 0 for number in range(TIMES)))
    assert {0, TIMES, TIMES // 2} <= still_mapped
    assert len(file.mapping.pages) < PAGES
    machine.check()
    assert load(mm, place(3)) == b"x"


def test_what_a_search_may_cost_is_limited(machine: Machine, mm: MmStruct) -> None:
    """Of a batch whose pages are in a VMA each, those that come too late stay."""
    mmap(mm, TIMES, at=BASE)
    for number in range(TIMES):
        store(mm, page(number), b"x")
        make_old(mm, page(number))
        if number % 2:
            do_mprotect(mm, page(number), PAGE_SIZE, READ)
    batch = np.array([pfn_of(mm, page(number)) for number in range(TIMES)])
    isolate(machine.frames, batch)
    patience = Patience(TIMES)
    freed = shrink_folio_list(machine.frames, batch, patience)
    assert 0 < freed < TIMES // 4
    assert patience.is_over
    assert all(load(mm, page(number)) == b"x" for number in range(TIMES))


def test_vmas_between_two_pages_are_not_looked_at(
    machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = 500
    mmap(mm, pages, at=BASE)
    for number in range(0, pages, 2):
        store(mm, page(number), b"x")
        make_old(mm, page(number))
        do_mprotect(mm, page(number), PAGE_SIZE, READ)
    batch = np.array([pfn_of(mm, page(number)) for number in (0, pages - 2)])
    patience = Patience()
    before = patience.left
    assert shrink.Users(machine.frames, batch, patience).referenced.shape == (2,)
    assert not shrink.Users(machine.frames, batch, Patience()).unknown.any()
    assert before - patience.left <= 2 * 8 + 4
