"""The rows of the small calls: each has a handler of its own, and the handler's time is that of one call alone."""

from __future__ import annotations

import subprocess

import pytest

from bench.handlers import CALLS
from bench.sample import Mark
from bench.small_calls import CASES, Case, handler_row


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.ours.__name__ == name)


def test_each_row_has_a_number_and_a_handler_of_its_own() -> None:
    assert len({case.number for case in CASES}) == len({case.ours.__name__ for case in CASES}) == len(CASES)
    assert {case.ours.__name__ for case in CASES} <= CALLS.keys()


@pytest.mark.parametrize(("name", "ours", "mark"), [
    ("pair", [20, 40], Mark(25_000)),
    ("dontneed", [40, 80], Mark(25_000)),
    ("fork", [400, 800], None),
])  # fmt: skip
def test_a_handlers_row_is_of_one_call(
    monkeypatch: pytest.MonkeyPatch, name: str, ours: list[float], mark: Mark | None
) -> None:
    """A pair is two calls, and so half of the time is that of one. What takes the host over 10 µs has no mark."""
    said = f"{name} 4000\n{name} 8000\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, said))
    row = handler_row(case_of(name), rounds=2)
    assert row.ours == ours
    assert (row.mark, row.theirs) == (mark, [])


def test_a_handler_is_measured_each_round() -> None:
    row = handler_row(case_of("read"), rounds=3)
    assert len(row.ours) == 3
    assert min(row.ours) > 100
