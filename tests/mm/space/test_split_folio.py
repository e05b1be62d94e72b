"""The split of a huge page that a large family shares: of most address spaces it does not look at the entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mlock import do_mlock
from kerneld.mm.frames.frames import PG_UNEVICTABLE
from kerneld.mm.frames.huge_frames import PG_LARGE
from kerneld.mm.frames.lru import isolate
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.reclaim import shrink
from kerneld.mm.space import rmap_walk, split_folio
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.huge_machine import HUGE, HugeMachine, frames_of, huge, marked
from tests.support.machine import BASE, advise, checked, page

CHILDREN = 6


@pytest.fixture
def machine() -> Iterator[HugeMachine]:
    yield from checked(HugeMachine())


def test_a_family_whose_entries_are_small(machine: HugeMachine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is dirty, so all pages will be; of the others only one that has locked memory is looked at."""
    marked(mm, HUGE)
    frames = np.array(frames_of(mm, BASE, huge(1)))
    first = machine.fork(mm)
    do_munmap(first, BASE, PAGE_SIZE)
    children = [first, *(machine.fork(first) for _ in range(CHILDREN - 1))]
    do_mlock(children[-1], page(1), 4 * PAGE_SIZE, VM_LOCKED, privileged=True)
    whole = machine.fork(children[0])
    looked_at: list[MmStruct | None] = []
    walk_vma = rmap_walk._walk_vma

    def counted(frames: object, pfns: object, vma: Vma, *where: object) -> Iterator[rmap_walk.Mapped]:
        looked_at.append(vma.vm_mm)
        return walk_vma(frames, pfns, vma, *where)  # type: ignore[arg-type]

    monkeypatch.setattr(rmap_walk, "_walk_vma", counted)
    do_madvise(mm, BASE, PMD_SIZE // 2, Madv.COLD)
    assert not machine.frames.has(frames, PG_LARGE).any()
    assert len(looked_at) <= 3
    assert children[-1] in looked_at
    assert machine.frames.has(frames, PG_UNEVICTABLE)[:6].tolist() == [False, True, True, True, True, False]
    assert whole.rss.resident_pages == HUGE - 1


@pytest.fixture
def splits(machine: HugeMachine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[object]], list[int]]:
    """Return how many entries of 2 MiB each step of some pieces splits; a crowd is more than two, a piece takes two."""
    monkeypatch.setattr(split_folio, "CROWD", 2)
    monkeypatch.setattr(shrink, "CROWD", 2)
    monkeypatch.setattr(split_folio, "SPLIT_AT_ONCE", 2)

    def steps(pieces: Iterator[object]) -> list[int]:
        events, counted = machine.frames.huge.events, []
        before = events["thp_split_pmd"]
        for _ in pieces:
            counted.append(events["thp_split_pmd"] - before)
            before = events["thp_split_pmd"]
            if counted[-1]:
                machine.check()
        return [*counted, events["thp_split_pmd"] - before]

    return steps


def crowd(machine: HugeMachine, mm: MmStruct) -> list[int]:
    """Let the family map a huge page, and return its frames."""
    marked(mm, HUGE)
    for _ in range(CHILDREN):
        machine.fork(mm)
    return frames_of(mm, BASE, huge(1))


def test_what_a_crowd_maps_whole_is_split_in_pieces(
    machine: HugeMachine, mm: MmStruct, splits: Callable[[Iterator[object]], list[int]]
) -> None:
    frames = crowd(machine, mm)
    assert splits(iter(split_folio.split_crowded_folio(machine.frames, frames[7]))) == [2, 2, 2, 1]
    assert not machine.frames.has(np.array(frames), PG_LARGE).any()


def test_it_may_end_between_two_pieces(
    machine: HugeMachine, mm: MmStruct, splits: Callable[[Iterator[object]], list[int]]
) -> None:
    frames = crowd(machine, mm)
    pieces = iter(split_folio.split_crowded_folio(machine.frames, frames[0]))
    next(pieces)
    for each in list(machine.mms):
        do_munmap(each, BASE, 4 * PMD_SIZE)
    machine.check()
    assert splits(pieces) == [0]


def test_reclaim_leaves_it_to_the_background_pass(
    machine: HugeMachine, mm: MmStruct, splits: Callable[[Iterator[object]], list[int]]
) -> None:
    frames = np.array(crowd(machine, mm)[:40])
    isolate(machine.frames, frames)
    crowded: list[int] = []
    assert shrink.shrink_folio_list(machine.frames, frames, ignore_references=True, crowded=crowded) == 0
    assert crowded == frames.tolist()
    assert machine.frames.has(frames, PG_LARGE).all()
    machine.check()


def test_the_scan_for_equal_pages_splits_it_in_pieces(
    machine: HugeMachine, mm: MmStruct, splits: Callable[[Iterator[object]], list[int]]
) -> None:
    """The pages are merged by the scans after the one that has found them."""
    crowd(machine, mm)
    advise(mm, 0, HUGE, Madv.MERGEABLE)
    ksm = ksm_of(machine.frames)
    counted = [n for _ in range(3) for n in splits(ksm_do_scan(ksm, machine.frames, 1 << 20, lambda mm: False))]
    assert max(counted) == 2
    assert sum(counted) == 1 + CHILDREN
