"""Merged frames that very many pages share: a direct reclaim leaves them, the background pass takes them in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.hw.paging import pte_present
from kerneld.mm.calls.mlock import do_mlock
from kerneld.mm.frames.frames import PG_KSM, PG_UNEVICTABLE
from kerneld.mm.frames.lru import isolate
from kerneld.mm.reclaim import crowd
from kerneld.mm.reclaim.shrink import shrink_folio_list
from kerneld.mm.space import pace, rmap_walk
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.rmap_walk import Patience
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SIZE
from tests.mm.reclaim.old import make_old
from tests.support.ksm import mergeable, merged, scan
from tests.support.machine import Machine, checked, entry, load, page, pfn_of

PAGES = 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches that give up at eight entries, and pieces that are over at once."""
    monkeypatch.setattr(Patience.__init__, "__defaults__", (80,))
    monkeypatch.setattr(crowd, "CROWD", 8)
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(4 << 20, swap_bytes=4 << 20))


@pytest.fixture
def shared(machine: Machine, mm: MmStruct) -> int:
    """The frame of twenty equal pages, not used since; two other frames are merged from two pages each."""
    mergeable(mm, "a" * PAGES + "bbcc")
    scan(machine, 3)
    assert merged(mm, PAGES + 4) == "k" * (PAGES + 4)
    for number in range(PAGES + 4):
        make_old(mm, page(number))
    return pfn_of(mm, page(0))


def reclaim(machine: Machine, pfns: list[int]) -> list[int]:
    """Reclaim frames directly, and return those that are left for the background pass."""
    crowded: list[int] = []
    batch = np.array(pfns)
    isolate(machine.frames, batch)
    shrink_folio_list(machine.frames, batch, crowded=crowded)
    machine.check()
    return crowded


def present(mm: MmStruct) -> int:
    return sum(pte_present(entry(mm, page(number))) for number in range(PAGES))


def test_a_direct_reclaim_leaves_it_and_takes_what_few_share(
    machine: Machine, mm: MmStruct, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    walk = rmap_walk.entries_of_item

    def noted(*args: object) -> object:
        looked.append(1)
        return walk(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rmap_walk, "entries_of_item", noted)
    assert reclaim(machine, [shared, *(pfn_of(mm, page(PAGES + number)) for number in (0, 2))]) == [shared]
    assert present(mm) == PAGES
    assert not any(pte_present(entry(mm, page(PAGES + number))) for number in range(4))
    assert len(looked) == 8, "each item of a frame that is taken is asked twice: first for its own entry"


def test_the_background_pass_takes_it_in_pieces(machine: Machine, mm: MmStruct, shared: int) -> None:
    crowded = machine.vmscan.crowded
    crowded.pfns += reclaim(machine, [shared])
    left, freed = [], 0
    for number in crowded.unmap():
        left.append(present(mm))
        freed += number
        machine.check()
    assert set(range(1, PAGES)) <= set(left)
    assert freed == 1
    assert crowded.take_progress() == PAGES
    assert [load(mm, page(number)) for number in range(PAGES)] == [b"a"] * PAGES


def test_one_that_is_used_meanwhile_stays(machine: Machine, mm: MmStruct, shared: int) -> None:
    crowded = machine.vmscan.crowded
    crowded.pfns += reclaim(machine, [shared])
    steps = crowded.unmap()
    next(steps)
    assert load(mm, page(PAGES - 1)) == b"a"
    assert sum(steps) == 0
    assert machine.frames.flags_at[shared] & PG_KSM
    machine.check()


def test_its_pages_may_go_between_two_pieces(machine: Machine, mm: MmStruct, shared: int) -> None:
    crowded = machine.vmscan.crowded
    crowded.pfns += reclaim(machine, [shared])
    steps = crowded.unmap()
    next(steps)
    do_munmap(mm, page(PAGES // 2), PAGES // 2 * PAGE_SIZE)
    scan(machine)
    assert sum(steps) == 1
    assert load(mm, page(0)) == b"a"


def test_a_locked_page_keeps_it(machine: Machine, mm: MmStruct, shared: int) -> None:
    crowded = machine.vmscan.crowded
    crowded.pfns += reclaim(machine, [shared])
    steps = crowded.unmap()
    next(steps)
    do_mlock(mm, page(3), PAGE_SIZE, VM_LOCKED, privileged=True)
    assert sum(steps) == 0
    assert machine.frames.flags_at[pfn_of(mm, page(3))] & PG_UNEVICTABLE
    machine.check()
