"""A quick part of each mode of the referee.

Nothing else is in this file: while it is played a mode has the host as it wants it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.referee.errors import HostError, RunnerDiedError
from kerneld.referee.match import Match, open_match
from kerneld.referee.mode import Mode
from kerneld.referee.program import from_json
from kerneld.referee.programs import make_program
from tests.differential.test_random import agree

PROGRAMS = 60
SECONDS = 15
"""On a busy machine fewer programs are run."""


@pytest.fixture(scope="module", params=[Mode.HUGE, Mode.SWAP], ids=str)
def moded(request: pytest.FixtureRequest) -> Iterator[Match]:
    try:
        opened = open_match(request.param, check_invariants=True)
        both = opened.__enter__()
    except RunnerDiedError:
        raise
    except HostError as error:
        pytest.skip(str(error))
    try:
        yield both
    finally:
        opened.__exit__(None, None, None)


def test_what_was_mended_stays_so(moded: Match) -> None:
    for file in sorted((Path(__file__).parent / "programs" / moded.mode).glob("*.json")):
        agree(moded, from_json(file.read_text()))


def test_random_programs(moded: Match) -> None:
    moded.ours.check_invariants(False)
    seed = os.environ.get("REFEREE_SEED", "ci")
    end = time.monotonic() + SECONDS
    for number in range(PROGRAMS):
        if number and time.monotonic() > end:
            break
        agree(moded, make_program(moded.mode, f"{seed}-{number}", 40))
