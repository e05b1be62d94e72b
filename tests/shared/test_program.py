"""The end of a program: whatever goes wrong is one line on stderr and a status."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from shared.client.errors import KerneldError, KerneldGone, KerneldLocked, KerneldUnavailable
from shared.failure import Failure, Status, client_failures
from shared.program import CommandLine
from tests.support.patience import SECONDS


def run(error: Exception | None) -> tuple[int, str]:
    """Run a program whose command raises `error`; return its status and its line."""

    @click.command("it", cls=CommandLine)
    def it() -> None:
        if error is not None:
            raise error

    result = CliRunner().invoke(it)
    assert result.stdout == ""
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, Status.OK, ""),
        (Failure(Status.NO_PROCESS, "no\nprocess"), Status.NO_PROCESS, "it: no process\n"),
        (Failure(Status.FAILED, "no \x1b[31mred\udcff"), Status.FAILED, "it: no \\033[31mred\\377\n"),
        (Failure(42, "its own status"), 42, "it: its own status\n"),
        (click.UsageError("no such option"), Status.USAGE, "it: no such option (it --help tells more)\n"),
        (click.ClickException("no"), Status.FAILED, "it: no\n"),
    ],
    ids=["none", "failure", "terminal", "own", "usage", "other"],
)
def test_a_failure_is_its_line_and_its_status(error: Exception | None, status: int, line: str) -> None:
    assert run(error) == (status, line)


def test_a_bug_is_a_line_with_its_place() -> None:
    status, line = run(KeyError("mine"))
    assert status == Status.FAILED
    assert line.startswith("it: internal error: KeyError: 'mine' (test_program.py:")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("FileNotFoundError(2, 'No such file or directory', 'x')", "it: x: No such file or directory\n"),
        ("OSError(28, 'No space left on device')", "it: cannot write: No space left on device\n"),
        ("BrokenPipeError(32, 'Broken pipe')", ""),
    ],
)
def test_an_error_of_the_host(error: str, line: str) -> None:
    program = f"""
import click
from shared.program import CommandLine, run_program
@click.command("it", cls=CommandLine)
def it():
    print("before")
    raise {error}
run_program(it)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (Status.FAILED, "before\n", line)


@pytest.mark.parametrize("is_full", [True, False])
def test_output_that_cannot_be_written(is_full: bool) -> None:
    """A disk that is full is a line; a reader that has left is none. The interpreter's end adds nothing to either."""
    program = """
import click
from shared.program import CommandLine, run_program
@click.command("it", cls=CommandLine)
def it():
    print("lost")
run_program(it)
"""
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as gone, open("/dev/full", "w", encoding="utf-8") as full:
        gone.wait()
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full if is_full else gone.stdin,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    line = "it: cannot write: No space left on device\n" if is_full else ""
    assert (done.returncode, done.stderr) == (Status.FAILED, line)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KerneldLocked("locked"), Status.NOT_PERMITTED),
        (KerneldUnavailable("empty"), Status.NO_DAEMON),
        (KerneldGone("gone"), Status.DAEMON_GONE),
        (KerneldError("else"), Status.FAILED),
    ],
)
def test_a_locked_door_is_told_from_an_empty_house(error: KerneldError, status: Status) -> None:
    with pytest.raises(Failure, match=str(error)) as raised, client_failures():
        raise error
    assert raised.value.status == status


def test_a_program_may_say_what_went_with_kerneld() -> None:
    with pytest.raises(Failure, match="and the table with it"), client_failures(gone="and the table with it"):
        raise KerneldGone("gone")
