"""pytest-kerneld: the example for instructors, a test that fails, and a machine with a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.compiler import ROOT
from tests.support.patience import SECONDS

EXAMPLE = ROOT / "examples" / "course" / "test_course.py"
BUG = """

import pytest


@pytest.fixture
def kerneld_options():
    return ["--bug", "no-fault-update"]
"""


def run_pytest(directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one file, in a directory of its own, as an instructor does."""
    file = directory / "test_course.py"
    file.write_text(text)
    # -p: also where the package is not installed, as in a checkout.
    plugin = ["-p", "kerneld.pytest_plugin"] if not _is_installed() else []
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, str(file)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def _is_installed() -> bool:
    from importlib.metadata import entry_points  # noqa: PLC0415

    return any(point.value == "kerneld.pytest_plugin" for point in entry_points(group="pytest11"))


def test_the_example_passes(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, EXAMPLE.read_text())
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_the_example_runs_where_it_stands() -> None:
    """The checkout's own settings of pytest are for the checkout's tests: an instructor has none of its plugins."""
    plugin = ["-p", "kerneld.pytest_plugin"] if not _is_installed() else []
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:timeout", "-p", "no:xdist", *plugin, str(EXAMPLE.parent)]
    # Options for these tests' own run are for its plugins.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_a_failed_test_shows_the_table_and_the_last_events(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, EXAMPLE.read_text().replace("pfn != 0", "pfn == 0"))
    assert done.returncode == 1
    _, _, shown = done.stdout.partition("shadow page table")
    table, _, events = shown.partition("last events of kerneld")
    assert "0x001000000000  pfn 0x" in table
    assert "ALLOCATED ANONYMOUS MAPPED" in table
    assert "fault:handle_mm_fault" in events
    assert "shadowpt:spte_update" in events


def test_the_machine_takes_options_such_as_a_mistake(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, EXAMPLE.read_text() + BUG)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    assert [("test_a_page_gets_its_frame_at_the_first_write" in line) for line in failed] == [True], done.stdout
