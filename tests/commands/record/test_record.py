"""`kerneld record`: what happens is in the file, however the record ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.failure import Status
from shared.recording.reader import Recording
from shared.trace.events import MM_FAULT, PROCESS_FORK
from tests.support.daemons import KERNELD, environment, kerneld, private_socket, running_daemon
from tests.support.patience import SECONDS

TARGET = (sys.executable, "-m", "target", "--delay", "0", "--scenario")


@contextmanager
def recording(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Record while a with block runs, from its beginning."""
    words = [*KERNELD, "record", *options]
    process = subprocess.Popen(words, env=environment(path), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "Recording into" in process.stderr.readline()
    with process.stderr:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(SECONDS)


def end(process: subprocess.Popen[str], signo: int = signal.SIGINT) -> tuple[int, str]:
    process.send_signal(signo)
    assert process.stderr is not None
    said = process.stderr.read()
    return process.wait(SECONDS), said


def play(path: Path, scenario: str) -> None:
    subprocess.run([*TARGET, scenario], env=environment(path), check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)


def test_a_record_has_everything_that_happened(path: Path, tmp_path: Path) -> None:
    file, html = tmp_path / "a.kdrecord", tmp_path / "a.html"
    with recording(path, "-o", str(file), "--html", str(html)) as process:
        play(path, "fork")
        status, said = end(process)
    recorded = Recording.open(file)
    assert status == Status.OK
    assert f"{recorded.nr_events} events in {file}" in said
    kinds = [record.fields["kind"] for _number, record in recorded.records() if record.event is MM_FAULT]
    assert {5, 6} <= set(kinds)  # A copy for who writes first, reuse for who writes last.
    (fork,) = [record for _number, record in recorded.records() if record.event is PROCESS_FORK]
    machine = recorded.machine(recorded.nr_events)
    assert machine.is_whole
    child = machine.tasks[fork.fields["child_pid"]]
    assert (child.ppid, child.exit_signal) == (fork.fields["parent_pid"], 0)
    assert b"application/x-kdrecord" in html.read_bytes()


def test_a_killed_record_can_be_read(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.kdrecord"
    with recording(path, "-o", str(file), "--buffer", "64K") as process:
        play(path, "demand")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(SECONDS)
    assert Recording.open(file).machine(0).is_complete


def test_the_end_of_the_process_ends_its_record(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.kdrecord"
    target = subprocess.Popen(
        [*TARGET[:3], "--scenario", "demand", "--step"],
        env=environment(path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert target.stdout is not None
    target.stdout.readline()
    with recording(path, "-o", str(file), "--pid", str(target.pid)) as process:
        target.communicate("\n" * 100)
        process.wait(SECONDS)
    recorded = Recording.open(file)
    assert {record.owner for _number, record in recorded.records()} <= {0, target.pid}
    machine = recorded.machine(recorded.nr_events)
    assert machine.tasks[target.pid].exit_signal == 0
    assert machine.nr_frames == 0


def test_records_that_are_lost_are_told_and_the_record_is_exact_again(path: Path, tmp_path: Path) -> None:
    """The recorder is stopped while more happens than its buffer holds."""
    file = tmp_path / "a.kdrecord"
    with recording(path, "-o", str(file), "--buffer", "4K") as process:
        os.kill(process.pid, signal.SIGSTOP)
        for _ in range(6):
            play(path, "fork")
        os.kill(process.pid, signal.SIGCONT)
        play(path, "demand")
        _status, said = end(process)
    assert "events are missing in" in said
    recorded = Recording.open(file)
    assert recorded.machine(recorded.nr_events).is_whole


def test_the_end_of_kerneld_ends_a_record_that_can_be_read(tmp_path: Path) -> None:
    socket, file = private_socket(tmp_path), tmp_path / "a.kdrecord"
    with running_daemon(socket) as daemon, recording(socket, "-o", str(file)) as process:
        play(socket, "demand")
        daemon.kill()
        assert process.wait(SECONDS) == Status.DAEMON_GONE
    recorded = Recording.open(file)
    assert MM_FAULT in {record.event for _number, record in recorded.records()}


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["--pid", "1"], Status.NO_PROCESS, "no process 1"),
        (["-o", "/no/such/directory/file"], Status.FAILED, "cannot write /no/such/directory/file"),
        (["--buffer", "1G"], Status.FAILED, "cannot record"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(
    path: Path, tmp_path: Path, words: list[str], status: Status, why: str
) -> None:
    done = kerneld(path, "record", "-o", str(tmp_path / "a"), *words)
    assert done.returncode == status
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_kerneld_a_file_that_exists_stays(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("of an earlier record")
    done = kerneld(tmp_path / "nobody.sock", "record", "-o", str(file))
    assert (done.returncode, done.stderr.count("\n")) == (Status.NO_DAEMON, 1)
    assert file.read_text() == "of an earlier record"
