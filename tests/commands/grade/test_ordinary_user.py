"""`kerneld grade` by a user who is not root, with a home of its own: when root runs the tests, by another user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.commands.grade.submission import write_submission
from tests.support.compiler import ROOT
from tests.support.rights import NOBODY, can_become_others

pytestmark = pytest.mark.slow


def user_options() -> dict[str, Any]:
    """Return what subprocess needs to become the other user: nothing where the tests run as an ordinary user."""
    if os.geteuid():
        return {}
    if not can_become_others():
        pytest.skip("becoming another user takes CAP_SETUID, and a user namespace that has another")
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of that user's own. pytest's directories are closed to others."""
    options = user_options()
    directory = Path(tempfile.mkdtemp(prefix="kd-home-", dir="/tmp"))
    if options:
        os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


def environment(home: Path) -> dict[str, str]:
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    return {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": ":".join([str(ROOT), *libraries])}


def find_python(home: Path) -> str:
    """Return a Python that the user may run, with kerneld and its libraries; root's own may be closed to others."""
    for python in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        with_kerneld = [python, "-P", "-c", "import kerneld, numpy, posix_ipc"]
        try:
            done = subprocess.run(
                with_kerneld, env=environment(home), cwd=home, capture_output=True, check=False, **user_options()
            )
        except OSError:
            continue
        if done.returncode == 0:
            return python
    pytest.skip("another user cannot run this Python, or the system's, with kerneld and its libraries")


def grade(home: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], Mapping[str, Any]]:
    """Run `kerneld grade` as the user, and return it with its results."""
    results = home / "results.json"
    command = [find_python(home), "-P", "-m", "kerneld", "grade", "--json", str(results), *words]
    done = subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, check=False, **user_options()
    )
    assert done.returncode == 0, done.stderr
    return done, json.loads(results.read_text())


def test_a_right_submission_loses_nothing(home: Path) -> None:
    team = write_submission(home / "team")
    checklist = home / "checklist.toml"
    checklist.write_text("[points]\nbuild = 1\ninspector_live = 1\ninspector_closes = 1\n")
    done, results = grade(home, "--checklist", str(checklist), str(team))
    assert results["score"] == 3, done.stdout
    assert "another user" in done.stdout + done.stderr


def test_processes_are_limited(home: Path) -> None:
    team = write_submission(home / "team")
    count = "for at in $$(seq 60); do sleep 60 & done; echo all are there"
    (team / "user" / "part4" / "Makefile").write_text(f"all:\n\t{count}\n")
    checklist = home / "checklist.toml"
    checklist.write_text("[points]\nbuild = 1\n[limits]\nprocesses = 40\n")
    done, results = grade(home, "--checklist", str(checklist), str(team))
    assert results["score"] == 0, done.stdout
    # Where Linux counts the user's processes together, those of the team are counted all the time.
    assert "fork" in done.stdout or "more than 40 processes at once" in done.stdout, done.stdout
