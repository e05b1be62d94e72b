"""The memory of rings: on somebody's account for as long as it may be there, and given back when its reader lets go."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator

import pytest

from kerneld.trace.rings import MAX_PROCESS_RINGS, MAX_RINGS, MAX_USER_RINGS
from shared.trace.attr import TraceAttr
from shared.trace.reader import Reader
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import OTHER, ROOT, USER, Program
from tests.support.traced import TracedWorld

DATA_PAGES = 4
BLOCK_BYTES = 512


class Watch:
    """What the server is to the kernel."""

    def __init__(self) -> None:
        self.pipes: set[int] = set()

    def add(self, pipe: int) -> None:
        self.pipes.add(pipe)

    def remove(self, pipe: int) -> None:
        self.pipes.remove(pipe)

    def broken(self) -> list[int]:
        poll = select.poll()
        for pipe in self.pipes:
            poll.register(pipe, 0)
        return [pipe for pipe, _ in poll.poll(0)]


class Held:
    """The descriptors of traces that have been opened, until the end of the test."""

    def __init__(self, world: TracedWorld) -> None:
        self._world = world
        self.rings: list[int] = []
        self.pipes: list[int] = []
        self.watch = Watch()
        world.kernel.pipe_watch = self.watch

    def open(self, program: Program) -> int:
        answer = program.answer(Nr.PERF_EVENT_OPEN, 0, data=TraceAttr(("raw_syscalls",), (), DATA_PAGES).pack())
        if answer.ret > 0:
            self.rings.append(answer.fds[0])
            self.pipes.append(answer.fds[1])
        return answer.ret

    def let_go(self) -> None:
        """Close the pipes and keep the rings; the kernel is told, as the server would tell it."""
        while self.pipes:
            os.close(self.pipes.pop())
        for pipe in self.watch.broken():
            self._world.tracing.reader_gone(pipe)

    def memory_bytes(self) -> int:
        return sum(os.fstat(fd).st_blocks for fd in self.rings) * BLOCK_BYTES

    def close(self) -> None:
        self.let_go()
        for fd in self.rings:
            os.close(fd)


@pytest.fixture
def held(world: TracedWorld) -> Iterator[Held]:
    made = Held(world)
    yield made
    made.close()


def fill(program: Program) -> None:
    for _ in range(DATA_PAGES * 50):
        program.call(Nr.GETPID)


def test_a_ring_that_may_be_alive_counts_though_its_trace_is_closed(world: TracedWorld, held: Held) -> None:
    user = world.attach(USER)
    for _ in range(MAX_USER_RINGS):
        assert user.call(Nr.CLOSE, held.open(user)) == 0
    assert held.open(user) == -errno.EMFILE
    assert held.open(world.attach(USER)) == -errno.EMFILE
    assert held.open(world.attach(OTHER)) > 0
    held.let_go()
    assert held.open(user) > 0


def test_it_counts_for_its_user_though_the_process_has_ended(world: TracedWorld, held: Held) -> None:
    user = world.attach(USER)
    assert all(held.open(user) > 0 for _ in range(MAX_USER_RINGS))
    world.kernel.process_died(user.process)
    world.kernel.take_ended()
    newcomer = world.attach(USER)
    assert held.open(newcomer) == -errno.EMFILE
    held.let_go()
    assert held.open(newcomer) > 0


def test_a_process_that_gives_its_rights_up_pays_as_it_did(world: TracedWorld, held: Held) -> None:
    root, user = world.attach(ROOT), world.attach(USER)
    assert all(held.open(root) > 0 for _ in range(MAX_USER_RINGS))
    assert root.call(Nr.SETUID, USER) == 0
    assert held.open(user) > 0


def test_a_process_of_the_superuser_leaves_rings_to_others(world: TracedWorld, held: Held) -> None:
    first, second = world.attach(ROOT), world.attach(ROOT)
    for _ in range(MAX_PROCESS_RINGS):
        assert first.call(Nr.CLOSE, held.open(first)) == 0
    assert held.open(first) == -errno.EMFILE
    assert all(held.open(second) > 0 for _ in range(MAX_RINGS - MAX_PROCESS_RINGS))
    assert held.open(world.attach(USER)) == -errno.EMFILE


def test_memory_is_given_back_though_the_file_is_held(world: TracedWorld, held: Held) -> None:
    """Any number of rings, one after another: all that is held of them in the end is empty files."""
    user = world.attach(USER)
    for _ in range(3 * MAX_USER_RINGS):
        handle = held.open(user)
        assert handle > 0
        fill(user)
        assert held.memory_bytes() >= DATA_PAGES * PAGE_SIZE
        assert user.call(Nr.CLOSE, handle) == 0
        held.let_go()
        assert held.memory_bytes() == 0


def test_a_trace_whose_pipe_is_closed_ends(world: TracedWorld, held: Held) -> None:
    """Nobody could be woken; the ring is not waited for until it would have to be."""
    user = world.attach(USER)
    handle = held.open(user)
    fill(user)
    held.let_go()
    assert held.memory_bytes() == 0
    assert user.call(Nr.CLOSE, handle) == -errno.EBADF


def test_what_was_written_last_can_be_read_after_the_end(world: TracedWorld, held: Held) -> None:
    user = world.attach(USER)
    handle = held.open(user)
    user.call(Nr.GETPID)
    assert user.call(Nr.CLOSE, handle) == 0
    world.kernel.process_died(user.process)
    assert not held.watch.broken()
    reader = Reader(held.rings.pop(), held.pipes.pop())
    assert reader.is_ended
    assert reader.unread_bytes
    assert list(reader.read())
    reader.close()


def test_the_daemon_that_stops_leaves_what_is_unread(world: TracedWorld, held: Held) -> None:
    user = world.attach(USER)
    assert held.open(user) > 0
    fill(user)
    world.tracing.shutdown()
    assert held.memory_bytes() >= DATA_PAGES * PAGE_SIZE
