"""The kit in C, shadowpt-check: its files, its program, and the table of its checks.

Owns no check: a check is described once, in the C file that makes it. `read_checks` asks the program for the table.
Knows no daemon.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from kerneld.commands.compiled import BuildError, ensure_built
from kerneld.commands.run.preload import header_path

PROGRAM = "shadowpt-check"
DIRECTORY = Path(__file__).resolve().parent / "kit"
"""The directory of the sources, in a checkout and in an installation."""
_FLAGS = ("-std=gnu11", "-O1", "-pthread")


@dataclass(frozen=True, slots=True)
class Check:
    """One check, as `shadowpt-check --list` prints it. The texts are those of the C source."""

    name: str
    points: int
    is_extra: bool
    """Whether it goes beyond the assignment: its failure costs nothing."""
    semesters: tuple[str, ...]
    place: str
    """The heading of the assignment that has the rule."""
    rule: str
    did: str
    expected: str
    mistake: str
    hint: str


def kit_files() -> list[Path]:
    """Return every file of the kit, sorted by name."""
    return sorted(path for path in DIRECTORY.iterdir() if path.suffix in (".c", ".h") or path.name == "Makefile")


def ensure_kit(abi: str = "f24") -> Path:
    """Return the path of the program, compiled with a semester's header. The cache keeps it. Raises BuildError."""
    sources = [path for path in kit_files() if path.suffix == ".c"]
    headers = [path for path in kit_files() if path.suffix == ".h"]
    header = header_path(abi)
    flags = (*_FLAGS, f"-I{header.parent.parent}")
    return ensure_built(f"{PROGRAM}-{abi}", flags, sources, [*headers, header], "the kit of checks")


def read_checks() -> list[Check]:
    """Return the table of all checks, in the order in which they run. Raises BuildError."""
    try:
        listed = subprocess.run([str(ensure_kit()), "--list"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the kit of checks does not list its checks: {error}") from None
    return [_read_check(line) for line in listed.splitlines()]


def _read_check(line: str) -> Check:
    name, points, extra, semesters, place, rule, did, expected, mistake, hint = line.split("\t")
    return Check(
        name, int(points), extra == "1", tuple(semesters.split()), place, rule, did, expected, mistake, hint
    )  # fmt: skip
