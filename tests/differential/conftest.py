"""Both sides, once a file: behind it kerneld goes by its own rules again; skipped where this host is no referee."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.referee.errors import HostError, RunnerDiedError
from kerneld.referee.match import Match, open_match


@pytest.fixture(scope="module")
def match() -> Iterator[Match]:
    try:
        opened = open_match(check_invariants=True)
        both = opened.__enter__()
    except RunnerDiedError:
        raise
    except HostError as error:
        pytest.skip(str(error))
    try:
        yield both
    finally:
        opened.__exit__(None, None, None)
