"""A real process that cannot be looked at, as target of a table: its inspector waits for a while, and nobody else."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.client import realmem
from tests.hostile.through_daemon import Witness
from tests.support.actor import Me
from tests.support.client import Nursery
from tests.support.hostile_daemon import HostileDaemon
from tests.support.stuck_process import ADDRESS, StuckWorld, stuck_process

PAGE = 4096


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[StuckWorld]:
    directory = tmp_path / "fuse"
    directory.mkdir()
    with stuck_process(directory) as world:
        yield world


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[HostileDaemon]:
    nursery = Nursery()
    daemon = HostileDaemon(tmp_path, nursery, check_invariants=False)
    yield daemon
    daemon.close()
    nursery.close()


@pytest.fixture
def witness(daemon: HostileDaemon) -> Iterator[Witness]:
    witness = Witness(daemon.path)
    yield witness
    witness.close()


def open_table(me: Me, pid: int) -> int:
    """Open and start a table of a real process; returns 0 or the errno."""
    entries = realmem.map_anonymous(PAGE)
    try:
        me.p.shadowpt_open(pid, ADDRESS, ADDRESS + PAGE, entries, host=True)
        me.p.shadowpt_start()
    except OSError as error:
        return error.errno or 0
    return 0


def get_pid(me: Me) -> int:
    return me.p.getpid()


def test_one_that_gets_stuck_while_it_is_followed(stuck: StuckWorld, daemon: HostileDaemon, witness: Witness) -> None:
    """The opener's own next call waits, for that long; who asks nothing of it does not; and SIGTERM ends the daemon."""
    opener = daemon.client()
    assert opener.run(open_table, stuck.pid) == 0
    stuck.get_stuck()
    witness.look()
    opener.post(get_pid)
    for _ in range(100):
        witness.look()
    assert opener.result() == opener.pid
    witness.look()
    assert daemon.end() == 0


def test_one_that_is_stuck_when_it_is_opened(stuck: StuckWorld, daemon: HostileDaemon, witness: Witness) -> None:
    opener = daemon.client()
    stuck.get_stuck()
    opener.post(open_table, stuck.pid)
    for _ in range(100):
        witness.look()
    assert opener.result() == errno.EINVAL
    assert opener.run(open_table, os.getpid()) == 0


def test_the_daemon_ends_while_it_is_asked(stuck: StuckWorld, daemon: HostileDaemon, witness: Witness) -> None:
    opener = daemon.client()
    stuck.get_stuck()
    opener.post(open_table, stuck.pid)
    witness.look()
    assert daemon.end() == 0
