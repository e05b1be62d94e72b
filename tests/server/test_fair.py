"""Who is served when the clients ask for more than a turn has time for. The clock is the test's."""

from __future__ import annotations

import os
import select
from collections import Counter
from typing import cast

import pytest

from kerneld.server import fair
from kerneld.server.fair import GO_ON, SLEEPER_BONUS, TURN_SECONDS, Entry, FairShare
from kerneld.server.session import Session
from shared import wire
from shared.uapi.syscalls import Nr
from tests.server.fakes import Client, ServerUnderTest

READY = 1


class Asking:
    """What the order looks at of a session, and what its next request takes."""

    def __init__(self, seconds: float) -> None:
        self.vruntime, self.crowd = 0.0, 0
        self.batch: object | None = None
        self.seconds = seconds


class Turns:
    """Turns of a loop whose clock goes on only while a session is served."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.share = FairShare([])
        for clock in ("monotonic", "thread_time"):
            monkeypatch.setattr(fair, clock, lambda: self.now)

    def turn(self, *asking: Asking, mask: int = READY) -> list[Asking]:
        """Give a turn to those who ask, and return who was served."""
        served: list[Asking] = []

        def run(session: Session, _mask: int) -> None:
            one = cast(Asking, session)
            self.now += one.seconds
            served.append(one)

        self.share.serve(cast(list[Entry], [(one, mask) for one in asking]), run)
        return served


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return Turns(monkeypatch)


def test_with_time_for_all_all_are_served_in_their_order(turns: Turns) -> None:
    asking = [Asking(TURN_SECONDS / 20) for _ in range(10)]
    for _turn in range(3):
        assert turns.turn(*asking) == asking


def test_a_turn_ends_and_who_is_left_is_served_next(turns: Turns) -> None:
    asking = [Asking(TURN_SECONDS / 2) for _ in range(5)]
    assert turns.turn(*asking) == asking[:2]
    assert turns.turn(*asking[2:]) == asking[2:4]
    assert turns.turn(asking[4], *asking[:4])[0] is asking[4]


def test_one_request_over_the_whole_turn_is_served(turns: Turns) -> None:
    asking = [Asking(5 * TURN_SECONDS), Asking(5 * TURN_SECONDS)]
    assert turns.turn(*asking) == asking[:1]
    assert turns.turn(asking[1]) == asking[1:]


def test_the_busy_ones_share_equally(turns: Turns) -> None:
    asking = [Asking(TURN_SECONDS * (1 + number % 3) / 3) for number in range(60)]
    taken: Counter[int] = Counter()
    for _turn in range(3000):
        for one in turns.turn(*asking):
            taken[id(one)] += round(one.seconds * 1e6)
    assert max(taken.values()) - min(taken.values()) <= 2 * TURN_SECONDS * 1e6


def test_who_asks_little_is_served_in_the_next_turn(turns: Turns) -> None:
    busy = [Asking(TURN_SECONDS / 2) for _ in range(200)]
    little = Asking(TURN_SECONDS / 1000)
    turns.turn(*busy, little)
    for _round in range(200):
        turns.turn(*busy)
    for _time in range(50):
        assert little in turns.turn(*busy, little)
        turns.turn(*busy)


def test_who_comes_new_is_not_before_all(turns: Turns) -> None:
    busy = [Asking(TURN_SECONDS / 2) for _ in range(20)]
    for _round in range(100):
        turns.turn(*busy)
    new = Asking(TURN_SECONDS)
    turns.share.welcome(cast(Session, new))
    count = sum(new in turns.turn(*busy, new) for _turn in range(40))
    assert 1 <= count <= 5


def test_who_has_slept_does_not_get_back_all_that_it_has_not_used(turns: Turns) -> None:
    busy = [Asking(TURN_SECONDS / 2) for _ in range(20)]
    sleeper = Asking(TURN_SECONDS / 2)
    turns.turn(*busy, sleeper)
    for _round in range(1000):
        turns.turn(*busy)
    in_a_row = 0
    while turns.turn(*busy, sleeper)[0] is sleeper:
        in_a_row += 1
    assert 1 <= in_a_row <= (SLEEPER_BONUS + TURN_SECONDS) / sleeper.seconds + 1


def test_a_batch_that_goes_on_and_a_request_are_in_one_order(turns: Turns) -> None:
    batches = [Asking(TURN_SECONDS / 2) for _ in range(50)]
    little = Asking(TURN_SECONDS / 1000)
    turns.turn(*batches, little)
    for one in batches:
        one.batch = object()
    for _round in range(100):
        turns.turn(*batches, mask=GO_ON)
    assert turns.turn(*batches, little)[0] is little


def test_the_loop_serves_one_after_the_other_and_loses_none(server: ServerUnderTest) -> None:
    clients = [server.attached(tid=number) for number in range(1, 6)]
    server.loop.service.fair.turn_seconds = 0.0
    for client in clients:
        client.send(wire.pack_request(Nr.GETPID))
    answered: list[int] = []
    for _client in clients:
        server.turn()
        answered.append(sum(is_readable(client) for client in clients))
    assert answered == [1, 2, 3, 4, 5]
    assert [client.receive()[0].ret for client in clients] == [os.getpid()] * 5


def is_readable(client: Client) -> bool:
    """Whether an answer waits."""
    return bool(select.select([client.socket], [], [], 0)[0])
