"""What tests of commands ask for: a daemon that runs, and a directory as one wants it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import private_socket, running_daemon


@pytest.fixture
def private_dir(tmp_path: Path) -> Path:
    """A directory as the daemon wants it."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon that runs."""
    path = private_socket(tmp_path_factory.mktemp("run"))
    with running_daemon(path):
        yield path
