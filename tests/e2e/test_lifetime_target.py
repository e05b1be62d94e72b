"""However a target ends, in whatever state: its frames are free at once, and its table is empty and stays."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from target.pace import PROMPT
from tests.e2e import scripts
from tests.e2e.endings import WAYS, Way
from tests.e2e.raw_session import attach
from tests.e2e.watch import PAGE, START, Watch
from tests.support import raw
from tests.support.client import Client
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon, free_kb, shm_names, status_of

PAGES = 64
RW, ANON_FIXED, DONTNEED = 3, 0x32, 4
BATCH = (
    raw.pack(raw.TOUCH, START, PAGES * PAGE, raw.WRITE) + raw.pack(raw.MADVISE, START, PAGES * PAGE, DONTNEED)
) * 60
STATES = ("fresh", "mapped", "faulted", "token", "file", "batch", "stopped")


def bring(target: Client, state: str) -> None:
    """Bring an attached target into a state; `batch` only prepares it."""
    call = target.raw.call
    if state == "fresh":
        return
    if state == "file":
        fd = target.run(scripts.memfd, b"f" * PAGE, PAGES)
        assert call(raw.MMAP, START, PAGES * PAGE, RW, 0x11, fd, 0, fds=[fd]).ret == START
    else:
        assert call(raw.MMAP, START, PAGES * PAGE, RW, ANON_FIXED, -1, 0).ret == START
    if state in ("faulted", "token", "file", "stopped"):
        assert call(raw.TOUCH, START, PAGES * PAGE, raw.WRITE).ret == PAGES
    if state == "token":
        assert call(raw.CLONE).ret > 0
        assert call(raw.TOUCH, START, 8 * PAGE, raw.WRITE).ret == 8
    if state == "stopped":
        target.signal(signal.SIGSTOP)


def is_gone(checker: Client, pid: int) -> bool:
    tasks = checker.p.read_proc("kerneld/tasks").decode().splitlines()
    return str(pid) not in [line.split("\t")[0] for line in tasks]


CASES = [
    pytest.param(state, way, holder, id=f"{state}-{way.name}-{'held' if holder else 'alone'}")
    for state in STATES
    for way in WAYS
    for holder in (False, True)
    # A stopped process ends by SIGKILL alone; who holds the socket makes no difference to the rest of the way.
    if (way.name == "SIGKILL" or state != "stopped") and (not holder or way.name in ("return", "SIGKILL"))
]


@pytest.mark.parametrize(("state", "way", "holder"), CASES)
def test_the_end_of_a_target(daemon: Daemon, inspector: Client, state: str, way: Way, holder: bool) -> None:
    free = free_kb(inspector)
    target = attach(daemon)
    watch = Watch(inspector, target, pages=PAGES).begin()
    child = target.fork("plain_fork") if holder else None
    bring(target, state)
    inspector.run(scripts.note_sequence)
    if state == "batch":
        target.run(scripts.send_batch, BATCH)
        inspector.run(scripts.wait_for_change)
    way.end(target)
    # Any call after the end finds the process gone, and so does whoever looks at the table after that.
    assert is_gone(inspector, target.pid)
    assert watch.letters() == "." * PAGES
    # A start brings nothing back either, and what kerneld holds for the table is given back by close.
    inspector.p.shadowpt_start()
    assert watch.letters() == "." * PAGES
    inspector.p.shadowpt_close()
    assert free_kb(inspector) == free
    assert shm_names(daemon.process.pid) == []
    assert child is None or child.run(scripts.is_alive)


def read_to_prompt(program: object) -> None:
    stdout = getattr(program, "stdout", None)
    assert stdout is not None
    assert any(line.strip() == PROMPT for line in stdout)


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize(
    ("scenario", "presses"), [("demand", 4), ("heap", 3), ("file-shared", 3), ("fork", 4), ("exec", 2)]
)
def test_the_real_target_is_killed(
    daemon: Daemon, inspector: Client, scenario: str, presses: int, stopped: bool
) -> None:
    free = free_kb(inspector)
    with daemon.program("target", "--step", "--scenario", scenario) as program:
        read_to_prompt(program)
        assert program.stdin is not None
        for _press in range(presses):
            program.stdin.write("\n")
            program.stdin.flush()
            read_to_prompt(program)
        assert free_kb(inspector) < free
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        pidfds = [os.pidfd_open(int(child)) for child in children]
        if stopped:
            program.send_signal(signal.SIGSTOP)
        program.kill()
        assert program.wait(SECONDS) == -signal.SIGKILL
        assert is_gone(inspector, program.pid)
        for pidfd in pidfds:
            # A child waits for orders from its parent, and ends when there is none any more.
            assert select.select([pidfd], [], [], SECONDS)[0]
            os.close(pidfd)
    assert free_kb(inspector) == free
    assert status_of(inspector)["Tasks"] == "1"
