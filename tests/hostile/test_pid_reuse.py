"""A pid that comes again is another process: it has nothing of its predecessor's, whatever holds the old socket."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.client import Nursery
from tests.support.raw import CLONE, GETPID, GETUID, LOAD, MMAP, SETUID, STORE, RawThread
from tests.support.watched_daemon import Daemon

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
PAGE = 4096
TRIES = 50


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def daemon(tmp_path: Path, nursery: Nursery) -> Iterator[Daemon]:
    if not os.access(LAST_PID, os.W_OK):
        pytest.skip("choosing the next pid takes root and /proc/sys/kernel/ns_last_pid")
    try:
        LAST_PID.write_text(LAST_PID.read_text())
    except OSError as error:
        pytest.skip(f"the host does not let the next pid be chosen: {error.strerror}")
    daemon = Daemon(tmp_path, nursery)
    yield daemon
    daemon.close()


def fork_as(pid: int, run: Callable[[], int]) -> int:
    """Fork a child that has this very pid and exits with what `run` returns; returns its status.

    Others on the host fork too and may take the pid first: it is tried until it succeeds.
    """
    for _ in range(TRIES):
        LAST_PID.write_text(str(pid - 1))
        child = os.fork()
        if child == 0:
            status = 99
            try:
                status = run() if os.getpid() == pid else 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if child == pid:
            return status
    pytest.skip("the pid is taken by others on this host each time")


@contextlib.contextmanager
def left_behind(daemon: Daemon, before_the_end: Callable[[RawThread], object]) -> Iterator[int]:
    """Have a process attach, store something and be killed while a child of its holds the socket; yields its pid.

    The holder, which has our descriptors too, ends with the block, a skip included.
    """
    read_fd, write_fd = os.pipe()
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        raw = RawThread()
        raw.attach(str(daemon.path))
        before_the_end(raw)
        os.close(write_fd)
        if os.fork() == 0:
            os.write(ready_write, b"x")
            os.read(read_fd, 1)
            os._exit(0)
        signal.pause()
    os.close(read_fd)
    os.read(ready_read, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready_read)
    os.close(ready_write)
    try:
        yield pid
    finally:
        os.close(write_fd)


def test_the_next_of_a_pid_begins_anew(daemon: Daemon) -> None:
    def store(raw: RawThread) -> None:
        address = raw.call(MMAP, 0x10000000, PAGE, 3, 0x32, -1, 0).ret
        assert raw.call(STORE, address, 6, data=b"secret").ret == 6

    def look(pid: int) -> int:
        raw = RawThread()
        if raw.attach(str(daemon.path)) != pid or raw.call(GETPID).ret != pid:
            return 1
        reply = raw.call(LOAD, 0x10000000, 6)
        return 0 if (reply.ret, reply.signo) == (0, signal.SIGSEGV) else 2

    with left_behind(daemon, store) as pid:
        assert fork_as(pid, lambda: look(pid)) == 0


def test_rights_that_one_gave_up_the_next_has(daemon: Daemon) -> None:
    """setuid is for good, but for that process: its pid's next owner has done nothing."""

    def look() -> int:
        raw = RawThread()
        raw.attach(str(daemon.path))
        return 0 if raw.call(GETUID).ret == os.getuid() else 1

    with left_behind(daemon, lambda raw: raw.call(SETUID, 1234)) as pid:
        assert fork_as(pid, look) == 0


def test_a_token_is_not_inherited_by_the_next_of_the_parents_pid(daemon: Daemon) -> None:
    """The parent has gone and its pid comes again: a child of the new one cannot take the old one's memory."""
    read_fd, write_fd = os.pipe()

    def take(token: int) -> int:
        raw = RawThread()
        raw.attach(str(daemon.path))
        child = os.fork()
        if child == 0:
            os._exit(0 if RawThread().attach(str(daemon.path), token=token) == -errno.EINVAL else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with left_behind(daemon, lambda raw: os.write(write_fd, raw.call(CLONE).ret.to_bytes(8, "little"))) as pid:
        token = int.from_bytes(os.read(read_fd, 8), "little")
        assert token > 0
        assert fork_as(pid, lambda: take(token)) == 0
    for fd in (read_fd, write_fd):
        os.close(fd)
