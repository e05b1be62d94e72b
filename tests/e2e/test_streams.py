"""Standard input, output and error that are closed, full or left by their reader: one clear line, a status, no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.daemons import private_socket, running_daemon
from tests.support.patience import SECONDS

ROOT = Path(__file__).resolve().parents[2]
PRINTING = [
    ["kerneld", "--help"],
    ["kerneld", "--version"],
    ["kerneld", "status"],
    ["kerneld", "ps"],
    ["kerneld", "proc", "meminfo"],
    ["kerneld", "trace", "--list"],
    ["kerneld", "trace", "--count", "1"],
    ["kerneld", "ftrace", "--graph", "--count", "1"],
    ["inspector", "--help"],
    ["inspector", "SELF", "[stack]", "--once"],
    ["target", "--help"],
    ["target", "--list"],
    ["target", "--scenario", "hole", "--delay", "0"],
]
"""SELF is a process of kerneld's: the one that goes on and on."""

SELF: list[int] = []


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon that runs, with a process in it that goes on and on: there is something to trace."""
    directory = tmp_path_factory.mktemp("run")
    path = private_socket(directory)
    with running_daemon(path):
        words = [sys.executable, "-m", "target", "--loop", "--delay", "0.05", "--scenario", "hole"]
        environment = {**os.environ, "KERNELD_SOCKET": str(path), "TMPDIR": str(directory)}
        busy = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE)
        assert busy.stdout is not None
        # Its first line says that it is attached.
        busy.stdout.readline()
        drain = subprocess.Popen(["cat"], stdin=busy.stdout, stdout=subprocess.DEVNULL)
        busy.stdout.close()
        try:
            SELF.append(busy.pid)
            yield path
        finally:
            busy.kill()
            busy.wait(SECONDS)
            drain.wait(SECONDS)


def run(words: Sequence[str], socket: Path, redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the project with a shell's redirection.

    Its streams are buffered, as they are where nobody has said otherwise: what is left in them at the end counts too.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(SELF[-1]) if word == "SELF" else word for word in words]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-P", "-m", *words],
        env={**inherited, "KERNELD_SOCKET": str(socket), "PYTHONPATH": str(ROOT), "TMPDIR": str(socket.parent)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_closed_output_is_as_good_as_none(words: list[str], socket: Path) -> None:
    done = run(words, socket, ">&-")
    assert done.returncode == 0
    assert not [line for line in done.stderr.splitlines() if line.startswith(f"{words[0]}:")]


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_full_disk_is_one_line_and_status_1(words: list[str], socket: Path) -> None:
    done = run(words, socket, ">/dev/full")
    assert (done.returncode, done.stderr) == (1, f"{words[0]}: cannot write: No space left on device\n")


def test_a_closed_input_has_ended(socket: Path) -> None:
    done = run(["target", "--step", "--scenario", "hole"], socket, "<&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("The input has ended, and the tour with it.\n")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["kerneld", "status"], 3),
        (["kerneld", "ps"], 3),
        (["kerneld", "maps", "1"], 3),
        (["kerneld", "proc", "meminfo"], 3),
        (["kerneld", "stop"], 3),
        (["kerneld", "trace"], 3),
        (["kerneld", "ftrace"], 3),
        (["kerneld", "strace", "1"], 3),
        (["kerneld", "run", "--", "true"], 3),
        (["kerneld", "run", "--", "/nowhere"], 8),
        (["kerneld", "run", "--header", "/dev/null"], 1),
        (["kerneld", "inspect-dump", "/nowhere"], 1),
        (["kerneld", "referee", "--replay", "/nowhere"], 1),
        (["kerneld", "start", "--socket", "/proc/kerneld.sock"], 7),
        (["kerneld", "nonsense"], 2),
        (["inspector", "1", "0", "+4K"], 3),
        (["inspector", "1", "5"], 2),
        (["target"], 3),
        (["target", "--nonsense"], 2),
        (["target.demo", "--nonsense"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_status_is_kept_where_its_line_cannot_be_said(
    words: list[str], status: int, redirection: str, tmp_path: Path
) -> None:
    done = run(words, tmp_path / "nobody", redirection)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize(
    "words",
    [
        ["kerneld", "trace", "--duration", "0"],
        ["kerneld", "ftrace", "--duration", "0"],
        ["kerneld", "strace", "-c", "8388607"],
        ["inspector", "SELF", "[stack]", "--once"],
        ["kerneld", "run", "--header", "include"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_what_is_said_beside_is_no_failure_where_it_cannot_be(
    words: list[str], redirection: str, socket: Path, tmp_path: Path
) -> None:
    words = [str(tmp_path / "include") if word == "include" else word for word in words]
    assert run(words, socket, redirection).returncode == run(words, socket, "").returncode


def test_a_daemon_without_any_of_the_three_serves(tmp_path: Path) -> None:
    path = private_socket(tmp_path)
    assert run(["kerneld", "start", "--detach", "--ram", "64M"], path, "<&- >&- 2>&-").returncode == 0
    try:
        assert "running" in run(["kerneld", "status"], path, "").stdout
    finally:
        assert run(["kerneld", "stop"], path, "").returncode == 0
