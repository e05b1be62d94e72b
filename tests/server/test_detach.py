"""A daemon in the background that does not come up: what its caller hears, and what its log says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kerneld.server.detach import SEE_LOG, Started, start_detached

Tell = Callable[[], None]
TellWhy = Callable[[str], None]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def start(log: Path, serve: Callable[[Tell, TellWhy], int]) -> Started:
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return start_detached(log_fd, serve)
    finally:
        os.close(log_fd)


def test_a_failure_that_nobody_foresaw_is_in_the_log(log: Path) -> None:
    """The line for people sends them there."""

    def serve(_ready: Tell, _failed: TellWhy) -> int:
        # What pytest has put there keeps it for itself.
        sys.stderr = sys.__stderr__
        raise LookupError("the third wheel")

    started = start(log, serve)
    assert (started.is_ready, started.status) == (False, 1)
    assert SEE_LOG in started.message
    assert log.read_text().splitlines()[-1] == "LookupError: the third wheel"


def test_a_failure_that_has_a_line_for_people_is_that_line(log: Path) -> None:
    def serve(_ready: Tell, failed: TellWhy) -> int:
        failed("no room here")
        return 7

    started = start(log, serve)
    assert (started.is_ready, started.status, started.message) == (False, 7, "no room here")
    assert log.read_text() == ""
