"""Rings: when the loop looks at them, and who is served when. tests/e2e/test_abi_ring.py has the records in them."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from kerneld.server.ring import MOST_WATCHED
from shared import wire
from shared.uapi.ring import (
    ANSWER_BYTES,
    ANSWER_NUMBER,
    ANSWERS_START,
    REQUEST_BYTES,
    REQUEST_NUMBER,
    REQUESTS_START,
    RING_BYTES,
    TAKEN_NUMBER,
    WATCHED,
)
from shared.uapi.syscalls import Nr
from tests.server.fakes import Client, FakeMm, ServerUnderTest

GETPID = wire.pack_request(Nr.GETPID)
Make = Callable[..., "RingClient"]


class RingClient:
    """A client with a ring."""

    def __init__(self, client: Client) -> None:
        self.client = client
        client.send(wire.pack_request(Nr.RING))
        client.server.turn()
        _answer, fds, _flags, _address = socket.recv_fds(client.socket, wire.MAX_REPLY, 1)
        self._map = mmap.mmap(fds[0], RING_BYTES)
        os.close(fds[0])
        self.words = memoryview(self._map).cast("Q")

    def put(self, datagram: bytes) -> None:
        self._map[REQUESTS_START : REQUESTS_START + len(datagram)] = datagram
        self.words[REQUEST_BYTES] = len(datagram)
        self.words[REQUEST_NUMBER] += 1

    def rets(self) -> list[int] | None:
        """The answer to the last datagram: what its requests return. None if it has no answer yet."""
        if self.words[ANSWER_NUMBER] != self.words[REQUEST_NUMBER]:
            return None
        answer = self._map[ANSWERS_START : ANSWERS_START + self.words[ANSWER_BYTES]]
        return [reply.ret for reply in wire.unpack_replies(answer)]

    def is_watched(self) -> bool:
        return self.words[WATCHED] == 1


@pytest.fixture
def ring_client(server: ServerUnderTest) -> Make:
    """Make clients with rings."""
    return lambda tid=0: RingClient(server.attached(tid=tid))


def test_a_ring_is_watched_from_its_first_request_on_and_needs_no_bell(
    server: ServerUnderTest, ring_client: Make
) -> None:
    client = ring_client()
    for _ in range(3):
        assert client.is_watched()
        client.put(GETPID)
        server.turn()
        assert client.rets() == [os.getpid()]


def test_a_loop_that_sleeps_has_said_so(server: ServerUnderTest, ring_client: Make) -> None:
    client, other = ring_client(), server.attached(tid=2)
    server.loop.turn(0)
    assert not client.is_watched()
    client.put(GETPID)
    assert other.call(Nr.GETPID).ret == os.getpid()
    assert client.rets() is None
    client.client.send(wire.pack_request(Nr.RING_BELL))
    server.turn()
    assert client.rets() == [os.getpid()]
    server.turn()
    assert len(client.client.receive()) == 1
    assert client.is_watched()


def test_in_a_turn_every_ring_and_every_socket_is_served_once(server: ServerUnderTest, ring_client: Make) -> None:
    ends, other = [ring_client(tid) for tid in (1, 2, 3)], server.attached(tid=4)
    for end in ends:
        end.client.send(GETPID)
    server.turn()
    for end in ends:
        end.client.receive()
        end.put(GETPID)
    other.send(GETPID)
    server.turn()
    assert [end.rets() for end in ends] == [[os.getpid()]] * 3
    assert [reply.ret for reply in other.receive()] == [os.getpid()]


def test_only_some_rings_are_watched(server: ServerUnderTest, ring_client: Make) -> None:
    ends = [ring_client(tid) for tid in range(1, MOST_WATCHED + 2)]
    for end in ends:
        end.client.send(GETPID)
    server.turn()
    assert sum(end.is_watched() for end in ends) == MOST_WATCHED


def test_a_client_is_told_that_its_request_is_being_served(server: ServerUnderTest, ring_client: Make) -> None:
    server.loop.service.fair.slice_seconds = 0
    client = ring_client()
    client.put(GETPID * 2)
    assert client.words[TAKEN_NUMBER] != client.words[REQUEST_NUMBER]
    server.turn()
    assert client.rets() is None
    assert client.words[TAKEN_NUMBER] == client.words[REQUEST_NUMBER]


def test_a_later_request_waits_for_the_end_of_a_batch(server: ServerUnderTest, ring_client: Make) -> None:
    server.loop.service.fair.slice_seconds = 0
    client = ring_client()
    client.put(GETPID * 3)
    server.turn()
    assert client.rets() is None
    client.words[REQUEST_NUMBER] += 1
    for _ in range(2):
        server.turn()
    client.words[REQUEST_NUMBER] -= 1
    assert client.rets() == [os.getpid()] * 3


def test_a_thread_whose_address_space_is_held_waits(server: ServerUnderTest, ring_client: Make) -> None:
    server.loop.service.fair.slice_seconds = 0
    holding, asking = server.attached(tid=1), ring_client(2)
    process = server.kernel.processes[os.getpid()]
    process.mm = FakeMm()
    holder = next(thread for thread in process.threads if thread.tid == 1)
    holders = server.kernel.table.mmap_locks.holders
    holding.send(GETPID * 3)
    asking.put(GETPID)
    holders[cast(Any, process.mm)] = holder
    for _turn in range(2):
        server.turn()
        assert asking.rets() is None
    holders.clear()
    while asking.rets() is None:
        server.turn()
    assert asking.rets() == [os.getpid()]


def test_a_client_that_has_gone_is_served_no_more(server: ServerUnderTest, ring_client: Make) -> None:
    client = ring_client()
    client.client.socket.close()
    client.put(GETPID)
    server.turn()
    assert server.kernel.exited == [os.getpid()]
    assert not client.is_watched()
