"""Servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.server import batch, exchange
from tests.server.fakes import ServerUnderTest, fake_run


@pytest.fixture
def private_dir(tmp_path: Path) -> Path:
    """A directory as the daemon wants it."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def server(private_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerUnderTest]:
    """A server over the fake kernel, driven turn by turn."""
    for module in (exchange, batch):
        monkeypatch.setattr(module, "run", fake_run)
    server = ServerUnderTest(private_dir)
    yield server
    server.close()
