"""Descriptors whose close may take its time: who closes them, and what becomes of them where nobody can yet."""

from __future__ import annotations

import os
import pty
import socket
import threading
from collections.abc import Iterator

import pytest

from kerneld.fs.mounts import Mounts
from kerneld.server.airlock import Airlock
from kerneld.server.connection import close_fds
from kerneld.syscalls.kernel import Sender

PEER = Sender(1 << 23, 12345, 12345)


@pytest.fixture
def airlock() -> Iterator[Airlock]:
    mounts = Mounts()
    yield Airlock(mounts)
    mounts.close()


def test_a_socket_is_closed_by_another_thread_and_one_without_a_peer_takes_its_place(airlock: Airlock) -> None:
    ours, theirs = socket.socketpair()
    fds = [theirs.detach()]
    airlock.admit(fds, PEER)
    with socket.socket(fileno=os.dup(fds[0])) as other, pytest.raises(OSError, match="not connected"):
        other.getpeername()
    close_fds(fds)
    with ours:
        assert ours.recv(1) == b""


def test_null_takes_the_place_of_a_device(airlock: Airlock) -> None:
    fds = list(pty.openpty())
    airlock.admit(fds, PEER)
    assert {os.fstat(fd).st_rdev for fd in fds} == {os.stat(os.devnull).st_rdev}
    close_fds(fds)


def test_what_no_thread_could_be_had_for_is_closed_when_one_can(
    airlock: Airlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    first, theirs = socket.socketpair()
    second, other = socket.socketpair()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        fds = [theirs.detach()]
        airlock.admit(fds, PEER)
        close_fds(fds)
    first.setblocking(False)
    with pytest.raises(BlockingIOError):
        first.recv(1)
    first.setblocking(True)
    fds = [other.detach()]
    airlock.admit(fds, PEER)
    close_fds(fds)
    for near in (first, second):
        with near:
            assert near.recv(1) == b""
