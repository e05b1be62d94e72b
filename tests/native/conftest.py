"""Programs inside, and the same outside: one kerneld for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.client import Process
from tests.native.inside import Inside, compile_c, why_not_here
from tests.support.client import Nursery
from tests.support.watched_daemon import Daemon


class NativeDaemon(Daemon):
    """A kerneld with room for real programs."""

    options = ("--ram", "512M", "--swap", "64M")


@pytest.fixture(scope="session", autouse=True)
def _possible_here() -> None:
    why = why_not_here()
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def native_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeDaemon]:
    """The kerneld that the tests share. It does not check its invariants: a program makes thousands of requests."""
    nursery = Nursery()
    daemon = NativeDaemon(tmp_path_factory.mktemp("n"), nursery, check_invariants=False)
    yield daemon
    daemon.close()
    nursery.close()


@pytest.fixture
def inside(native_daemon: NativeDaemon) -> Iterator[Inside]:
    """Runs programs inside; kerneld must still run afterwards, and have no process left."""
    inside = Inside(native_daemon.environment)
    yield inside
    inside.close()
    assert native_daemon.process.poll() is None, native_daemon.complaints()


@pytest.fixture
def inspector(native_daemon: NativeDaemon) -> Iterator[Process]:
    """This process, attached; it may look at everybody."""
    process = Process.attach(str(native_daemon.path))
    yield process
    process.close()


class Programs(dict[str, Path]):
    """Programs by name. Each is compiled when a test first asks for it, as people compile theirs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __missing__(self, name: str) -> Path:
        source = Path(__file__).parent / "c" / f"{name}.c"
        self[name] = compile_c(source, self._directory / name)
        return self[name]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The C programs of tests/native/c."""
    return Programs(tmp_path_factory.mktemp("c"))
