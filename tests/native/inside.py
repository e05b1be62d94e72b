"""A program inside the machine and the same outside: what each says, and how each ends."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.patience import SECONDS

"""Longer than anything here takes, on a machine that others use too."""


def why_not_here() -> str:
    """Return why no program can be run inside on this host, in words; "" where it can."""
    if platform.machine() != "x86_64":
        return f"programs run inside on x86-64 alone: this is {platform.machine()}"
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    except OSError:
        actions = []
    if "trap" not in actions:
        return "this host has no seccomp filters that trap"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "there is no C compiler for the stub"
    return ""


def need(*names: str) -> None:
    """Skip the test where a program is missing."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"this host has no {name}")


_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


def need_attach() -> None:
    """Skip the test where a debugger may not attach to a program that is not its child.

    Source: Linux v6.8 Documentation/admin-guide/LSM/Yama.rst.
    """
    scope = int(_YAMA.read_text()) if _YAMA.exists() else 0
    if scope > (2 if os.geteuid() == 0 else 0):
        pytest.skip(f"no debugger may attach to a program that runs: kernel.yama.ptrace_scope is {scope} on this host")


def compile_c(source: Path, target: Path, *options: str) -> Path:
    """Compile a program."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    subprocess.run([compiler, "-O1", "-pthread", "-o", str(target), str(source), *options], check=True)
    return target


@dataclass(frozen=True, slots=True)
class End:
    """How a program has ended: its exit status (negative: the signal), and what it has printed."""

    status: int
    output: str
    errors: str


class Inside:
    """Runs programs by `kerneld exec`, and outside."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._started: list[subprocess.Popen[str]] = []

    def command(self, argv: Sequence[str], *options: str) -> list[str]:
        """Return the words that run a program inside."""
        return [sys.executable, "-P", "-m", "kerneld", "exec", *options, "--", *argv]

    def start(self, argv: Sequence[str], *options: str) -> subprocess.Popen[str]:
        """Start a program inside, with pipes."""
        process = subprocess.Popen(
            self.command(argv, *options),
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, argv: Sequence[str], text: str = "", directory: Path | None = None) -> End:
        """Run a program inside to its end."""
        return self._run(self.command(argv), text, directory)

    def outside(self, argv: Sequence[str], text: str = "", directory: Path | None = None) -> End:
        """Run the same outside."""
        return self._run(argv, text, directory)

    def _run(self, argv: Sequence[str], text: str, directory: Path | None) -> End:
        environment = {**os.environ, **self._environment, "LC_ALL": "C"}
        done = subprocess.run(
            argv,
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd=directory,
            check=False,
        )
        return End(done.returncode, done.stdout, done.stderr)

    def agrees(self, argv: Sequence[str], text: str = "", directory: Path | None = None) -> End:
        """Run a program inside and outside, assert that both say the same and end alike, and return how."""
        inside, outside = self.run(argv, text, directory), self.outside(argv, text, directory)
        assert inside == outside, f"inside {inside}, outside {outside}"
        return inside

    def close(self) -> None:
        """End what a test has left."""
        for process in self._started:
            process.kill()
            process.communicate()
