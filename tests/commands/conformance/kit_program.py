"""The program of the kit, and what it prints."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kerneld.commands.conformance.kit import PROGRAM, kit_files

SECONDS = 400.0
"""Longer than all checks take, on a machine that others use too."""
AS_USER = {"open_eperm", "contents_eperm"}
"""The checks that become another user: only root can, if there is another."""
STRICT = "CFLAGS=-O1 -Wall -Wextra -Werror"
_RESULT = re.compile(r"^(not ok|ok) \d+ (\w+)(?: # (SKIP|TODO).*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the program: its status, what it printed, and the checks by their result."""

    status: int
    output: str
    passed: frozenset[str]
    failed: frozenset[str]
    skipped: frozenset[str]


def make(directory: Path, headers: Path) -> subprocess.CompletedProcess[str]:
    """Copy the kit into a directory, if it is not there already, and make it there."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in kit_files():
        if not (directory / path.name).exists():
            (directory / path.name).write_bytes(path.read_bytes())
    command = ["make", "-C", str(directory), f"HEADERS={headers}", STRICT]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def run_kit(
    command: Sequence[str],
    *options: str,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    seconds: float = SECONDS,
) -> Run:
    """Run the program, whose words are `command`. Raises TimeoutExpired if it takes longer than `seconds`."""
    path = os.devnull if log is None else str(log)
    done = subprocess.run(
        [*command, "--log", path, *options],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    found: dict[str, set[str]] = {"passed": set(), "failed": set(), "skipped": set()}
    for result, name, directive in _RESULT.findall(done.stdout):
        found["skipped" if directive == "SKIP" else "passed" if result == "ok" else "failed"].add(name)
    return Run(
        done.returncode,
        done.stdout + done.stderr,
        frozenset(found["passed"]),
        frozenset(found["failed"]),
        frozenset(found["skipped"]),
    )


def program(directory: Path) -> Path:
    """Return the program in a directory where the kit was made."""
    return directory / PROGRAM
