"""A format whose package is missing, or that no person can read, is refused in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kerneld.commands.trace.writers import WRITERS
from shared.client import Process
from shared.clock import WallClock
from shared.failure import Failure, Status
from shared.trace.events import SHADOWPT_START
from shared.trace.record import Record
from shared.trace.text import Names, text_line
from tests.support.daemons import KERNELD, environment, kerneld, private_socket, running_daemon
from tests.support.patience import SECONDS


@pytest.fixture(scope="module")
def daemon_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = private_socket(tmp_path_factory.mktemp("run"))
    with running_daemon(path):
        yield path


def test_without_its_package_perfetto_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kerneld.commands.trace.perfetto.writer", None)
    with pytest.raises(Failure, match=r"pip install 'kerneld\[perfetto\]'") as raised:
        WRITERS["perfetto"](io.TextIOWrapper(io.BytesIO()))
    assert raised.value.status == Status.FAILED


def test_no_perfetto_file_goes_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(file, "isatty", lambda: True)
    with pytest.raises(Failure, match="-o") as raised:
        WRITERS["perfetto"](file)
    assert raised.value.status == Status.USAGE


@pytest.mark.parametrize("form", ["text", "json", "perfetto"])
@pytest.mark.parametrize("command", ["trace", "ftrace", "strace"])
def test_a_trace_that_never_begins_leaves_no_file_and_keeps_the_one_there_is(
    tmp_path: Path, form: str, command: str
) -> None:
    words = [command, *(["--format", form] if command == "trace" else ["1"] if command == "strace" else [])]
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_text("of an earlier trace")
    for file in (new, old):
        done = kerneld(tmp_path / "nobody.sock", *words, "-o", str(file))
        assert (done.returncode, done.stderr.count("\n")) == (Status.NO_DAEMON, 1)
    assert not new.exists()
    assert old.read_text() == "of an earlier trace"


def test_a_trace_replaces_what_the_file_held(daemon_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("x" * 100_000)
    assert kerneld(daemon_path, "trace", "--format", "json", "-o", str(file), "--duration", "0").returncode == 0
    assert "x" not in file.read_text()


def test_a_dash_is_stdout(daemon_path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*KERNELD, "ftrace", "-o", "-", "--duration", "0"],
        env=environment(daemon_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("# tracer: function\n")
    assert list(tmp_path.iterdir()) == []


def test_the_log_the_trace_and_json_have_the_same_clocks(tmp_path: Path) -> None:
    """A line of the log, a record and the time of day can be laid beside each other."""
    path = private_socket(tmp_path)
    before, day_before = time.monotonic(), datetime.now().astimezone()
    with running_daemon(path) as daemon, Process.attach(str(path)) as process:
        with subprocess.Popen(
            [*KERNELD, "trace", "--format", "json", "--pid", str(process.pid), "--count", "1"],
            env=environment(path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as trace:
            while trace.poll() is None:
                process.getpid()
            assert trace.stdout is not None
            record = json.loads(trace.stdout.readline())
        daemon.terminate()
        assert daemon.stderr is not None
        entries = [json.loads(line) for line in daemon.stderr.read().splitlines()]
    after, day_after = time.monotonic(), datetime.now().astimezone()
    for entry in entries:
        assert before <= float(entry["monotonic"]) + 1e-6
        assert float(entry["monotonic"]) <= after
        assert day_before <= datetime.fromisoformat(entry["timestamp"]) + timedelta(microseconds=1)
        assert datetime.fromisoformat(entry["timestamp"]) <= day_after
    assert before <= record["time"] / 1e9 <= after
    # The two clocks are set beside each other once, and the day's may be corrected meanwhile.
    off = datetime.fromisoformat(record["when"]).timestamp() - record["time"] / 1e9
    assert off == pytest.approx(time.time() - time.monotonic(), abs=1)


def test_text_may_have_the_time_of_day() -> None:
    fields = dict.fromkeys(("opener", "target", "start", "end"), 0)
    record = Record(SHADOWPT_START, 3684123456789, 7, 7, 7, (), 0, 0, fields)
    wall = WallClock()
    assert text_line(record, Names()).split(" [000] ")[1].startswith(" 3684.123456: shadowpt:start")
    day = wall.at(record.time)
    assert text_line(record, Names(), wall).split(" [000] ")[1].startswith(f"{day:%H:%M:%S.%f}: shadowpt:start")
