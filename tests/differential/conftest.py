"""Both sides, or kerneld's alone, once a file.

Behind both kerneld goes by its own rules again; skipped where this host is no referee.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.referee.match import Match
from kerneld.referee.simulated import Simulated
from tests.differential.alone import facts
from tests.differential.both_sides import referee


@pytest.fixture(scope="module")
def match() -> Iterator[Match]:
    with referee(check_invariants=True) as both:
        yield both


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    side = Simulated(tmp_path_factory.mktemp("files"), facts(), check_invariants=True)
    yield side
    side.close()
