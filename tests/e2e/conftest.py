"""kerneld as a real process: one that tests share, or one of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import Client, Nursery
from tests.support.tour import running_kerneld
from tests.support.watched_daemon import Daemon


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where actors come from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Daemon]:
    """The kerneld of all tests that do not end one."""
    daemon = Daemon(tmp_path_factory.mktemp("e2e"), nursery)
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The kerneld that tests share, its actors let go after each test; it must still run then."""
    yield shared_daemon
    shared_daemon.let_clients_go()
    assert shared_daemon.process.poll() is None, shared_daemon.complaints()


@pytest.fixture
def own_daemon(tmp_path: Path, nursery: Nursery) -> Iterator[Daemon]:
    """A kerneld of this test's own."""
    daemon = Daemon(tmp_path, nursery)
    yield daemon
    daemon.close()


@pytest.fixture
def target(daemon: Daemon) -> Client:
    """An actor that is to be watched, attached."""
    client = daemon.client()
    assert client.p.getpid() == client.pid
    return client


@pytest.fixture
def inspector(daemon: Daemon) -> Client:
    """An actor that watches, attached."""
    client = daemon.client()
    assert client.p.getpid() == client.pid
    return client


@pytest.fixture(scope="module")
def tour_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a kerneld on which the tests of one file play the tour."""
    with running_kerneld(tmp_path_factory.mktemp("shared") / "kerneld") as path:
        yield path


@pytest.fixture
def own_tour_socket(tmp_path: Path) -> Iterator[Path]:
    """The socket of a kerneld on which one test alone plays the tour."""
    with running_kerneld(tmp_path / "kerneld") as path:
        yield path
