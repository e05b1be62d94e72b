"""Programs that do a step at each line of their input and say so by a line: driven without a clock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.daemons import environment
from tests.support.patience import SECONDS

END_OF_PRINT = "---\n"


class Stepper:
    """A running program; a with block ends it."""

    def __init__(self, command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            env=dict(os.environ if environ is None else environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Return the next line of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def push(self) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def step(self) -> str:
        """Let one step happen; returns what the program then says."""
        self.push()
        return self.line()

    def end(self) -> tuple[int, str]:
        """End its input; return its status and its errors."""
        _output, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, errors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate()


class Inspector(Stepper):
    """The example inspector under `kerneld run`, a print at each line."""

    def __init__(self, abi: str, program: Path, path: Path, cache: Path, *args: object) -> None:
        command = run_command(abi, program, *args, "lines")
        super().__init__(command, run_environment(path, cache))

    def read(self) -> list[tuple[int, set[str]]]:
        """Return one print: the pfn of each page and its flags in words."""
        rows = []
        while (line := self.line()) not in (END_OF_PRINT, ""):
            _vaddr, _pfn, pfn, *words = line.split()
            rows.append((int(pfn, 0), set(words)))
        return rows

    def look(self) -> list[tuple[int, set[str]]]:
        """Return the table as it is now."""
        self.push()
        return self.read()


def run_command(abi: str, program: Path | str, *args: object) -> list[str]:
    """Return the words of a `kerneld run`."""
    return [sys.executable, "-m", "kerneld", "run", "--abi", abi, "--", str(program), *map(str, args)]


def run_environment(path: Path, cache: Path) -> dict[str, str]:
    """Return the environment of a `kerneld run`: the daemon's socket, and where the library is built."""
    return {**environment(path), "XDG_CACHE_HOME": str(cache)}
