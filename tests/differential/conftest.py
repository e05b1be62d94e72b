"""Both sides, once a file: behind it kerneld goes by its own rules again; skipped where this host is no referee."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.referee.match import Match
from tests.differential.both_sides import referee


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A referee waits while another one has given the host swap, and that one until those before have ended."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(300), append=False)


@pytest.fixture(scope="module")
def match() -> Iterator[Match]:
    with referee(check_invariants=True) as both:
        yield both
