"""A referee for tests: both sides, or a test that is skipped and says why this host is no referee."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kerneld.referee.errors import HostError, RunnerDiedError
from kerneld.referee.match import Match, open_match


@contextmanager
def referee(*args: Any, **options: Any) -> Iterator[Match]:
    """Yield what `open_match` opens with these arguments; a runner that dies on the way is a failure all the same."""
    try:
        opened = open_match(*args, **options)
        both = opened.__enter__()
    except RunnerDiedError:
        raise
    except HostError as error:
        pytest.skip(str(error))
    try:
        yield both
    finally:
        opened.__exit__(None, None, None)
