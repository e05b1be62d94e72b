"""The quick part of the fuzzers; `make fuzz` is the long one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import through_daemon
from tests.support.client import Nursery
from tests.support.hostile_daemon import HostileDaemon
from tests.support.in_process import Drive


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.mark.parametrize(("seed", "count", "check_share"), [(1, 2500, 0.0), (2, 500, 1.0)])
def test_hostile_datagrams_into_a_machine(seed: int, count: int, check_share: float) -> None:
    drive = Drive(seed, check_share, check_each=check_share == 1.0)
    try:
        drive.run(count)
        drive.finish()
        # Hostile, and yet let in: a fuzzer that is refused at the door finds nothing.
        assert drive.nr_good > drive.nr_replies // 4
    finally:
        drive.close()


def test_hostile_clients_of_a_daemon(tmp_path: Path, nursery: Nursery) -> None:
    daemon = HostileDaemon(tmp_path, nursery, check_invariants=False)
    total = through_daemon.run(daemon, 1, 3000, 2)
    assert total["datagrams"] >= 3000
    assert total["good"] > total["replies"] // 4
    assert total["witnessed"] > 10
    daemon.close()
