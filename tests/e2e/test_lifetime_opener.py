"""However the opener of a table ends, in whatever state: the next open succeeds at once, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.e2e import scripts
from tests.e2e.endings import WAYS, Way
from tests.e2e.watch import PAGE, START, Watch
from tests.support import raw
from tests.support.client import Client
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon, free_kb, shm_names, status_of

STATES = ("opened", "started", "stopped", "batch")
BATCH = (raw.pack(raw.START) + raw.pack(raw.STOP)) * 60


def bring(daemon: Daemon, opener: Client, target: Client, state: str) -> None:
    """Bring an opener into a state; `batch` only prepares it."""
    Watch(opener, target).open()
    if state != "opened":
        opener.p.shadowpt_start()
    if state == "stopped":
        opener.p.shadowpt_stop()
    if state == "batch":
        assert opener.raw.attach(str(daemon.path), opener.run(scripts.start_thread)) == opener.pid


def opens_at_once(checker: Client, target: Client) -> bool:
    """Whether a table can be opened, works, and can be closed."""
    watch = Watch(checker, target).begin()
    target.p.mmap(START, PAGE, 3, 0x8032)
    shown = watch.letters()
    target.p.munmap(START, PAGE)
    checker.p.shadowpt_close()
    return shown == "M......."


@pytest.mark.parametrize("holder", [False, True], ids=["alone", "held"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_the_end_of_an_opener(
    daemon: Daemon, inspector: Client, target: Client, state: str, way: Way, holder: bool
) -> None:
    free = free_kb(inspector)
    opener = daemon.client()
    bring(daemon, opener, target, state)
    assert status_of(inspector)["ShadowOpener"] == str(opener.pid)
    # A child that kerneld knows nothing of, with every descriptor and mapping of the opener's.
    child = opener.fork("plain_fork") if holder else None
    if state == "batch":
        opener.post(scripts.send_and_end, BATCH, way.script, way.signo)
        way.check(opener)
    else:
        way.end(opener)
    assert opens_at_once(inspector, target)
    assert free_kb(inspector) == free
    assert shm_names(daemon.process.pid) == []
    if child is not None:
        # It lives, and its view of the table that was shows zeros.
        assert not any(child.run(scripts.read_view))


def test_the_end_of_the_connection_alone_closes_the_table(daemon: Daemon, inspector: Client, target: Client) -> None:
    opener = daemon.client()
    watch = Watch(opener, target).begin()
    opener.run(scripts.note_sequence)
    opener.run(scripts.hang_up)
    opener.run(scripts.wait_for_change)
    assert not any(opener.run(scripts.read_view))
    assert watch.entries
    assert opens_at_once(inspector, target)


def test_a_stopped_opener_keeps_its_table_until_it_is_killed(daemon: Daemon, inspector: Client, target: Client) -> None:
    opener = daemon.client()
    Watch(opener, target).begin()
    opener.signal(signal.SIGSTOP)
    with pytest.raises(OSError, match=r"\[Errno 16\]"):
        Watch(inspector, target).open()
    opener.kill()
    assert opens_at_once(inspector, target)


def test_a_child_of_fork_does_not_keep_the_table(daemon: Daemon, inspector: Client, target: Client) -> None:
    free = free_kb(inspector)
    opener = daemon.client()
    Watch(opener, target).begin()
    child = opener.fork()
    opener.kill()
    assert opens_at_once(inspector, target)
    # The child is a process of its own, and goes on.
    assert child.p.getpid() == child.pid
    assert free_kb(inspector) < free


def start_inspector(daemon: Daemon, target: Client, *options: str) -> subprocess.Popen[str]:
    return daemon.program("inspector", str(target.pid), hex(START), "+32K", *options)


@pytest.mark.parametrize(
    ("signo", "status"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_the_end_of_the_real_inspector(
    daemon: Daemon, inspector: Client, target: Client, signo: int, status: int
) -> None:
    free = free_kb(inspector)
    with start_inspector(daemon, target, "--interval", "50") as program:
        assert program.stdout is not None
        assert f"pid {target.pid} " in program.stdout.readline()
        assert status_of(inspector)["ShadowTable"] == "tracking"
        program.send_signal(signo)
        assert program.wait(SECONDS) == status
        assert opens_at_once(inspector, target)
        _out, err = program.communicate()
    assert err == ""
    assert free_kb(inspector) == free
    assert shm_names(daemon.process.pid) == []


def test_the_real_inspector_whose_output_is_closed(daemon: Daemon, inspector: Client, target: Client) -> None:
    with start_inspector(daemon, target, "--interval", "0.01") as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.wait(SECONDS) not in (0, None)
        assert program.stderr is not None
        assert "Traceback" not in program.stderr.read()
    assert opens_at_once(inspector, target)


@pytest.mark.parametrize("stage", range(4))
def test_the_real_inspector_killed_somewhere_on_its_way(
    daemon: Daemon, inspector: Client, target: Client, stage: int
) -> None:
    """Killed while it loads, once it has attached, once it has opened, once it tracks."""
    with start_inspector(daemon, target, "--interval", "0.01") as program:
        if stage:
            while program.poll() is None and status_of(inspector)["Tasks"] == "2":
                os.sched_yield()
        if stage > 1:
            while status_of(inspector)["ShadowTable"] == "closed":
                os.sched_yield()
        if stage > 2:
            while status_of(inspector)["ShadowTable"] == "open":
                os.sched_yield()
        program.kill()
        assert program.wait(SECONDS) == -signal.SIGKILL
        assert opens_at_once(inspector, target)
