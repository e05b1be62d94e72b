"""What runs out, and who pays for it: connections, descriptors, places in an epoll, memory."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from kerneld.server import door
from kerneld.server.door import ClientLimits
from shared import wire
from shared.uapi.syscalls import Nr
from tests.server.fakes import ServerUnderTest, open_fds

GETPID = wire.pack_request(Nr.GETPID)


def test_connection_over_the_limit_is_closed_at_once(private_dir: Path) -> None:
    server = ServerUnderTest(private_dir, ClientLimits(total=2))
    try:
        first, second = server.connect(), server.connect()
        assert first.attach(tid=1) == second.attach(tid=2) == os.getpid()
        assert server.connect().is_ended()
        first.socket.close()
        server.turn()
        assert server.connect().attach() == os.getpid()
    finally:
        server.close()


def test_who_never_attaches_makes_room_for_others(private_dir: Path) -> None:
    server = ServerUnderTest(private_dir, ClientLimits(total=3))
    try:
        attached = server.attached(tid=1)
        silent = [server.connect(), server.connect()]
        newcomer = server.connect()
        assert newcomer.attach(tid=2) == os.getpid()
        assert silent[0].is_ended()
        assert silent[1].attach(tid=3) == os.getpid()
        assert not attached.is_readable()
    finally:
        server.close()


@pytest.mark.parametrize("limits", [ClientLimits(of_a_process=2), ClientLimits(of_a_user=2)])
def test_one_process_or_user_has_its_own_limit(
    private_dir: Path, monkeypatch: pytest.MonkeyPatch, limits: ClientLimits
) -> None:
    monkeypatch.setattr(door.Door, "_is_privileged", lambda _self, _uid: False)
    server = ServerUnderTest(private_dir, limits)
    try:
        first, second = server.connect(), server.connect()
        assert server.connect().is_ended()
        assert first.attach(tid=1) == second.attach(tid=2) == os.getpid()
        first.socket.close()
        server.turn()
        assert server.connect().attach(tid=3) == os.getpid()
    finally:
        server.close()


def test_a_process_that_cannot_be_watched_costs_its_connection_alone(
    server: ServerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host gives a user only so many places in epolls (max_user_watches)."""
    watches = server.loop.service.watches
    epoll = watches._epoll
    before = open_fds()
    client = server.connect()

    def refuse(_fd: int, _events: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(watches, "_epoll", SimpleNamespace(register=refuse, unregister=epoll.unregister))
        client.send(wire.pack_request(Nr.ATTACH, (1, 0, 0)))
        server.turn()
        assert client.is_ended()
    client.socket.close()
    assert open_fds() == before
    assert server.attached().call(Nr.GETPID).ret == os.getpid()


def test_out_of_fds_a_connection_is_turned_away_and_the_loop_goes_on(server: ServerUnderTest) -> None:
    client = server.attached()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 1 + max(int(fd) for fd in os.listdir("/proc/self/fd"))
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        sock.connect(server.path)
        server.turn()
        assert sock.recv(1) == b""
        assert client.call(Nr.GETPID).ret == os.getpid()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        sock.close()
        for fd in fillers:
            os.close(fd)


def test_fds_that_do_not_fit_are_emfile(server: ServerUnderTest) -> None:
    client = server.attached()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_fds()
    client.send(GETPID, fds=[0] * 100)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 20, hard))
    try:
        server.turn()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [reply.ret for reply in client.receive()] == [-24]
    assert open_fds() == before
    assert client.call(Nr.GETPID).ret == os.getpid()


def test_a_turn_that_finds_no_memory_is_not_the_last(server: ServerUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a request nobody can be blamed: for new connections, pidfds, the list of what is ready."""
    waits = [server.loop._wait]
    turns = 0

    def failing(_timeout: float | None) -> list[tuple[int, int]]:
        nonlocal turns
        turns += 1
        if turns < 4:
            raise MemoryError
        os.write(server.stop_write, b"x")
        return waits[0](None)

    monkeypatch.setattr(server.loop, "_wait", failing)
    server.loop.run()
    assert turns >= 4


def test_a_request_that_finds_no_memory_costs_its_connection(
    server: ServerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = server.attached(), server.attached(tid=os.getpid() + 1)

    def failing(*_args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(server.loop.service, "_send", failing)
        client.send(GETPID)
        server.turn()
    assert client.is_ended()
    assert other.call(Nr.GETPID).ret == os.getpid()
