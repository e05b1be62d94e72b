"""The client library and its ring: when it uses it, when it sleeps, and what an interruption leaves behind."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

import pytest

from shared import wire
from shared.client import KerneldGone, Process, realmem
from shared.client import connection as connection_module
from shared.client.connection import Connection
from shared.uapi.ring import (
    ANSWER_BYTES,
    ANSWER_NUMBER,
    ANSWERS_START,
    MOST_REQUEST_BYTES,
    REQUEST_BYTES,
    REQUEST_NUMBER,
    REQUESTS_START,
    RING_BYTES,
    WATCHED,
)
from shared.uapi.syscalls import Nr
from shared.wire import Request
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import Hangup, Said
from tests.shared.interrupted import raises_at

ECHO, LONG = 1, 2
"""Requests that are answered with their first argument: in the ring, and by the socket."""
IN_RING = (Connection._converse_in, Connection._hear)


class RingKerneld:
    """The script of a kerneld with a ring, which serves a request in it when the bell is rung."""

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        self.in_ring: list[int] = []
        """The first arguments of the requests that came in the ring."""
        self.by_socket: list[int] = []
        self.serve: Callable[[], Said] = self._serve_ring

    @property
    def words(self) -> memoryview:
        assert self._map is not None
        return memoryview(self._map)[:REQUESTS_START].cast("Q")

    def __call__(self, request: Request, _fds: list[int]) -> Said:
        if request.nr == Nr.RING:
            fd = os.memfd_create("ring")
            os.ftruncate(fd, RING_BYTES)
            self._map = mmap.mmap(fd, RING_BYTES)
            self.words[WATCHED] = 1
            return Said(RING_BYTES, fds=(fd,))
        if request.nr == Nr.RING_BELL:
            return self.serve()
        self.by_socket.append(request.args[0])
        return Said(request.args[0])

    def _serve_ring(self) -> Said:
        words = self.words
        number = words[REQUEST_NUMBER]
        if words[ANSWER_NUMBER] == number:
            return Said()
        assert self._map is not None
        datagram = self._map[REQUESTS_START : REQUESTS_START + words[REQUEST_BYTES]]
        (request,) = wire.unpack_requests(datagram)
        self.in_ring.append(request.args[0])
        answer = wire.pack_reply(request.args[0])
        self._map[ANSWERS_START : ANSWERS_START + len(answer)] = answer
        words[ANSWER_BYTES] = 0 if request.nr == LONG else len(answer)
        words[ANSWER_NUMBER] = number
        # An answer by the socket comes before the reply to the bell.
        return Said(raw=answer, then=wire.pack_reply(0)) if request.nr == LONG else Said()


@pytest.fixture
def kerneld() -> RingKerneld:
    return RingKerneld()


@pytest.fixture
def process(kerneld: RingKerneld, attached: Attached, monkeypatch: pytest.MonkeyPatch) -> Process:
    """A process whose connection has its ring. It looks at the ring once, and then rings the bell."""
    monkeypatch.setattr(connection_module, "_LOOKS", (None,))
    monkeypatch.setattr(connection_module, "_MOST_SKIPPED", 0)
    _fake, process = attached(kerneld)
    # The attach is an exchange too.
    for value in range(connection_module._RING_AFTER - 1):
        assert process.syscall(ECHO, value) == value
    assert (kerneld.by_socket.pop(), kerneld.in_ring.pop()) == (value - 1, value)
    kerneld.by_socket.clear()
    return process


def test_a_request_goes_in_the_ring_while_kerneld_looks_there(process: Process, kerneld: RingKerneld) -> None:
    assert process.syscall(ECHO, 5) == 5
    kerneld.words[WATCHED] = 0
    assert process.syscall(ECHO, 6) == 6
    kerneld.words[WATCHED] = 1
    assert process.syscall(ECHO, 7, data=bytes(MOST_REQUEST_BYTES)) == 7
    assert process.syscall(ECHO, 8, data=bytes(MOST_REQUEST_BYTES - wire.REQUEST.size)) == 8
    assert (kerneld.in_ring, kerneld.by_socket) == ([5, 8], [6, 7])


def test_requests_with_descriptors_go_by_the_socket(process: Process, kerneld: RingKerneld) -> None:
    with open(os.devnull) as opened:
        assert process.syscall(ECHO, 5, fds=[opened.fileno()]) == 5
    assert process.call_for_fds(ECHO, 6)[0].ret == 6
    assert (kerneld.in_ring, kerneld.by_socket) == ([], [5, 6])


def test_an_answer_by_the_socket(process: Process, kerneld: RingKerneld) -> None:
    assert [process.syscall(LONG, value) for value in (5, 6)] == [5, 6]
    assert process.syscall(ECHO, 7) == 7
    assert kerneld.in_ring == [5, 6, 7]


def test_a_batch_goes_in_the_ring(process: Process, kerneld: RingKerneld) -> None:
    with process.batch() as batch:
        batch.call(ECHO, 5)
    assert [reply.ret for reply in batch.replies] == [5]
    assert kerneld.in_ring == [5]


def test_answers_that_come_late_make_the_next_requests_go_by_the_socket(
    process: Process, kerneld: RingKerneld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_MOST_SKIPPED", 3)
    for value in range(5):
        assert process.syscall(ECHO, value) == value
    assert (kerneld.in_ring, kerneld.by_socket) == ([0, 4], [1, 2, 3])


def test_a_forked_child_does_not_have_the_ring(process: Process) -> None:
    ring = process._connection._ring
    assert ring is not None
    address = ctypes.addressof(ctypes.c_char.from_buffer(ring.requests)) - REQUESTS_START
    assert realmem.find_mapping(address) is not None
    child = os.fork()
    if child == 0:
        os._exit(0 if realmem.find_mapping(address) is None else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_ring_is_unmapped_at_the_end(process: Process) -> None:
    ring = process._connection._ring
    assert ring is not None
    address = ctypes.addressof(ctypes.c_char.from_buffer(ring.requests)) - REQUESTS_START
    del ring
    process.close()
    assert realmem.find_mapping(address) is None


@pytest.mark.parametrize("nr", [ECHO, LONG])
def test_a_call_interrupted_anywhere_leaves_the_next_one_its_own_answer(process: Process, nr: int) -> None:
    """Before every instruction of the code that uses the ring, a handler raises in turn."""
    places = 0
    while raises_at(places, lambda: process.syscall(nr, 111), *IN_RING, everywhere=True):
        assert process.syscall(nr, 1000 + places) == 1000 + places
        places += 1
    assert places >= 50


def test_the_end_of_kerneld_during_a_request(process: Process, kerneld: RingKerneld) -> None:
    def hang_up() -> Said:
        raise Hangup

    kerneld.serve = hang_up
    with pytest.raises(KerneldGone):
        process.syscall(ECHO, 5)
