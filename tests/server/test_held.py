"""Who waits for an agent that is late: the threads of its program, and who has asked; nobody else does."""

from __future__ import annotations

import os
import socket
from typing import Any, cast

import pytest

from shared import wire
from shared.uapi.ring import ANSWER_NUMBER, REQUEST_NUMBER
from shared.uapi.syscalls import Nr
from tests.server.fakes import NR_LONG, NR_OWE, Client, FakeMm, ServerUnderTest
from tests.server.test_rings import RingClient

GETPID = wire.pack_request(Nr.GETPID)


class Scene:
    """Two threads in two address spaces; the first is that of the agent."""

    def __init__(self, server: ServerUnderTest) -> None:
        self.server = server
        self.ours, self.other = server.attached(tid=1), server.attached(tid=2)
        ours, other = server.kernel.processes[os.getpid()].threads
        process = server.kernel.processes[os.getpid()]
        process.mm = FakeMm()
        ours.process = cast(Any, _Sharer(process, server.kernel.agents_mm))
        assert other.process.mm is not ours.process.mm

    def owe(self, client: Client) -> None:
        """Let a client ask for what the agent does not do yet."""
        client.send(wire.pack_request(NR_OWE))
        self.server.turn()
        assert not client.is_readable()

    def serves_others(self, times: int = 3) -> bool:
        """Return whether another client has its answers, so often."""
        return [self.other.call(Nr.GETPID).ret for _ in range(times)] == [os.getpid()] * times


class _Sharer:
    """The same process, with another address space."""

    def __init__(self, process: Any, mm: FakeMm) -> None:
        self._process = process
        self.mm = mm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)


@pytest.fixture
def scene(server: ServerUnderTest) -> Scene:
    return Scene(server)


def test_who_has_asked_has_its_answer_when_the_agent_has_answered(server: ServerUnderTest, scene: Scene) -> None:
    scene.owe(scene.ours)
    assert scene.serves_others()
    assert not scene.ours.is_readable()
    server.kernel.agent.answers(server)
    server.turn()
    assert [reply.ret for reply in scene.ours.receive()] == [os.getpid()]
    assert server.kernel.loans == [("lent", [5]), ("back", [5])]


def test_another_who_has_asked_waits_too(server: ServerUnderTest, scene: Scene) -> None:
    """Its own memory is no matter of the agent's."""
    scene.owe(scene.other)
    third = server.attached(tid=3)
    assert third.call(Nr.GETPID).ret == os.getpid()
    assert not scene.other.is_readable()
    server.kernel.agent.answers(server)
    server.turn()
    assert [reply.ret for reply in scene.other.receive()] == [os.getpid()]


def test_requests_of_the_agents_program_are_not_served_meanwhile(server: ServerUnderTest, scene: Scene) -> None:
    scene.owe(scene.other)
    served = len(server.kernel.requests)
    scene.ours.send(GETPID)
    # The loop looks once, and does not come back to it before the agent has answered.
    server.turn()
    server.loop.turn(0)
    assert server.loop._events == []
    assert len(server.kernel.requests) == served
    server.kernel.agent.answers(server)
    while not scene.ours.is_readable():
        server.turn()
    assert [reply.ret for reply in scene.ours.receive()] == [os.getpid()]


def test_a_request_in_a_ring_waits_too(server: ServerUnderTest, scene: Scene) -> None:
    ring = RingClient(scene.ours)
    scene.owe(scene.other)
    ring.put(GETPID)
    ring.client.send(wire.pack_request(Nr.RING_BELL))
    server.turn()
    assert ring.words[ANSWER_NUMBER] != ring.words[REQUEST_NUMBER]
    server.kernel.agent.answers(server)
    while ring.rets() is None:
        server.turn()
    assert ring.rets() == [os.getpid()]


def test_a_batch_waits_between_its_requests(server: ServerUnderTest, scene: Scene) -> None:
    server.loop.service.fair.slice_seconds = 0
    scene.other.send(wire.pack_request(NR_OWE) + GETPID)
    for _ in range(3):
        server.loop.turn(0)
    assert [request.nr for _, request in server.kernel.requests][-1] == NR_OWE
    server.kernel.agent.answers(server)
    while not scene.other.is_readable():
        server.turn()
    assert [reply.ret for reply in scene.other.receive()] == [os.getpid()] * 2


def test_what_nobody_has_asked_for_keeps_nobody_waiting(server: ServerUnderTest, scene: Scene) -> None:
    """The work between requests, such as reclaim."""
    server.kernel.agent.ordered = 1
    server.kernel.tlbs.debts.owe(server.kernel.agent, 1, [5], server.kernel.agents_mm)
    assert scene.serves_others()


def test_who_waits_may_end(server: ServerUnderTest, scene: Scene) -> None:
    scene.owe(scene.ours)
    scene.ours.socket.shutdown(socket.SHUT_RDWR)
    scene.ours.socket.close()
    server.turn()
    assert scene.serves_others()
    server.kernel.agent.answers(server)
    assert scene.serves_others()


def test_a_long_answer_is_kept_back_whole(server: ServerUnderTest, scene: Scene) -> None:
    scene.ours.send(wire.pack_request(NR_OWE) + wire.pack_request(NR_LONG, (5000,)))
    server.turn()
    assert not scene.ours.is_readable()
    server.kernel.agent.answers(server)
    server.turn()
    assert [len(reply.data) for reply in scene.ours.receive()] == [0, 5000]
