"""Programs with hundreds of mappings: a quick part of the mode, and how little of them is compared after most calls."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from signal import SIGSEGV
from typing import Any

import pytest

from kerneld.referee.execute import is_whole
from kerneld.referee.match import Match
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import Outcome, near_together, words_of
from kerneld.referee.program import At, Op, from_json, to_json
from kerneld.referee.programs import make_program
from kerneld.referee.shrink import shrink
from kerneld.referee.simulated import Simulated
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE
from tests.differential.agreement import agree
from tests.differential.both_sides import referee

PROGRAMS, OPS = 2, 24
ROW = At(-1, 0x7000_0000_0000)
FLAGS = (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value
CUT = (
    Op(0, "mmap", (ROW, 600 * PAGE_SIZE, 3, FLAGS, 0)),
    Op(0, "madvise", (ROW, PAGE_SIZE, Madv.DONTFORK.value), times=300, stride=2 * PAGE_SIZE),
)


@pytest.fixture(scope="module")
def many() -> Iterator[Match]:
    with referee(Mode.MANY) as both:
        yield both


def test_random_programs(many: Match) -> None:
    for number in range(PROGRAMS):
        program = make_program(Mode.MANY, f"ci-{number}", OPS)
        assert sum(op.times for op in program) > 300
        agree(many, program)


def test_a_repeated_operation_survives_its_file() -> None:
    program = make_program(Mode.MANY, "file", OPS)
    assert any(op.times > 1 and op.stride for op in program)
    assert from_json(to_json(program)) == program


def test_shrinking_finds_how_often_an_operation_must_run() -> None:
    program = (Op(0, "load", (At(0), 8), times=700, stride=PAGE_SIZE),)
    assert shrink(program, lambda candidate: candidate[0].times > 257)[0].times == 258


@pytest.mark.parametrize("everything", [True, False])
def test_of_most_states_only_a_part_is_read(many: Match, everything: bool) -> None:
    program = (*CUT, *(Op(0, "touch", (ROW, PAGE_SIZE, 1)) for _ in range(7)))
    wholes = []
    for state in list(many.hosts.play(program, everything=everything)):
        view = state.views[0]
        assert view.totals["VmPTE"] >= 0
        wholes.append(bool(view.mappings[0].flags and view.mappings[0].numbers and "VmRSS" in view.totals))
    assert wholes == [everything or is_whole(program, step) for step in range(9)]
    assert sum(is_whole(program, step) for step in range(9)) == 2


def test_what_only_the_whole_shows_is_found_where_it_began(many: Match, monkeypatch: pytest.MonkeyPatch) -> None:
    """An advice that does nothing shows in no part of a state; the second run compares everything."""
    program = (*CUT, *(Op(0, "load", (ROW, 1)) for _ in range(5)))
    assert many.play(program) is None
    monkeypatch.setattr("kerneld.mm.calls.madvise._FLAG_CHANGES", {})
    divergence = many.play(program)
    assert divergence is not None
    assert divergence.step == 1


def test_one_call_of_many_that_differs(many: Match, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (CUT[0], Op(0, "mprotect", (ROW, PAGE_SIZE, 0x100), times=300, stride=2 * PAGE_SIZE))
    assert many.play(program) is None
    calls = itertools.count()
    call = Simulated.call

    def altered(self: Simulated, who: int, *args: Any, **options: Any) -> Outcome:
        outcome = call(self, who, *args, **options)
        return outcome._replace(ret=0) if next(calls) % 301 == 201 else outcome

    monkeypatch.setattr(Simulated, "call", altered)
    divergence = many.play(program)
    assert divergence is not None
    assert divergence.difference == ("data", "0000000000000000 at byte 1600", "eaffffffffffffff at byte 1600")


def test_calls_go_on_after_a_signal(many: Match) -> None:
    """Every second page is there. More orders than are on their way at once."""
    program = (
        Op(0, "mmap", (ROW, PAGE_SIZE, 3, FLAGS, 0), times=200, stride=2 * PAGE_SIZE),
        Op(0, "touch", (ROW, PAGE_SIZE, 1), times=400, stride=PAGE_SIZE),
    )
    *_, state = many.hosts.play(program)
    assert struct.unpack("<400q", state.outcome.data) == (1, 0) * 200
    assert (state.outcome.signo, state.outcome.si_addr) == (SIGSEGV, ROW.offset + PAGE_SIZE)
    assert state.outcome.min_flt == 200
    assert many.play(program) is None


def test_ranges_that_are_read_together() -> None:
    places = [(0x1000, 0x3000), (0x5000, 0x6000), (0x100_0000, 0x100_1000)]
    ranges = near_together(places)
    assert ranges == [(0x1000, 0x6000), (0x100_0000, 0x100_1000)]
    read = [bytes([low >> 12 & 0xFF]) * (high - low >> 9) for low, high in ranges]
    assert [(start, len(words), words[0]) for start, words in words_of(places, ranges, read)] == [
        (0x1000, 16, 1), (0x5000, 8, 1), (0x100_0000, 8, 0),
    ]  # fmt: skip
