"""`kerneld quiz`: the question shows what is to be seen, and the answer names the mistake."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.bugs.catalogue import BUGS
from kerneld.commands.conformance.quiz import choose
from tests.commands.conformance.kit_program import SECONDS
from tests.native.inside import why_not_here

SEED = "5"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path: in another the quiz has no room for its socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


WORDS = (sys.executable, "-P", "-m", "kerneld", "quiz", "--questions", "1", "--seed", SEED)


def play(place: Path, answer: str | None) -> subprocess.CompletedProcess[str]:
    """Play one question, always the same, and give an answer, or none."""
    return subprocess.run(
        WORDS,
        input="" if answer is None else f"{answer}\n",
        env={**os.environ, "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.skipif(why_not_here() != "", reason=f"no program runs inside: {why_not_here()}")
@pytest.mark.skipif(os.geteuid() != 0, reason="some mistakes are only seen by root")
def test_one_of_four_answers_is_right_and_the_kernel_ends_with_the_quiz(place: Path) -> None:
    first = play(place, "1")
    question, _, told = first.stdout.partition("Which mistake is it")
    # The inspector has looked, and a check.
    assert re.search(r"^ +target \| +1\. ", question, re.MULTILINE)
    assert re.search(r"^inspector \| \d\d:\d\d:\d\d\.\d{3}  pid \d+", question, re.MULTILINE)
    assert "did:" in question
    assert "saw:" in question
    # The command to look with one's own eyes works while the question is open: it names this kernel.
    assert re.search(rf"KERNELD_SOCKET={place}/\S+ \S*target --wait$", question, re.MULTILINE)
    assert not any(f"{name}." in question for name in BUGS)
    (name,) = (name for name in BUGS if f": {name}. " in told)
    choices = re.findall(r"^  ([1-4])\. (.*)\.$", question, re.MULTILINE)
    assert [number for number, _words in choices] == ["1", "2", "3", "4"]
    (right,) = (number for number, words in choices if BUGS[name].words.startswith(words))

    second = play(place, right if right != "1" else "2")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    endings = [one.stdout.splitlines()[-1] for one in (first, second)]
    assert endings == [f"{number} of 1 are right." for number in ((0, 1) if right != "1" else (1, 0))]
    assert list(place.iterdir()) == []


@pytest.mark.skipif(why_not_here() != "", reason=f"no program runs inside: {why_not_here()}")
@pytest.mark.skipif(os.geteuid() != 0, reason="some mistakes are only seen by root")
def test_the_end_of_the_input_ends_the_quiz_in_words(place: Path) -> None:
    done = play(place, None)
    assert (done.returncode, done.stderr) == (1, "kerneld: the quiz has ended without an answer\n")
    assert list(place.iterdir()) == []


def test_no_other_choice_is_found_by_the_check_that_is_shown() -> None:
    chance = random.Random(1)
    for name, bug in BUGS.items():
        choices = choose(name, chance)
        assert len(set(choices)) == 4
        assert name in choices
        assert all(bug.checks[0] not in BUGS[choice].checks for choice in choices if choice != name)


@pytest.mark.skipif(why_not_here() != "", reason=f"no program runs inside: {why_not_here()}")
@pytest.mark.skipif(os.geteuid() != 0, reason="some mistakes are only seen by root")
def test_ctrl_c_at_the_prompt_ends_the_kernel_too(place: Path) -> None:
    quiz = subprocess.Popen(
        WORDS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(place)}, start_new_session=True,
    )  # fmt: skip
    with quiz:
        assert quiz.stdout is not None
        seen = b""
        while b"Which mistake is it" not in seen:
            piece = os.read(quiz.stdout.fileno(), 4096)
            assert piece, seen
            seen += piece
        assert kernels_in(place) != []
        quiz.send_signal(signal.SIGINT)
        _out, err = quiz.communicate(timeout=SECONDS)
        assert quiz.returncode == -signal.SIGINT
        assert err == b"kerneld: ended by SIGINT\n"
    assert kernels_in(place) == []
    assert list(place.iterdir()) == []


def kernels_in(place: Path) -> list[int]:
    """The processes of kerneld whose socket is below a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(place) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found
