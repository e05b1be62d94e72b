"""The table against what the target's own /proc/self/maps and pagemap say, after random operations, thousands of times.

The inspector looks as soon as the target has its reply: a change has to be in the table by then.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import random_ops, scripts
from tests.e2e.watch import START, Watch
from tests.support.client import Client, Nursery
from tests.support.watched_daemon import Daemon

PAGES = 64


@pytest.fixture(scope="module")
def unchecked(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Daemon]:
    """A kerneld that does not check its invariants: that costs ten times what a call does."""
    daemon = Daemon(tmp_path_factory.mktemp("e2e"), nursery, check_invariants=False)
    yield daemon
    daemon.close()


@pytest.fixture
def unchecked_daemon(unchecked: Daemon) -> Iterator[Daemon]:
    yield unchecked
    unchecked.let_clients_go()


def change_and_compare(inspector: Client, target: Client, seed: int, steps: int) -> set[str]:
    """Do random operations and compare after each; return the names of those that succeeded."""
    target.run(scripts.ignore_signals)
    target.run(random_ops.prepare, seed, START, PAGES)
    watch = Watch(inspector, target, pages=PAGES).begin()
    names = set()
    for number in range(steps):
        name = target.run(random_ops.step)
        rows = watch.rows()
        assert rows == watch.truth(), f"step {number}: {name}"
        names.add(name)
    inspector.p.shadowpt_close()
    return {name for name in names if not name.endswith("failed")}


def test_every_change_is_in_the_table_when_the_call_returns(unchecked_daemon: Daemon) -> None:
    inspector, target = unchecked_daemon.client(), unchecked_daemon.client()
    assert len(change_and_compare(inspector, target, seed=1, steps=2000)) >= 9


def test_the_same_with_all_invariants_checked(inspector: Client, target: Client) -> None:
    change_and_compare(inspector, target, seed=2, steps=60)


def test_a_process_that_watches_itself_never_sees_an_old_table(unchecked_daemon: Daemon) -> None:
    client = unchecked_daemon.client()
    client.run(scripts.ignore_signals)
    client.run(random_ops.prepare, 3, START, PAGES)
    Watch(client, client, pages=PAGES).begin()
    changes = sum(client.run(random_ops.self_check, 500, START, PAGES) for _round in range(4))
    assert changes > 500


def test_snapshots_of_a_target_that_never_stands_still_are_of_one_moment(unchecked_daemon: Daemon) -> None:
    inspector, target = unchecked_daemon.client(), unchecked_daemon.client()
    target.p.getpid()
    pages = 512
    Watch(inspector, target, pages=pages).begin()
    target.post(random_ops.flip_for_ever, START, pages)
    target.result()
    # All pages mapped, all only allocated, or none: never a mixture, which is what a call leaves half done.
    assert inspector.run(random_ops.take_snapshots, 1000) == {frozenset({7}), frozenset({3}), frozenset({0})}
