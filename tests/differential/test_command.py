"""`kerneld referee` as a person runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


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
