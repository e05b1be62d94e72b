"""Both sides, once a file: behind it kerneld goes by its own rules again; skipped where this host is no referee."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.referee.match import Match
from tests.differential.both_sides import referee


@pytest.fixture(scope="module")
def match() -> Iterator[Match]:
    with referee(check_invariants=True) as both:
        yield both
