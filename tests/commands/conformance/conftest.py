"""The kit, made once as a student makes it, and its table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kerneld.commands.conformance.kit import Check, read_checks
from tests.commands.conformance.kit_program import make, program
from tests.support.compiler import include_directory


@pytest.fixture(scope="session", autouse=True)
def _has_compiler() -> None:
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("no C compiler and make here")


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program of the kit, made with the header of each semester. No warning is allowed."""
    made = {}
    directory = tmp_path_factory.mktemp("kit")
    for abi in ("f24", "f25", "f23"):
        # In the same directory: of all files, only the one that has the header is compiled again.
        done = make(directory, include_directory(abi))
        assert (done.returncode, done.stderr) == (0, "")
        made[abi] = program(directory).rename(directory / abi)
    return made


@pytest.fixture(scope="session")
def checks() -> list[Check]:
    """The table of checks."""
    return read_checks()
