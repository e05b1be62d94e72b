"""A quick part of `make referee`: some random programs, and those whose divergences were found and mended.

The random ones are the same in every run, so that a test that passes goes on to; `make referee` makes fresh ones.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from kerneld.referee.describe import describe_divergence
from kerneld.referee.generate import generate
from kerneld.referee.match import Match
from kerneld.referee.program import Program, from_json, to_json
from kerneld.referee.wide import WideGenerator

REGRESSIONS = sorted(Path(__file__).with_name("programs").glob("*.json"))
FRESH_PROGRAMS = 150
SECONDS = 20
"""On a busy machine fewer programs are run."""


def agree(match: Match, program: Program) -> None:
    divergence = match.play(program)
    if divergence is not None:
        pytest.fail("\n".join([*describe_divergence(program, divergence), "", to_json(program)]), pytrace=False)


@pytest.mark.parametrize("file", REGRESSIONS, ids=lambda file: file.stem)
def test_what_was_mended_stays_so(match: Match, file: Path) -> None:
    match.ours.check_invariants(True)
    agree(match, from_json(file.read_text()))


def test_random_programs(match: Match) -> None:
    seed = os.environ.get("REFEREE_SEED", "ci")
    end = time.monotonic() + SECONDS
    for number in range(FRESH_PROGRAMS):
        if number and time.monotonic() > end:
            break
        match.ours.check_invariants(number % 25 == 0)
        agree(match, generate(f"{seed}-{number}", 40))


def test_programs_on_wide_ranges(match: Match) -> None:
    for number in range(20):
        match.ours.check_invariants(number % 4 == 0)
        agree(match, WideGenerator(random.Random(f"ci-{number}")).program(40))
