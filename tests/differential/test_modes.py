"""A quick part of each mode of the referee.

Nothing else is in this file: while it is played a mode has the host as it wants it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kerneld.referee.match import Match
from kerneld.referee.mode import Mode
from kerneld.referee.program import from_json
from kerneld.referee.programs import make_program
from tests.differential.agreement import agree
from tests.differential.both_sides import referee

PROGRAMS = 30
SECONDS = 8
"""On a busy machine fewer programs are run."""
FEWEST = 6
"""So many are run however long it takes."""


@pytest.fixture(scope="module", params=[Mode.HUGE, Mode.SWAP], ids=str)
def moded(request: pytest.FixtureRequest) -> Iterator[Match]:
    with referee(request.param, check_invariants=True) as both:
        yield both


def test_what_was_mended_stays_so(moded: Match) -> None:
    files = sorted((Path(__file__).parent / "programs" / moded.mode).glob("*.json"))
    assert files
    for file in files:
        agree(moded, from_json(file.read_text()))


def test_random_programs(moded: Match, record_property: Callable[[str, object], None]) -> None:
    moded.ours.check_invariants(False)
    seed = os.environ.get("REFEREE_SEED", "ci")
    end = time.monotonic() + SECONDS
    played = 0
    while played < PROGRAMS and (played < FEWEST or time.monotonic() < end):
        agree(moded, make_program(moded.mode, f"{seed}-{played}", 40))
        played += 1
    record_property("played", f"{played} of {PROGRAMS} programs")
