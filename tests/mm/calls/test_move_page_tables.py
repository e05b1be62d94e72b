"""Entries that move over several GiB: a GiB at a time, all of them or none."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.calls.mremap import do_mremap, mremap_in_pieces
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Map, Mremap
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import ANON, BASE, RW, Machine, entry, failure, load, mmap, store

GIB = 1 << 30
GIBS = 3
TO = BASE + 16 * GIB
MOVE = (Mremap.MAYMOVE | Mremap.FIXED).value


def map_gibs(mm: MmStruct) -> None:
    """Map memory of which one page in each GiB, away from the bounds, has been written to."""
    mmap(mm, GIBS * GIB // PAGE_SIZE, RW, ANON | Map.NORESERVE.value, at=BASE)
    for number in range(GIBS):
        store(mm, BASE + number * GIB + 5 * PMD_SIZE, bytes([number + 1]))


def move(mm: MmStruct, to: int) -> int:
    return do_mremap(mm, BASE, GIBS * GIB, GIBS * GIB, MOVE, to, privileged=False)


def written(mm: MmStruct, at: int) -> list[bytes]:
    return [load(mm, at + number * GIB + 5 * PMD_SIZE) for number in range(GIBS)]


@pytest.mark.parametrize("to", [TO, TO + PMD_SIZE, TO + PAGE_SIZE])
def test_the_pages_are_at_the_new_place(mm: MmStruct, to: int) -> None:
    map_gibs(mm)
    assert move(mm, to) == to
    assert written(mm, to) == [b"\1", b"\2", b"\3"]
    assert not entry(mm, BASE + 5 * PMD_SIZE)


@pytest.mark.parametrize("to", [TO, TO + PMD_SIZE])
def test_others_may_be_served_between_two_gib(
    machine: Machine, mm: MmStruct, to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kerneld.mm.space.pace._PIECE_SECONDS", 0.0)
    map_gibs(mm)
    pieces = mremap_in_pieces(mm, BASE, GIBS * GIB, GIBS * GIB, MOVE, to, privileged=False)
    turns = sum(1 for _ in pieces)
    assert turns >= GIBS - 1
    assert written(mm, to) == [b"\1", b"\2", b"\3"]
    machine.check()


@pytest.mark.parametrize(("to", "least"), [(TO, GIBS - 1), (TO + PMD_SIZE, 3 * GIBS)])
def test_a_gib_that_does_not_move_as_one_moves_in_parts(
    machine: Machine, mm: MmStruct, to: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace tells of each entry: a step has 64 tables at most, unless one entry moves all of a GiB."""
    monkeypatch.setattr("kerneld.mm.space.pace._PIECE_SECONDS", 0.0)
    map_gibs(mm)
    for number in range(GIBS * 4):
        store(mm, BASE + number * GIB // 4 + 70 * PMD_SIZE, b"x")
    turns = sum(1 for _ in mremap_in_pieces(mm, BASE, GIBS * GIB, GIBS * GIB, MOVE, to, privileged=False))
    assert turns >= least
    assert written(mm, to) == [b"\1", b"\2", b"\3"]
    assert [load(mm, to + number * GIB // 4 + 70 * PMD_SIZE) for number in range(GIBS * 4)] == [b"x"] * GIBS * 4
    machine.check()


def test_a_move_that_finds_no_frame_is_none(machine: Machine, mm: MmStruct) -> None:
    map_gibs(mm)
    failures = 0
    for number in range(20):
        with machine.failing_allocation(number) as failed:
            ended_in = failure(lambda: move(mm, TO + PMD_SIZE))
        assert ended_in == (errno.ENOMEM if failed else 0)
        if not failed:
            break
        failures += 1
        machine.check()
        assert written(mm, BASE) == [b"\1", b"\2", b"\3"]
        assert mm.vmas.lookup(TO + PMD_SIZE) is None
    assert failures >= GIBS
    assert written(mm, TO + PMD_SIZE) == [b"\1", b"\2", b"\3"]
