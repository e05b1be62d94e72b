"""Programs as text and back, the same program for a seed, and the shortest one that still fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.referee.describe import describe_program
from kerneld.referee.execute import PASSED_OVER, Execution
from kerneld.referee.generate import generate
from kerneld.referee.match import Divergence, Match
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import Outcome, State
from kerneld.referee.program import At, Op, Program, from_json, to_json
from kerneld.referee.programs import make_program
from kerneld.referee.run import run
from kerneld.referee.shrink import shrink
from kerneld.referee.simulated import Simulated
from tests.differential.alone import states


@given(st.integers(), st.integers(3, 60))
def test_a_program_survives_its_file(seed: int, nr_ops: int) -> None:
    program = generate(str(seed), nr_ops)
    assert len(program) == nr_ops
    assert program == generate(str(seed), nr_ops)
    assert from_json(to_json(program)) == program
    assert len(describe_program(program)) == nr_ops


def test_a_file_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="not a program"):
        from_json("[1]")


@given(st.sets(st.integers(0, 39), min_size=1, max_size=4))
def test_shrinking_keeps_what_is_needed_and_nothing_else(needed: set[int]) -> None:
    program = tuple(Op(0, "load", (At(0, number * 4096), number)) for number in range(40))
    shortest = shrink(program, lambda candidate: needed <= {op.args[1] for op in candidate})
    assert [op.args for op in shortest] == [(At(0, 0), number) for number in sorted(needed)]


@pytest.mark.parametrize(("resource", "beside"), [(0, 1), (0, 0), (1, 0), (3, 1)])
def test_a_limit_that_only_shrinking_asks_for_is_passed_over(ours: Simulated, resource: int, beside: int) -> None:
    """RLIMIT_CPU would end the host's runner. And nothing is known of a stack at the start of a program."""
    found = states(ours, Op(0, "prlimit64", (0, resource, beside, 4096, 1 << 63)))
    assert found[0].outcome == PASSED_OVER


def test_a_side_that_answers_otherwise_is_noticed(match: Match, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: an errno, a signal, a byte and a fault that differ are each reported."""
    region = Op(0, "mmap", (At(-1), 8192, 3, 0x22, 0), slot=0)
    program = (region, Op(0, "store", (At(0), 8), data=b"\xf5"), Op(0, "load", (At(0), 8)))
    assert match.play(program) is None
    run = Execution.run

    def alter(at: int, change: Callable[[Outcome], Outcome]) -> None:
        """kerneld's side runs first, so that every other call is its."""
        steps = itertools.count()

        def run_altered(self: Execution[Any], op: Op, **parts: bool) -> State:
            state = run(self, op, **parts)
            return state._replace(outcome=change(state.outcome)) if next(steps) == 2 * at else state

        monkeypatch.setattr(Execution, "run", run_altered)

    changes: list[tuple[int, str, Callable[[Outcome], Outcome]]] = [
        (0, "ret", lambda outcome: outcome._replace(ret=-12)),
        (1, "signo", lambda outcome: outcome._replace(signo=11)),
        (2, "data", lambda outcome: outcome._replace(data=b"\xf9" * 8)),
        (1, "min_flt", lambda outcome: outcome._replace(min_flt=7)),
    ]
    for at, field, change in changes:
        alter(at, change)
        divergence = match.play(program)
        assert divergence is not None
        assert (divergence.step, divergence.difference[0]) == (at, field)


def test_a_divergence_is_told_and_saved_before_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the shortest program may take an hour on an emulated host."""
    lines: list[str] = []
    seen: list[tuple[int, str]] = []
    state: State = State(Outcome(0), {})

    class Disagreeing:
        """Differs at each store."""

        ours = SimpleNamespace(check_invariants=lambda _checks: None)

        def describe(self) -> str:
            return "both sides"

        def expect(self, program: Program) -> None:
            pass

        def play(self, program: Program, *, small: bool) -> Divergence | None:
            saved = [from_json(file.read_text()) for file in tmp_path.iterdir()]
            if saved:
                seen.append((len(saved[0]), lines[-1]))
            at = next((step for step, op in enumerate(program) if op.name == "store"), None)
            return None if at is None else Divergence(at, ("ret", "0", "-14"), state, state)

    @contextmanager
    def disagreement(*_args: object, **_kinds: object) -> Iterator[Disagreeing]:
        yield Disagreeing()

    monkeypatch.setattr("kerneld.referee.run.open_match", disagreement)
    result = run(100, "shrink", 40, tmp_path, lines.append)
    assert result.saved is not None
    length, told = seen[0]
    assert length > 1
    assert told == f"saved as {result.saved}; looking for the shortest that diverges"
    assert "differs: ret" in lines[: lines.index(told)]
    assert [op.name for op in from_json(result.saved.read_text())] == ["store"]


def test_a_run_goes_on_with_any_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each second program runs with small sizes, by its number in the seed: the same program has the same sizes."""
    played: list[tuple[Program, bool]] = []

    class Agreeing:
        ours = SimpleNamespace(check_invariants=lambda _checks: None)

        def describe(self) -> str:
            return "both sides"

        def expect(self, program: Program) -> None:
            pass

        def play(self, program: Program, *, small: bool) -> None:
            played.append((program, small))

    @contextmanager
    def agreement(*_args: object, **_kinds: object) -> Iterator[Agreeing]:
        yield Agreeing()

    monkeypatch.setattr("kerneld.referee.run.open_match", agreement)
    assert run(3, "on", 5, tmp_path, lambda _line: None, first=3).programs == 3
    assert played == [(make_program(Mode.PLAIN, f"on-{number}", 5), number % 2 == 1) for number in (3, 4, 5)]
