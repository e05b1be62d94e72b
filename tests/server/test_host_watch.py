"""The loop's watch of a real process: a timer only while there is one, its end by the pidfd."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kerneld.server.host_watch import HostWatch
from kerneld.server.watch import NO_PIDFD
from kerneld.shadowpt.asking import Pending
from kerneld.shadowpt.host_look import Look


class FakeShadow:
    """Counts the looks; `cost` is how long each takes."""

    def __init__(self) -> None:
        self.followed_host: Any = None
        self.looks = 0
        self.cost = 0.0
        self.is_stuck = False
        self.given_up: list[Pending] = []
        self.asking = SimpleNamespace(reader=SimpleNamespace(give_up=self.given_up.append))

    def look_again(self) -> Pending:
        self.looks += 1
        until = time.monotonic() + self.cost
        while time.monotonic() < until:
            pass
        pending = Pending()
        if not self.is_stuck:
            pending.finish(Look([], b"", b""))
        return pending

    def host_exited(self) -> None:
        self.followed_host = None


def target(pid: int, alive: bool = True) -> Any:
    return SimpleNamespace(pid=pid, is_alive=lambda: alive)


@pytest.fixture
def shadow() -> FakeShadow:
    return FakeShadow()


@pytest.fixture
def watch(shadow: FakeShadow) -> Iterator[HostWatch]:
    fake: Any = shadow
    with select.epoll() as epoll:
        watch = HostWatch(fake, epoll, 0.5)
        yield watch
        watch.close()


def test_without_a_target_there_is_no_timer(watch: HostWatch, shadow: FakeShadow) -> None:
    assert (watch.is_needed, watch.wait_seconds(None), watch.wait_seconds(3.0)) == (False, None, 3.0)
    shadow.followed_host = target(os.getpid())
    assert watch.is_needed
    watch.tend()
    wait = watch.wait_seconds(None)
    assert wait is not None
    assert 0 < wait <= 0.5
    assert watch.wait_seconds(0.0) == 0.0
    assert shadow.looks == 0
    assert watch.pidfd != NO_PIDFD
    shadow.followed_host = None
    assert watch.is_needed
    watch.tend()
    assert (watch.wait_seconds(None), watch.pidfd, watch.is_needed) == (None, NO_PIDFD, False)


def test_a_long_look_is_followed_by_a_longer_rest(shadow: FakeShadow) -> None:
    fake: Any = shadow
    with select.epoll() as epoll:
        watch = HostWatch(fake, epoll, 0.0)
        shadow.followed_host = target(os.getpid())
        shadow.cost = 0.02
        watch.tend()
        assert shadow.looks == 1
        wait = watch.wait_seconds(None)
        assert wait is not None
        assert wait > 0.06
        watch.tend()
        assert shadow.looks == 1
        watch.close()


def test_a_target_that_died_before_the_watch_ends_at_once(watch: HostWatch, shadow: FakeShadow) -> None:
    shadow.followed_host = target(os.getpid(), alive=False)
    watch.tend()
    assert shadow.followed_host is None
    assert watch.pidfd == NO_PIDFD
    assert not watch.is_needed


def test_a_look_that_does_not_end_is_the_only_one(shadow: FakeShadow) -> None:
    fake: Any = shadow
    with select.epoll() as epoll:
        watch = HostWatch(fake, epoll, 0.0)
        shadow.followed_host, shadow.is_stuck = target(os.getpid()), True
        for _ in range(3):
            watch.tend()
        assert (shadow.looks, watch.wait_seconds(None)) == (1, None)
        shadow.followed_host = None
        watch.tend()
        assert len(shadow.given_up) == 1
        watch.close()
