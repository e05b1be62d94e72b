"""Who dies of a simulated signal dies of the real one: its real parent sees the true status."""

from __future__ import annotations

import re
import signal

import pytest

from tests.e2e import scripts
from tests.e2e.watch import PAGE, START
from tests.support.client import Client
from tests.support.watched_daemon import Daemon, free_kb

RW, READ = 3, 1
SIGSEGV, SIGBUS = signal.SIGSEGV, signal.SIGBUS


def prepare(client: Client) -> None:
    """A page to read and write, one to read, one of a file that is a page shorter than its mapping."""
    client.p.mmap(START, PAGE, RW, 0x32)
    client.p.mmap(START + PAGE, PAGE, READ, 0x32)
    fd = client.run(scripts.memfd, b"f")
    client.p.mmap(START + 4 * PAGE, 2 * PAGE, RW, 0x11, fd)


ACCESSES = [
    pytest.param("p.mem.load", (0, 1), SIGSEGV, id="null"),
    pytest.param("p.mem.store", (START + PAGE, b"x"), SIGSEGV, id="read-only"),
    pytest.param("p.mem.touch", (START, PAGE, 2), SIGSEGV, id="fetch"),
    pytest.param("p.mem.load", (START, 100_000), SIGSEGV, id="over-the-end"),
    pytest.param("p.mem.load_u64", (1 << 63,), SIGSEGV, id="kernel"),
    pytest.param("p.mem.load", (START + 5 * PAGE, 1), SIGBUS, id="past-a-files-end"),
    pytest.param("p.mem.store_u8", (START + 5 * PAGE, 1), SIGBUS, id="past-a-files-end-store"),
]


@pytest.mark.parametrize(("method", "args", "signo"), ACCESSES)
def test_the_parent_sees_the_signal(
    daemon: Daemon, inspector: Client, method: str, args: tuple[object, ...], signo: int
) -> None:
    free = free_kb(inspector)
    client = daemon.client()
    prepare(client)
    client.send((method, args, {}))
    assert client.wait() == -signo
    name = signal.Signals(signo).name.encode()
    assert re.fullmatch(rb"kerneld: process %d: %s at 0x[0-9a-f]+ \(.*\) in .*\n" % (client.pid, name), client.stderr)
    assert free_kb(inspector) == free


@pytest.mark.parametrize(("method", "args", "signo"), ACCESSES[:1] + ACCESSES[-1:])
def test_the_parent_of_a_forked_child_sees_it_and_goes_on(
    target: Client, method: str, args: tuple[object, ...], signo: int
) -> None:
    prepare(target)
    target.p.mem.store(START, b"mine")
    child = target.fork()
    child.send((method, args, {}))
    assert target.run(scripts.wait_for, child.pid) == -signo
    assert target.p.mem.load(START, 4) == b"mine"


def test_a_signal_in_a_batch(target: Client) -> None:
    prepare(target)
    target.post(scripts.batch_of_loads, [START, 0, START])
    assert target.wait() == -SIGSEGV


@pytest.mark.parametrize("signo", [SIGSEGV, SIGBUS])
def test_a_handler_keeps_the_process_alive(target: Client, signo: int) -> None:
    prepare(target)
    target.run(scripts.ignore_signals)
    for _again in range(2):
        with pytest.raises(InterruptedError):
            target.p.mem.load(0 if signo == SIGSEGV else START + 5 * PAGE, 1)
    assert target.p.mem.load(START, 1) == b"\0"


def test_ignoring_does_not_help(target: Client) -> None:
    target.p.sigaction(SIGSEGV, signal.SIG_IGN)
    target.send(("p.mem.load", (0, 1), {}))
    assert target.wait() == -SIGSEGV


def test_a_handler_does_not_outlive_execve(target: Client) -> None:
    target.run(scripts.ignore_signals)
    target.p.execve("/bin/true", ["true"])
    target.send(("p.mem.load", (0, 1), {}))
    assert target.wait() == -SIGSEGV


@pytest.mark.parametrize("status", [0, 3, 255])
def test_exit_is_exit(target: Client, status: int) -> None:
    target.send(("p.exit", (status,), {}))
    assert target.wait() == status


def test_the_real_target_shows_its_childs_sigsegv(daemon: Daemon) -> None:
    with daemon.program("target", "--delay", "0", "--scenario", "protect") as program:
        out, err = program.communicate()
    assert (program.returncode, err) == (0, "")
    assert "SIGSEGV" in out
