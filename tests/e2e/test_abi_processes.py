"""Fork by a token, threads, credentials, execve and exit, by a client that knows docs/abi.md alone.

Sections: Attach; Fork; Linux calls (execve, exit, rt_sigaction).
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.e2e import scripts
from tests.e2e.raw_session import BASE, PAGE, SIGSEGV, attach, catch, load, map_pages, store
from tests.support import raw
from tests.support.client import Client
from tests.support.watched_daemon import Daemon, free_kb

EVERYBODY = 1000


@pytest.fixture
def client(daemon: Daemon) -> Client:
    return attach(daemon)


@pytest.fixture
def checker(daemon: Daemon) -> Client:
    checker = daemon.client()
    checker.p.getpid()
    return checker


def clone(client: Client) -> int:
    token: int = client.raw.call(raw.CLONE).ret
    assert token > 0
    return token


def attach_child(daemon: Daemon, child: Client, token: int) -> int:
    """Attach a plainly forked child by a connection of its own."""
    child.me.new_raw()
    ret: int = child.raw.attach(str(daemon.path), 0, token)
    return ret


def test_a_child_has_the_memory_of_the_moment_of_clone(daemon: Daemon, client: Client) -> None:
    map_pages(client, 2)
    store(client, BASE, b"before")
    token = clone(client)
    store(client, BASE, b"after!")
    child = client.fork("plain_fork")
    assert attach_child(daemon, child, token) == child.pid
    assert load(child, BASE, 6) == b"before"
    assert load(client, BASE, 6) == b"after!"
    store(child, BASE, b"child.")
    store(child, BASE + PAGE, b"own")
    assert load(client, BASE, 6) == b"after!"
    assert load(client, BASE + PAGE, 3) == b"\0\0\0"
    assert child.raw.call(raw.GETPID).ret == child.pid
    assert child.raw.call(raw.GETPPID).ret == client.pid
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{client.pid}/status").read_text().splitlines())
    assert client.raw.call(raw.GETPPID).ret == int(status["PPid"])


def test_a_child_without_a_token_has_nothing_of_its_parent(daemon: Daemon, client: Client) -> None:
    map_pages(client, 1)
    child = client.fork("plain_fork")
    assert attach_child(daemon, child, 0) == child.pid
    catch(child, SIGSEGV)
    assert child.raw.call(raw.LOAD, BASE, 1).signo == SIGSEGV


def test_a_token_is_good_once(daemon: Daemon, client: Client) -> None:
    token = clone(client)
    first, second = client.fork("plain_fork"), client.fork("plain_fork")
    assert attach_child(daemon, first, token) == first.pid
    assert attach_child(daemon, second, token) == -errno.EINVAL
    assert second.raw.call(raw.ATTACH, raw.VERSION, 0, 0).ret == second.pid


def test_a_token_is_for_a_child_of_that_parent_alone(daemon: Daemon, client: Client) -> None:
    token = clone(client)
    stranger = daemon.client()
    assert stranger.raw.attach(str(daemon.path), 0, token) == -errno.EINVAL
    child = client.fork("plain_fork")
    grandchild = child.fork("plain_fork")
    assert attach_child(daemon, grandchild, token) == -errno.EINVAL
    # Nor for the parent itself, which is attached.
    client.second.connect(str(daemon.path))
    assert client.second.call(raw.ATTACH, raw.VERSION, 0, token).ret == -errno.EINVAL
    # All of that has not used it up.
    assert attach_child(daemon, child, token) == child.pid


@pytest.mark.parametrize("token", [1, 1 << 62, (1 << 64) - 1])
def test_a_token_that_nobody_gave(daemon: Daemon, client: Client, token: int) -> None:
    child = client.fork("plain_fork")
    assert attach_child(daemon, child, token) == -errno.EINVAL


def test_tokens_and_their_memory_go_with_the_parent(daemon: Daemon, checker: Client) -> None:
    before = free_kb(checker)
    client = attach(daemon)
    map_pages(client, 16)
    store(client, BASE, b"x" * 16 * PAGE)
    token = clone(client)
    store(client, BASE, b"y" * 16 * PAGE)
    child = client.fork("plain_fork")
    assert free_kb(checker) < before - 2 * 16 * PAGE // 1024
    client.kill()
    assert free_kb(checker) == before
    assert attach_child(daemon, child, token) == -errno.EINVAL


def test_a_child_lives_on_without_its_parent(daemon: Daemon, client: Client) -> None:
    map_pages(client, 1)
    store(client, BASE, b"x")
    token = clone(client)
    child = client.fork("plain_fork")
    assert attach_child(daemon, child, token) == child.pid
    client.kill()
    assert load(child, BASE, 1) == b"x"
    store(child, BASE, b"y")


def test_threads_share_memory_and_have_ids_of_their_own(daemon: Daemon, client: Client) -> None:
    map_pages(client, 1)
    tid = client.run(scripts.start_thread)
    assert client.second.attach(str(daemon.path), tid) == client.pid
    assert (client.raw.call(raw.GETTID).ret, client.second.call(raw.GETTID).ret) == (client.pid, tid)
    assert client.second.call(raw.GETPID).ret == client.pid
    store(client, BASE, b"shared")
    assert client.second.call(raw.LOAD, BASE, 6).data == b"shared"
    # exit ends one thread, and its connection.
    assert client.second.call(raw.EXIT, 0).ret == 0
    assert client.second.is_ended()
    assert load(client, BASE, 6) == b"shared"
    client.run(scripts.end_thread)


def test_a_thread_that_is_none_of_the_process(daemon: Daemon, client: Client) -> None:
    other = daemon.client()
    client.second.connect(str(daemon.path))
    for tid in (other.pid, 1 << 22, 1 << 40):
        assert client.second.call(raw.ATTACH, raw.VERSION, tid, 0).ret == -errno.EINVAL
    # The main thread is attached already.
    assert client.second.call(raw.ATTACH, raw.VERSION, 0, 0).ret == -errno.EINVAL


@pytest.mark.parametrize("way", ["exit_group", "signal"])
def test_the_end_of_a_process_closes_every_connection(daemon: Daemon, client: Client, way: str) -> None:
    tid = client.run(scripts.start_thread)
    client.second.attach(str(daemon.path), tid)
    if way == "exit_group":
        assert client.second.call(raw.EXIT_GROUP, 3).ret == 0
    else:
        assert client.second.call(raw.LOAD, 0, 1).siginfo.fatal == 1
    assert client.second.is_ended()
    assert client.raw.is_ended()
    client.run(scripts.end_thread)


@pytest.mark.parametrize("nr", [raw.EXIT, raw.EXIT_GROUP])
def test_exit_is_answered_and_gives_all_back(daemon: Daemon, checker: Client, nr: int) -> None:
    before = free_kb(checker)
    client = attach(daemon)
    map_pages(client, 4)
    store(client, BASE, b"x" * 4 * PAGE)
    assert client.raw.exchange(raw.pack(nr, 0) + raw.pack(raw.GETPID)) == [raw.Reply(0)]
    assert client.raw.is_ended()
    assert free_kb(checker) == before


def test_a_process_may_come_again_after_its_exit(daemon: Daemon, client: Client) -> None:
    map_pages(client, 1)
    assert client.raw.call(raw.EXIT_GROUP, 0).ret == 0
    assert client.raw.is_ended()
    client.me.new_raw()
    assert client.raw.attach(str(daemon.path)) == client.pid
    catch(client, SIGSEGV)
    assert client.raw.call(raw.LOAD, BASE, 1).signo == SIGSEGV


def test_setuid_drops_the_superuser_for_good(daemon: Daemon, client: Client) -> None:
    assert client.raw.call(raw.GETUID).ret == os.getuid()
    assert client.raw.call(raw.RAM, client.pid).ret >= 0
    assert client.raw.call(raw.SETUID, EVERYBODY).ret == 0
    assert client.raw.call(raw.GETUID).ret == EVERYBODY
    assert client.raw.call(raw.SETUID, 0).ret == -errno.EPERM
    assert client.raw.call(raw.SETUID, EVERYBODY).ret == 0
    for _connection in range(2):
        for nr in (raw.RAM, raw.OPEN, raw.PAGE_CONTENTS):
            assert client.raw.call(nr, client.pid, 0, 0, data=b"\0" * 24).ret == -errno.EPERM
        # A new connection, even after the last has gone, does not bring it back.
        client.me.new_raw()
        assert client.raw.attach(str(daemon.path)) == client.pid
        assert client.raw.call(raw.GETUID).ret == EVERYBODY
    token = clone(client)
    child = client.fork("plain_fork")
    assert attach_child(daemon, child, token) == child.pid
    assert child.raw.call(raw.RAM, child.pid).ret == -errno.EPERM


def test_execve_takes_a_program_by_descriptor(client: Client) -> None:
    map_pages(client, 1)
    fd = client.run(scripts.open_file, "/bin/true", os.O_RDONLY)
    inline = b"true\0--flag\0\0HOME=/\0"
    assert client.raw.call(raw.EXECVE, 0, 0, 0, data=inline, fds=[fd]).ret == 0
    maps = client.raw.call(raw.PROCREAD, 0, 65536, data=b"self/maps").data
    assert os.path.realpath("/bin/true").encode() in maps
    assert b"[stack]" in maps
    assert f"{BASE:x}-".encode() not in maps
    assert client.raw.call(raw.PROCREAD, 0, 4096, data=b"self/cmdline").data == b"true\0--flag\0"
    assert client.raw.call(raw.GETPID).ret == client.pid


def test_execve_that_fails_leaves_all_as_it_was(client: Client, tmp_path: Path) -> None:
    map_pages(client, 1)
    store(client, BASE, b"x")
    assert client.raw.call(raw.EXECVE, 0, 0, 0, data=b"a\0").ret == -errno.EBADF
    program = tmp_path / "program"
    program.write_bytes(b"no program")
    fd = client.run(scripts.open_file, str(program), os.O_RDONLY)
    assert client.raw.call(raw.EXECVE, 0, 0, 0, data=b"a\0\0", fds=[fd]).ret == -errno.EACCES
    program.chmod(0o755)
    assert client.raw.call(raw.EXECVE, 0, 0, 0, data=b"a\0\0", fds=[fd]).ret == -errno.ENOEXEC
    assert load(client, BASE, 1) == b"x"


def test_execve_ends_the_other_threads(daemon: Daemon, client: Client) -> None:
    tid = client.run(scripts.start_thread)
    client.second.attach(str(daemon.path), tid)
    fd = client.run(scripts.open_file, "/bin/true", os.O_RDONLY)
    assert client.raw.call(raw.EXECVE, 0, 0, 0, data=b"true\0\0", fds=[fd]).ret == 0
    assert client.second.is_ended()
    assert client.raw.call(raw.GETPID).ret == client.pid
    client.run(scripts.end_thread)


def test_a_killed_process_is_forgotten_before_its_parent_knows(daemon: Daemon, checker: Client) -> None:
    before = free_kb(checker)
    for _round in range(3):
        client = attach(daemon)
        map_pages(client, 8)
        store(client, BASE, b"x" * 8 * PAGE)
        client.signal(signal.SIGKILL)
        client.wait()
        assert free_kb(checker) == before
