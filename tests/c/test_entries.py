"""Programs of the assignment: what memory their table may lie in, what becomes of it, and who may call at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.c.run_programs import run
from tests.support.compiler import ROOT, build, include_directory
from tests.support.rights import needs_another_user

Check = Callable[..., tuple[int, str]]


@pytest.fixture(params=["f24", "f25"])
def check(request: pytest.FixtureRequest, tmp_path: Path, unchecked_daemon: tuple[Path, int], cache: Path) -> Check:
    """Run entries_check.c with these words; return its status and what it says."""
    abi = request.param
    source = ROOT / "tests" / "c" / "entries_check.c"
    program = build(tmp_path / "entries_check", [source], "-std=gnu11", f"-I{include_directory(abi)}")
    return lambda *words: run(unchecked_daemon[0], cache, program, *words, abi=abi)


def test_what_the_memory_may_be_and_what_becomes_of_it(check: Check) -> None:
    assert check() == (0, "")


@needs_another_user
def test_it_is_the_effective_user_that_counts(check: Check) -> None:
    assert check("dropped") == (0, "")


@needs_another_user
def test_who_may_not_even_connect_may_not_call(check: Check, unchecked_daemon: tuple[Path, int]) -> None:
    path, _pid = unchecked_daemon
    assert check("refused") == (0, f"kerneld: not permitted to use the kerneld at {path}\n")
    path.chmod(0o600)
