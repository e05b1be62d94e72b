"""What clients can make the daemon write to its log is limited, and what is not written is counted."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from kerneld import ratelimit
from kerneld.hw.ram import Ram
from kerneld.mm.frames.frames import Frames
from kerneld.mm.frames.swap import SwapFile
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.reclaim.oom import OomKiller, OomTask
from kerneld.mm.space.mm import MmStruct
from kerneld.ratelimit import BURST, INTERVAL_SECONDS, RateLimit
from kerneld.server.door import ClientLimits
from kerneld.server.logs import Limits
from tests.server.fakes import ServerUnderTest


class Clock:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(RateLimit.__init__, "__defaults__", (clock,))
    return clock


@pytest.fixture
def lines(clock: Clock) -> Iterator[list[structlog.typing.EventDict]]:
    """The lines that are written."""
    capture = LogCapture()
    former = structlog.get_config()
    structlog.configure(processors=[Limits(), capture])
    yield capture.entries
    structlog.configure(**former)


def test_a_line_is_written_so_often_and_then_counted(lines: list[structlog.typing.EventDict], clock: Clock) -> None:
    log = structlog.get_logger()

    def happen(times: int) -> None:
        for number in range(times):
            log.warning(f"line {number}", name="\x1b")

    happen(1000)
    assert len(lines) == BURST
    clock.now += INTERVAL_SECONDS
    happen(1)
    assert lines[-1]["suppressed"] == 1000 - BURST
    happen(1)
    assert "suppressed" not in lines[-1]


def test_one_kind_of_line_does_not_hide_another(lines: list[structlog.typing.EventDict]) -> None:
    log = structlog.get_logger()
    for _ in range(1000):
        log.info("one")
    log.info("another")
    assert [line["event"] for line in lines] == ["one"] * BURST + ["another"]


def test_lines_for_debugging_have_no_limit(lines: list[structlog.typing.EventDict]) -> None:
    log = structlog.get_logger()
    for _ in range(100):
        log.debug("a step")
    assert len(lines) == 100


def test_who_connects_and_is_refused_again_and_again(lines: list[structlog.typing.EventDict], tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = ServerUnderTest(tmp_path, ClientLimits(of_a_process=1))
    server.connect()
    for _ in range(5 * BURST):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(server.path)
            server.turn()
    server.close()
    assert [line["event"] for line in lines] == ["connection refused: too many of this process"] * BURST


def test_the_machines_state_is_written_so_often_at_kills(lines: list[structlog.typing.EventDict], clock: Clock) -> None:
    frames = Frames(Ram(4 << 20), SwapFile(0))
    mm = MmStruct(frames, Rlimits(), Sysctl())
    tasks = [OomTask(pid, 0, "hungry", mm) for pid in range(200)]
    killer = OomKiller(frames, lambda: tasks, lambda: "asker", lambda _pid: True)
    for _ in range(30):
        assert killer.out_of_memory()
    events = [line["event"] for line in lines]
    assert sum(event.startswith("Out of memory") for event in events) == 30
    assert events.count("Mem-Info:") == BURST
    assert max(len([event for event in events if "hungry" in event and event.startswith("[")]), 0) == 64 * BURST
    clock.now += ratelimit.INTERVAL_SECONDS
    assert killer.out_of_memory()
    assert "oom_kill_process: 20 callbacks suppressed" in [line["event"] for line in lines]
