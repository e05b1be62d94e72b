"""Both sides, once for all tests; skipped with the reason where this host cannot be the referee."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.referee.host import HostError
from kerneld.referee.match import Match, open_match


@pytest.fixture(scope="session")
def match() -> Iterator[Match]:
    try:
        opened = open_match(check_invariants=True)
        both = opened.__enter__()
    except HostError as error:
        pytest.skip(str(error))
    try:
        yield both
    finally:
        opened.__exit__(None, None, None)
