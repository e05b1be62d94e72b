"""The link to an agent: one that answers at once is waited for, one that is late is heard later, one that has gone is
the end of its program."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, cast

import pytest

from kerneld.server import agent_link
from kerneld.server.agent_link import AgentLink, Patience
from kerneld.server.connection import Connection
from kerneld.syscalls.kernel import Sender
from kerneld.tlb.record import DISMISSED, OPERATION, RECORD
from shared.uapi.page import TASK_SIZE, Pid
from tests.support.patience import SECONDS

DROP_ALL = OPERATION.pack(0, TASK_SIZE, 0)


def order(number: int) -> bytes:
    """Return an order that drops nothing."""
    return RECORD.pack(RECORD.size, 0, number)


@dataclass
class Scene:
    """A kernel's end, an agent's end, and what was killed and told."""

    agent: socket.socket
    killed: list[str] = field(default_factory=list)
    told: list[int] = field(default_factory=list)

    def link(self, ours: socket.socket) -> AgentLink:
        connection = Connection(ours, Sender(Pid(1), 0, 0))
        return AgentLink(
            connection,
            cast(Any, None),
            lambda: self.killed.append("the process"),
            lambda link: self.told.append(link.acknowledged),
            Patience(),
        )

    def answer(self, number: int) -> None:
        self.agent.send(number.to_bytes(8, "little"))

    def read(self) -> tuple[int, int, bytes]:
        """Return what the agent finds: count, number, operations."""
        record = self.agent.recv(4096)
        _, count, number = RECORD.unpack_from(record)
        return count, number, record[RECORD.size :]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def scene(pair: tuple[socket.socket, socket.socket]) -> Scene:
    return Scene(pair[1])


@pytest.fixture
def link(scene: Scene, pair: tuple[socket.socket, socket.socket]) -> AgentLink:
    return scene.link(pair[0])


def test_an_agent_that_answers_is_waited_for(monkeypatch: pytest.MonkeyPatch, scene: Scene, link: AgentLink) -> None:
    monkeypatch.setattr(agent_link, "PATIENCE_SECONDS", SECONDS)
    answers = threading.Thread(target=lambda: scene.answer(scene.read()[1]))
    answers.start()
    assert link.order(order(7))
    answers.join()
    assert (link.acknowledged, scene.killed) == (7, [])


def test_an_agent_that_is_late_is_heard_later_and_nothing_is_killed(scene: Scene, link: AgentLink) -> None:
    assert not link.order(order(1))
    assert not link.order(order(2))
    scene.answer(1)
    assert link.hear()
    assert link.acknowledged == 1
    scene.answer(2)
    assert link.hear()
    assert (scene.told, scene.killed) == ([1, 2], [])
    scene.answer(3)
    assert link.order(order(3))


def test_all_late_agents_together_cost_the_others_less_than_a_tenth_of_a_second(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    patience = Patience()
    connections = [Connection(pair[0].dup(), Sender(Pid(1), 0, 0)) for _ in range(20)]
    links = [
        AgentLink(connection, cast(Any, None), lambda: None, lambda _: None, patience) for connection in connections
    ]
    began = monotonic()
    for link in links:
        assert not link.order(order(1))
        assert not link.order(order(2))
    # On a busy machine this process itself has to wait for a processor.
    assert monotonic() - began < 20 * agent_link.PATIENCE_SECONDS
    assert patience._left <= 0
    for connection in connections:
        connection.close()


def test_what_an_agent_has_no_room_for_is_made_up_for(scene: Scene, link: AgentLink) -> None:
    number = 1
    while not link._has_missed:
        assert not link.order(order(number))
        number += 1
    assert not link.order(order(number))
    link.dismiss()
    found = []
    while True:
        count, at, operations = scene.read()
        if count == DISMISSED:
            break
        found.append((at, operations))
        scene.answer(at)
        link.hear()
    assert [at for at, _ in found[:-1]] == list(range(1, number - 1))
    assert found[-1] == (number, DROP_ALL)
    assert (link.acknowledged, scene.killed) == (number, [])


def test_a_word_that_nobody_can_have_said_is_no_answer_to_later_orders(scene: Scene, link: AgentLink) -> None:
    assert not link.order(order(1))
    scene.answer(100)
    assert link.hear()
    assert link.acknowledged == 1
    assert not link.order(order(2))


@pytest.mark.parametrize("is_late", [False, True])
def test_the_process_of_an_agent_that_has_gone_is_killed(scene: Scene, link: AgentLink, is_late: bool) -> None:
    if is_late:
        assert not link.order(order(1))
    scene.agent.close()
    if is_late:
        assert not link.hear()
    assert link.order(order(2))
    assert scene.killed == ["the process"]
    assert link.order(order(3))
    assert scene.killed == ["the process"]


def test_the_end_of_an_agent_that_was_dismissed_kills_nothing(scene: Scene, link: AgentLink) -> None:
    assert not link.order(order(1))
    link.dismiss()
    scene.agent.close()
    assert not link.hear()
    assert (link.acknowledged, scene.killed) == (1, [])
