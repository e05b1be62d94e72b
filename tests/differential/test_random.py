"""A quick part of `make referee`: some random programs, and those whose divergences were found and mended.

The random ones are the same in every run, so that a test that passes goes on to; `make referee` makes fresh ones.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kerneld.referee.generate import generate
from kerneld.referee.match import Match
from kerneld.referee.program import from_json
from kerneld.referee.wide import WideGenerator
from tests.differential.agreement import REGRESSIONS, agree

FRESH_PROGRAMS = 75
SECONDS = 10
"""On a busy machine fewer programs are run; the last lines of the test run say how many."""
FEWEST = 20
"""So many are run however long it takes: the test's own timeout ends a machine that cannot."""


@pytest.mark.parametrize("file", REGRESSIONS, ids=lambda file: file.stem)
def test_what_was_mended_stays_so(match: Match, file: Path) -> None:
    match.ours.check_invariants(True)
    agree(match, from_json(file.read_text()))


def test_random_programs(match: Match, record_property: Callable[[str, object], None]) -> None:
    seed = os.environ.get("REFEREE_SEED", "ci")
    end = time.monotonic() + SECONDS
    played = 0
    while played < FRESH_PROGRAMS and (played < FEWEST or time.monotonic() < end):
        match.ours.check_invariants(played % 25 == 0)
        agree(match, generate(f"{seed}-{played}", 40))
        played += 1
    record_property("played", f"{played} of {FRESH_PROGRAMS} programs")


def test_programs_on_wide_ranges(match: Match) -> None:
    for number in range(10):
        match.ours.check_invariants(number % 4 == 0)
        agree(match, WideGenerator(random.Random(f"ci-{number}")).program(40))
