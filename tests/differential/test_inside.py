"""The runner inside a kerneld, by `kerneld exec`: the real processor and its TLB change nothing that a program sees."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kerneld.referee.generate import generate
from kerneld.referee.match import Match
from kerneld.referee.program import from_json
from tests.differential.agreement import REGRESSIONS, agree
from tests.differential.both_sides import referee
from tests.native.inside import why_not_here
from tests.support.rights import ROOT_IS_NOT_THE_HOSTS

PROGRAMS = 20
SECONDS = 10
"""On a busy machine fewer programs are run."""
FEWEST = 6
"""So many are run however long it takes."""


@pytest.fixture(scope="module")
def inside() -> Iterator[Match]:
    why = why_not_here() or ROOT_IS_NOT_THE_HOSTS
    if why:
        pytest.skip(why)
    with referee(inside=True) as both:
        yield both


def test_it_is_no_host_like_linux(inside: Match) -> None:
    assert inside.hosts.facts.is_kerneld
    assert not any(known.since > (0, 0) for known in inside.known)


def test_what_was_mended_stays_so(inside: Match) -> None:
    own = sorted((Path(__file__).parent / "programs" / "inside").glob("*.json"))
    assert own
    for file in [*own, *REGRESSIONS[:: max(1, len(REGRESSIONS) // FEWEST)]]:
        agree(inside, from_json(file.read_text()))


def test_random_programs(inside: Match, record_property: Callable[[str, object], None]) -> None:
    seed = os.environ.get("REFEREE_SEED", "ci")
    end = time.monotonic() + SECONDS
    played = 0
    while played < PROGRAMS and (played < FEWEST or time.monotonic() < end):
        agree(inside, generate(f"{seed}-inside-{played}", 40))
        played += 1
    assert played >= FEWEST
    record_property("played", f"{played} of {PROGRAMS} programs")
