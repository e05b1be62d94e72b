"""However kerneld ends: everyone says so in a line and by a status of their own, and a new one works at once."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from shared.client import KerneldGone
from tests.e2e import scripts
from tests.e2e.raw_session import attach
from tests.e2e.watch import PAGE, START, Watch
from tests.support import raw
from tests.support.client import Client
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon, free_kb, shm_names

ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
GONE, NOT_RUNNING = 4, 3
BATCH = (raw.pack(raw.TOUCH, START, 64 * PAGE, raw.WRITE) + raw.pack(raw.MADVISE, START, 64 * PAGE, 4)) * 24
REQUESTS = 48
"""More than a slice of time, and less than the second that a stop gives to what has begun, on a busy machine too."""


def works(daemon: Daemon) -> bool:
    """Whether a new target can be watched by a new inspector."""
    inspector, target = daemon.client(), daemon.client()
    target.p.mmap(START, PAGE, 3, 0x32)
    watch = Watch(inspector, target).begin()
    target.p.mem.store(START, b"x")
    shown = watch.letters()
    inspector.p.shadowpt_close()
    daemon.let_clients_go()
    return shown == "M......."


def end(daemon: Daemon, signo: int) -> None:
    """End kerneld and see what it leaves: nothing, or after SIGKILL the files that a new one replaces."""
    assert daemon.end(signo) == (-signo if signo == signal.SIGKILL else 0)
    if signo != signal.SIGKILL:
        assert os.listdir(daemon.directory) == []
    assert shm_names(daemon.process.pid) == []


def one_line(program: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a program's end and return its status and its one line on stderr."""
    _out, err = program.communicate(timeout=SECONDS)
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return program.returncode, err


@pytest.mark.parametrize("signo", ENDS)
def test_every_program_says_so_and_a_new_kerneld_works(own_daemon: Daemon, signo: int) -> None:
    daemon = own_daemon
    with (
        daemon.program("target", "--delay", "100", "--scenario", "demand") as waiting,
        daemon.program("target", "--step", "--scenario", "fork") as stepping,
    ):
        for target in (waiting, stepping):
            assert target.stdout is not None
            assert any(line.startswith("  Watch ") for line in target.stdout)
        with daemon.program("inspector", str(stepping.pid), hex(START), "+32K", "--interval", "100") as inspector:
            assert inspector.stdout is not None
            assert f"pid {stepping.pid} " in inspector.stdout.readline()
            clients = [daemon.client() for _client in range(3)]
            for client in clients:
                client.p.mmap(START, PAGE, 3, 0x8032)
                client.raw.connect(str(daemon.path))
            end(daemon, signo)
            # Nobody is asked for anything: each is told by the end of its connection.
            assert one_line(inspector) == (GONE, "inspector: kerneld went away, and the table with it\n")
            for target in (waiting, stepping):
                status, line = one_line(target)
                assert (status, line.startswith("target: ")) == (GONE, True)
    for client in clients:
        with pytest.raises(KerneldGone):
            client.p.getpid()
        assert client.raw.is_ended()
    daemon.start()
    assert works(daemon)


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL])
def test_every_program_says_that_there_is_none(own_daemon: Daemon, signo: int) -> None:
    own_daemon.end(signo)
    for words in (["kerneld", "status"], ["kerneld", "ps"], ["inspector", "1"], ["target"]):
        with own_daemon.program(*words) as program:
            status, line = one_line(program)
            assert (status, line.startswith(f"{words[0]}: ")) == (NOT_RUNNING, True)


@pytest.mark.parametrize("state", ["opened", "started", "stopped"])
@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL])
def test_an_opener_outlives_kerneld(own_daemon: Daemon, signo: int, state: str) -> None:
    daemon = own_daemon
    inspector, target = daemon.client(), daemon.client()
    target.p.mmap(START, 8 * PAGE, 3, 0x8032)
    watch = Watch(inspector, target).open()
    if state != "opened":
        inspector.p.shadowpt_start()
    if state == "stopped":
        inspector.p.shadowpt_stop()
    before = watch.rows()
    end(daemon, signo)
    # A kerneld that ends in order empties the table; one that was killed leaves what it wrote last. Both can be read.
    assert watch.rows() == (before if signo == signal.SIGKILL else [(0, 0, 0)] * 8)
    with pytest.raises(KerneldGone):
        inspector.p.shadowpt_close()
    inspector.p.close()
    assert inspector.run(scripts.real_mapping, watch.entries) == "rw-p"


@pytest.mark.parametrize("signo", ENDS)
def test_in_the_middle_of_a_batch(own_daemon: Daemon, signo: int) -> None:
    daemon = own_daemon
    inspector = daemon.client()
    target = attach(daemon)
    Watch(inspector, target, pages=64).begin()
    assert target.raw.call(raw.MMAP, START, 64 * PAGE, 3, 0x32, -1, 0).ret == START
    inspector.run(scripts.note_sequence)
    target.run(scripts.send_batch, BATCH)
    inspector.run(scripts.wait_for_a_change)
    end(daemon, signo)
    answer: list[raw.Reply] = target.raw.receive()
    if signo == signal.SIGKILL:
        assert answer == []
    else:
        # What has begun is finished, and answered.
        assert [reply.ret for reply in answer] == [64, 0] * (REQUESTS // 2)
        assert target.raw.is_ended()


def test_killed_again_and_again(own_daemon: Daemon) -> None:
    daemon = own_daemon
    free = None
    for _round in range(3):
        checker = daemon.client()
        assert free in (None, free_kb(checker))
        free = free_kb(checker)
        Watch(checker, checker).begin()
        end(daemon, signal.SIGKILL)
        daemon.let_clients_go()
        daemon.start()
    assert works(daemon)


def test_a_stopped_kerneld_that_is_killed(own_daemon: Daemon) -> None:
    daemon = own_daemon
    client: Client = daemon.client()
    client.p.getpid()
    daemon.process.send_signal(signal.SIGSTOP)
    client.send(("p.getpid", (), {}))
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(KerneldGone):
        client.result()
    daemon.start()
    assert works(daemon)
