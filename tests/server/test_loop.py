"""Who is served when, and what ends whom."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, cast

import pytest

from kerneld.server import loop
from kerneld.task.task import Thread
from shared import wire
from shared.uapi.syscalls import Nr
from tests.server.fakes import NR_CRASH_OTHERS, Client, FakeKernel, FakeMm, FakeProcess, ServerUnderTest, open_fds
from tests.support.fake_inode import FakeInode

GETPID = wire.pack_request(Nr.GETPID)


def test_who_needs_an_address_space_that_another_thread_holds_waits(server: ServerUnderTest) -> None:
    """The holder's batch goes on, in each turn; its process's other thread is served when it has let go."""
    server.loop.service.fair.slice_seconds = 0
    holding, asking = server.attached(tid=1), server.attached(tid=2)
    process = server.kernel.processes[os.getpid()]
    process.mm = FakeMm()
    holder = next(thread for thread in process.threads if thread.tid == 1)
    holders = server.kernel.table.mmap_locks.holders
    holding.send(GETPID * 3)
    asking.send(GETPID)
    holders[cast(Any, process.mm)] = holder
    for _turn in range(2):
        server.turn()
        assert not asking.is_readable()
    holders.clear()
    while not (holding.is_readable() and asking.is_readable()):
        server.turn()
    assert [reply.ret for reply in holding.receive()] == [os.getpid()] * 3
    assert [reply.ret for reply in asking.receive()] == [os.getpid()]


class ChildClient:
    """A child process that has attached and then waits until it is told to end, or is killed."""

    def __init__(self, server: ServerUnderTest, with_holder: bool = False) -> None:
        self.orders, orders_read = _pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(server, orders_read, with_holder)
        os.close(orders_read)
        # Its connection, then its attach.
        server.turn()
        while self.pid not in server.kernel.processes:
            server.turn()

    def _run(self, server: ServerUnderTest, orders_read: int, with_holder: bool) -> None:
        status = 1
        try:
            os.close(self.orders)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(server.path)
            sock.send(wire.pack_request(Nr.ATTACH, (1, 0, 0)))
            wire.unpack_replies(sock.recv(100))
            if with_holder and os.fork() == 0:
                # Holds the socket until the test lets the pipe go.
                os.read(orders_read, 1)
                os._exit(0)
            if with_holder:
                signal.pause()
            os.read(orders_read, 1)
            status = 0
        finally:
            os._exit(status)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def let_go(self) -> None:
        os.close(self.orders)


def _pipe() -> tuple[int, int]:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    return write_fd, read_fd


def test_end_of_a_connection_ends_the_thread_and_the_last_one_the_process(server: ServerUnderTest) -> None:
    before = open_fds()
    first, second = server.attached(tid=1), server.attached(tid=2)
    second.socket.close()
    server.turn()
    assert server.kernel.exited == [2]
    assert os.getpid() in server.kernel.processes
    first.socket.close()
    server.turn()
    assert server.kernel.exited == [2, 1]
    assert server.kernel.processes == {}
    assert open_fds() == before


def test_process_may_attach_again_after_its_end(server: ServerUnderTest) -> None:
    client = server.attached()
    client.call(Nr.EXIT_GROUP)
    again = server.attached()
    assert again.call(Nr.GETPID).ret == os.getpid()


@pytest.mark.parametrize("is_killed", [False, True])
def test_memory_goes_after_the_answer_of_who_leaves_and_before_others_are_served(
    server: ServerUnderTest, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    kernel, done = server.kernel, list[str]()
    leaving, other = server.attached(), server.connect()
    child = ChildClient(server) if is_killed else None
    end, attach = kernel.end, kernel.attach

    def leave(process: FakeProcess) -> None:
        end(process)
        kernel.dying.is_fresh = True

    def begin_reaping() -> None:
        FakeKernel.begin_reaping(kernel)
        done.append("memory of the answered" if leaving.is_readable() else "memory")

    def note_attach(*args: Any) -> Thread:
        done.append("other")
        return attach(*args)

    monkeypatch.setattr(kernel, "end", leave)
    monkeypatch.setattr(kernel, "begin_reaping", begin_reaping)
    monkeypatch.setattr(kernel, "attach", note_attach)
    if child is not None:
        child.kill()
    else:
        leaving.send(wire.pack_request(Nr.EXIT_GROUP))
    other.send(wire.pack_request(Nr.ATTACH, (1, 0, 0)))
    server.turn()
    assert done == ["memory" if is_killed else "memory of the answered", "other"]
    assert kernel.dying.is_answer_first
    if child is not None:
        child.let_go()


def test_killed_process_is_ended(server: ServerUnderTest) -> None:
    child = ChildClient(server)
    child.kill()
    while child.pid in server.kernel.processes:
        server.turn()
    assert child.pid not in server.kernel.processes
    child.let_go()


def test_pidfd_ends_a_process_whose_child_holds_the_socket(server: ServerUnderTest) -> None:
    before = open_fds()
    child = ChildClient(server, with_holder=True)
    child.kill()
    server.turn()
    assert server.kernel.died == [child.pid]
    assert server.kernel.processes == {}
    child.let_go()
    assert open_fds() == before


def test_processes_ended_by_the_kernel_lose_their_connections(server: ServerUnderTest) -> None:
    child = ChildClient(server)
    client = server.attached()
    assert client.call(NR_CRASH_OTHERS).ret == 0
    assert list(server.kernel.processes) == [os.getpid()]
    child.let_go()
    os.waitpid(child.pid, 0)
    assert client.call(Nr.GETPID).ret == os.getpid()
    assert server.kernel.died == []


def test_round_robin_one_datagram_a_turn(server: ServerUnderTest) -> None:
    busy, quiet = server.attached(tid=1), server.attached(tid=2)
    for _ in range(5):
        busy.send(GETPID)
    quiet.send(GETPID)
    server.kernel.requests.clear()
    server.turn()
    assert sorted(thread.tid for thread, _ in server.kernel.requests) == [1, 2]
    assert len(quiet.receive()) == 1
    for _ in range(4):
        quiet.send(GETPID)
        server.turn()
    assert [thread.tid for thread, _ in server.kernel.requests].count(1) == 5
    assert [thread.tid for thread, _ in server.kernel.requests].count(2) == 5


def test_slow_reader_is_not_read_from_and_loses_nothing(server: ServerUnderTest) -> None:
    slow, other = server.attached(tid=1), server.attached(tid=2)
    count = 8
    load = wire.pack_request(Nr.LOAD, (0, wire.MAX_INLINE)) * 3
    for _ in range(count):
        slow.send(load)
    slow.send(GETPID)
    for _ in range(count):
        other.call(Nr.GETPID)
    run = sum(thread.tid == 1 for thread, _ in server.kernel.requests)
    assert 3 <= run < 3 * count
    for _ in range(count):
        while not slow.is_readable():
            server.turn()
        assert [len(reply.data) for reply in slow.receive()] == [wire.MAX_INLINE] * 3
    while not slow.is_readable():
        server.turn()
    assert slow.receive() == [wire.Reply(os.getpid())]


def test_slow_reader_that_leaves_is_ended(server: ServerUnderTest) -> None:
    before = open_fds()
    slow, other = server.attached(tid=1), server.attached(tid=2)
    for _ in range(6):
        slow.send(wire.pack_request(Nr.LOAD, (0, wire.MAX_INLINE)) * 3)
        other.call(Nr.GETPID)
    slow.socket.close()
    server.turn()
    assert server.kernel.exited == [1]
    other.socket.close()
    server.turn()
    assert open_fds() == before


def test_a_long_batch_goes_on_between_others(server: ServerUnderTest) -> None:
    server.loop.service.fair.slice_seconds = 0
    long, short = server.attached(tid=1), server.attached(tid=2)
    long.send(GETPID * 10 + wire.pack_request(Nr.MMAP), fds=[0, 0])
    short.send(GETPID)
    served: list[Client] = []
    for _turn in range(12):
        server.turn()
        if served[:1] != [short] and short.is_readable():
            served.append(short)
        if long.is_readable():
            served.append(long)
            break
        if short in served and len(server.kernel.requests) == 6:
            # In the middle of the batch: what comes meanwhile is answered at once, what comes behind it waits.
            short.send(GETPID)
            long.send(GETPID)
    assert served == [short, long]
    assert [reply.ret for reply in long.receive()] == [os.getpid()] * 10 + [0]
    assert len(short.receive()) == 1
    server.turn()
    assert [reply.ret for reply in long.receive()] == [os.getpid()]


def test_who_maps_a_file_that_is_being_cut_waits_and_others_are_served(server: ServerUnderTest) -> None:
    server.kernel.changes.slice_seconds = 0.0
    server.loop.service.fair.slice_seconds = 0
    # One process with two threads: a batch of the one is under way, the other asks.
    busy, asking = server.attached(tid=1), server.attached(tid=2)
    newcomer = server.connect()
    busy.send(GETPID * 3)
    server.turn()
    mm = server.kernel.processes[os.getpid()].mm = FakeMm()
    inode = FakeInode("cut", 3, [], (mm,))
    server.kernel.changes.note(cast(Any, inode))
    before = len(server.kernel.requests)
    asking.send(GETPID)
    newcomer.send(wire.pack_request(Nr.ATTACH, (1, 3, 0)))
    for done in range(1, 4):
        server.turn()
        assert (inode.done, len(server.kernel.requests)) == (["cut"] * done, before)
    assert [reply.ret for reply in newcomer.receive()] == [os.getpid()]
    while not (asking.is_readable() and busy.is_readable()):
        server.turn()
    assert [reply.ret for reply in asking.receive()] == [os.getpid()]
    assert [reply.ret for reply in busy.receive()] == [os.getpid()] * 3
    assert not server.kernel.changes.queue


def test_the_threads_that_execve_ends_are_gone_before_its_batch_is_done(server: ServerUnderTest) -> None:
    """What a dead thread asks, or what is left of its own batch, must not be run."""
    server.loop.service.fair.slice_seconds = 0
    asking, waiting, caller = server.attached(tid=1), server.attached(tid=2), server.attached(tid=3)
    waiting.send(GETPID * 100)
    server.turn()
    caller.send(wire.pack_request(Nr.EXECVE) + GETPID * 100)
    server.turn()
    assert asking.is_ended()
    assert waiting.is_ended()
    before = [thread.tid for thread, _ in server.kernel.requests].count(2)
    server.turn()
    assert [thread.tid for thread, _ in server.kernel.requests].count(2) == before
    assert [thread.tid for thread in server.loop.service.waiting] == [3]


def test_an_unfinished_batch_ends_with_its_process(server: ServerUnderTest) -> None:
    server.loop.service.fair.slice_seconds = 0
    before = open_fds()
    child = ChildClient(server)
    other = server.attached()
    inside = open_fds()
    other.send(GETPID * 100, fds=[0] * 3)
    server.turn()
    assert len(server.kernel.requests) < 100
    server.kernel.end(server.kernel.processes[os.getpid()])
    child.kill()
    server.turn()
    assert len(server.kernel.requests) < 100
    assert other.is_ended()
    assert open_fds() < inside
    other.socket.close()
    child.let_go()
    assert open_fds() <= before


def test_stop_lets_every_client_go(server: ServerUnderTest) -> None:
    clients = [server.connect(), server.attached(tid=1), server.attached(tid=2)]
    os.write(server.stop_write, b"\x0f")
    server.loop.run()
    assert all(client.is_ended() for client in clients)


def test_old_garbage_waits_until_no_client_and_no_memory_of_one_is_left(
    server: ServerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector looks at every VMA then: nobody may be waiting, and few may be there."""
    asked: list[str] = []
    queue = server.kernel.dying.queue
    monkeypatch.setattr(loop, "collect_old", lambda: asked.append("collected"))
    monkeypatch.setattr(server.kernel, "reap_memory", queue.popleft, raising=False)
    client = server.attached()
    queue.append(cast(Any, FakeMm()))
    server.turn()
    assert not asked
    client.socket.close()
    queue.extend([cast(Any, FakeMm()), cast(Any, FakeMm())])
    server.turn()
    assert not asked
    server.turn()
    assert asked == ["collected"]
