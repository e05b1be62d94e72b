"""`kerneld quiz`: the question shows what is to be seen, and the answer names the mistake."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kerneld.bugs.catalogue import BUGS
from kerneld.commands.conformance.quiz import choose
from tests.commands.conformance.kit_program import SECONDS
from tests.native.inside import why_not_here

SEED = "5"


def play(tmp_path: Path, answer: str) -> subprocess.CompletedProcess[str]:
    """Play one question, always the same, and give an answer."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "kerneld", "quiz", "--questions", "1", "--seed", SEED],
        input=f"{answer}\n",
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.skipif(why_not_here() != "", reason=f"no program runs inside: {why_not_here()}")
@pytest.mark.skipif(os.geteuid() != 0, reason="some mistakes are only seen by root")
def test_one_of_four_answers_is_right_and_the_kernel_ends_with_the_quiz(tmp_path: Path) -> None:
    done = [play(tmp_path, answer) for answer in ("1", "2", "3", "4")]
    assert {one.returncode for one in done} == {0}, done[0].stderr
    assert sorted(one.stdout.splitlines()[-1] for one in done) == ["0 of 1 are right."] * 3 + ["1 of 1 are right."]
    for one in done:
        question, _, told = one.stdout.partition("Which mistake is it")
        assert "did:" in question
        assert "saw:" in question
        # The command to look with one's own eyes works while the question is open: it names this kernel.
        assert re.search(rf"KERNELD_SOCKET={tmp_path}/\S+ \S*target --wait$", question, re.MULTILINE)
        assert not any(f"{name}." in question for name in BUGS)
        assert any(f": {name}. " in told for name in BUGS)
    assert list(tmp_path.iterdir()) == []


def test_no_other_choice_is_found_by_the_check_that_is_shown() -> None:
    chance = random.Random(1)
    for name, bug in BUGS.items():
        choices = choose(name, chance)
        assert len(set(choices)) == 4
        assert name in choices
        assert all(bug.checks[0] not in BUGS[choice].checks for choice in choices if choice != name)
