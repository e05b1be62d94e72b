"""Writes to /proc/PID/clear_refs in the referee's programs, and what is compared of soft-dirty pages."""

from __future__ import annotations

import errno

import pytest

from kerneld.referee.compare import find_difference
from kerneld.referee.difference import following
from kerneld.referee.execute import PASSED_OVER
from kerneld.referee.known import KNOWN
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import PM_SOFT_DIRTY, State
from kerneld.referee.program import At, Op
from kerneld.referee.programs import make_program
from kerneld.referee.simulated import Simulated
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from tests.differential.alone import states

ANON = (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value
MADE = Op(0, "mmap", (At(0), 2 * PAGE_SIZE, 3, ANON, 0), slot=0)
WRITTEN = Op(0, "store", (At(0), 1), data=b"\xf5")
READ = Op(0, "load", (At(0, PAGE_SIZE), 1))
CLEARED = Op(0, "clear_refs", (0,), data=b"4")


def soft_dirty(state: State) -> tuple[bool, list[bool]]:
    """Return whether the mapping is, and of each page that is there."""
    view = state.views[0]
    return "sd" in view.mappings[0].flags, [word & PM_SOFT_DIRTY != 0 for _, word in sorted(view.pages.items())]


def test_what_a_program_sees_of_it(ours: Simulated) -> None:
    played = states(ours, MADE, WRITTEN, READ, CLEARED, READ, WRITTEN)
    assert [soft_dirty(state) for state in played[2:]] == [
        (True, [True, True]), (False, [False, False]), (False, [False, False]), (False, [True, False]),
    ]  # fmt: skip
    assert [state.outcome.min_flt for state in played[4:]] == [0, 1]


def test_what_it_refuses_and_who_is_gone(ours: Simulated) -> None:
    played = states(ours, MADE, CLEARED._replace(data=b"6"), CLEARED._replace(args=(1,)))
    assert [state.outcome.ret for state in played[1:]] == [-errno.EINVAL, 0]
    assert played[2].outcome == PASSED_OVER


def test_a_host_without_it_has_one_rule(ours: Simulated) -> None:
    with following([known for known in KNOWN if known.source == "no CONFIG_MEM_SOFT_DIRTY"]):
        played = states(ours, MADE, WRITTEN, READ, CLEARED, WRITTEN)
    assert [soft_dirty(state) for state in played[2:]] == [(False, [False, False])] * 3
    assert played[-1].outcome.min_flt == 0


def test_a_bit_that_differs_is_named(ours: Simulated) -> None:
    *_, mine = states(ours, MADE, WRITTEN, CLEARED, WRITTEN)
    *_, theirs = states(ours, MADE, WRITTEN, CLEARED)
    theirs = theirs._replace(outcome=mine.outcome)
    found = find_difference("store", mine, theirs, None)
    assert found is not None
    assert found[0].startswith("the page at")
    assert found[1:] == ("present exclusive soft-dirty", "present exclusive")


@pytest.mark.parametrize("mode", Mode)
def test_half_of_the_programs_have_it(mode: Mode) -> None:
    programs = [make_program(mode, f"s-{number}", 20) for number in range(60)]
    with_it = [program for program in programs if any(op.name == "clear_refs" for op in program)]
    assert 15 < len(with_it) < 45
