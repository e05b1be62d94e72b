"""`kerneld referee` as a person runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.failure import Status
from tests.support import daemons


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_no_directory(signo: signal.Signals, tmp_path: Path) -> None:
    folder, run_in = tmp_path / "tmp", tmp_path / "here"
    folder.mkdir()
    run_in.mkdir()
    running = subprocess.Popen(
        [sys.executable, "-m", "kerneld", "referee", "--programs", "1000000"],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        cwd=run_in,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with running:
        assert running.stdout is not None
        assert any(line.startswith("The referee is") for line in running.stdout)
        assert list(folder.iterdir()) != []
        # As Ctrl+C does: to all of the foreground, the host's runner too.
        os.killpg(running.pid, signo)
        _out, err = running.communicate()
    assert (running.returncode, err) == (-signo, f"kerneld: ended by {signo.name}\n")
    assert (list(folder.iterdir()), list(run_in.iterdir())) == ([], [])


@pytest.mark.parametrize("file", ["kerneld.sock", "nowhere"])
def test_a_file_without_a_program_is_one_line_and_1(tmp_path: Path, file: str) -> None:
    (tmp_path / "kerneld.sock").write_text("no JSON")
    done = daemons.kerneld(tmp_path, "referee", "--replay", str(tmp_path / file))
    assert (done.returncode, done.stdout) == (Status.FAILED, "")
    why = "holds no program of the referee's" if file == "kerneld.sock" else "No such file or directory"
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
