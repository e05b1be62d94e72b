"""One `kerneld run` of a C program."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.c.steps import run_command, run_environment
from tests.support.patience import SECONDS


def run(path: Path, cache: Path, program: Path | str, *args: object, abi: str = "f24") -> tuple[int, str]:
    """Return the exit status and stderr of one `kerneld run`."""
    done = subprocess.run(
        run_command(abi, program, *args),
        env=run_environment(path, cache),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stderr
