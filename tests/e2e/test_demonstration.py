"""The demonstration as a real program: its end, its arguments, and what it leaves when it is cut short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import SECONDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argument", "status", "line"),
    [("--help", 0, ""), ("--nonsense", 2, "demo: No such option '--nonsense'. (demo --help tells more)\n")],
)
def test_the_demonstration_takes_no_arguments(argument: str, status: int, line: str) -> None:
    demo = subprocess.run(
        [sys.executable, "-P", "-m", "target.demo", argument],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (demo.returncode, demo.stderr) == (status, line)
    assert "===" not in demo.stdout


def test_the_demonstration_ends_by_itself() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KERNELD_SOCKET"}
    result = subprocess.run(
        [sys.executable, "-P", "-m", "target.demo"],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """An empty directory whose name leaves room for the socket of a demonstration."""
    with tempfile.TemporaryDirectory(prefix="kd-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_a_demonstration_cut_short_leaves_nothing_behind(signo: signal.Signals, short_directory: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-P", "-m", "target.demo"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(short_directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        assert any(line.startswith("inspector | +") for line in demo.stdout), "the demonstration has ended"
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        assert len(children) == 3
        demo.send_signal(signo)
        _out, err = demo.communicate()
    assert (demo.returncode, err) == (-signo, f"demo: ended by {signo.name}\n")
    assert not any(Path("/proc", child).exists() for child in children)
    assert list(short_directory.iterdir()) == []
