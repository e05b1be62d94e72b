"""`kerneld quiz`: a kernel with one mistake that is not named; what the inspector and a check show; which is it?

Owns the private kernel, the questions and the words. The kernel ends with the quiz. Knows the mistakes by their words
only, and plants none: `kerneld start --bug` does that in another process.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from kerneld.bugs.catalogue import BUGS
from kerneld.commands.compiled import BuildError
from kerneld.commands.conformance.kit import ensure_kit
from kerneld.commands.failure import KerneldStatus
from shared.failure import Failure, Status
from shared.interrupts import ending_by_signals
from shared.launcher import find_program, socket_words
from shared.option_types import Whole
from shared.private_directory import private_directory

_CHOICES = 4
_SHOWN = ("#   did:", "#   expected:")
"""The lines of a failed check that do not name the mistake."""
_SCENES = (
    ("brk", "heap"), ("stack", "stack"), ("grows", "stack"), ("exec", "exec"), ("exit", "exit"), ("kill", "exit"),
    ("fork", "fork"), ("cow", "fork"), ("child", "fork"), ("file", "file-private"), ("huge", "huge"), ("vma_", "hole"),
)  # fmt: skip
"""Of a part of a check's name, the scenario of the target that has the same changes. The first counts."""
_USUAL_SCENE = "demand"
_SECONDS = 120.0

HELP = """Ask which mistake a kernel has. For lectures, and to prepare for the kernel part of the assignment.

Each question starts a private kernel with one mistake, which students make. The target plays a scenario on it: it says
what the table should show, and the inspector shows what is there. Then a check of the assignment says what it did and
saw. You choose between four mistakes. While a question is open, the kernel runs: the inspector and the target can look
at it from other terminals too.

\b
Examples:
  kerneld quiz                      three questions
  kerneld quiz --questions 10
  kerneld quiz --seed 7             the same questions again, for all students of a lecture

\b
Exit status:
  0  done, whatever the answers were        1  the kernel or the check does not start, or there was no answer
  8  no program can run inside kerneld here
"""


@click.command(name="quiz", short_help="Which mistake does this kernel have?", help=HELP)
@click.option("--questions", type=Whole(1, 100), default=3, show_default=True, help="The number of questions.")
@click.option("--seed", type=Whole(0, 1 << 31), help="Choose the questions by this number. [at random]")
def quiz(questions: int, seed: int | None) -> None:
    """Ask the questions, and count."""
    try:
        kit = ensure_kit()
    except BuildError as error:
        raise Failure(KerneldStatus.CANNOT_RUN, str(error)) from None
    chance = random.Random(seed)
    right = 0
    # Ctrl+C, also at the prompt: the kernel of the question ends first.
    with ending_by_signals("kerneld"):
        for number, name in enumerate(chance.sample(sorted(BUGS), min(questions, len(BUGS))), 1):
            click.echo(f"Question {number} of {questions}")
            right += ask(name, kit, chance)
    click.echo(f"{right} of {questions} are right.")


def ask(name: str, kit: Path, chance: random.Random) -> bool:
    """Show what is to be seen on the kernel with the mistake `name`, and return whether the answer is right."""
    with broken_kernel(name) as socket:
        show_inspector(BUGS[name].checks[0], socket)
        click.echo("A check of the assignment:")
        for line in look(kit, BUGS[name].checks[0], socket):
            click.echo(f"  {line}")
        click.echo("  To look yourself, run this in another terminal. It prints the inspector's command:")
        click.echo("    " + " ".join([*socket_words(socket), *map(shlex.quote, find_program("target")), "--wait"]))
        choices = choose(name, chance)
        for number, choice in enumerate(choices, 1):
            click.echo(f"  {number}. {BUGS[choice].words.split(': ')[0].rstrip('.')}.")
        try:
            answer = click.prompt("Which mistake is it", type=Whole(1, len(choices)))
        except click.Abort:
            # The end of the input.
            click.echo()
            raise Failure(Status.FAILED, "the quiz has ended without an answer") from None
    is_right = choices[answer - 1] == name
    click.echo(f"{'Right' if is_right else 'No'}: {name}. {BUGS[name].words}\n")
    return is_right


def show_inspector(check: str, socket: str) -> None:
    """Show the target and the inspector on the kernel, in a scenario that is near to a check.

    Either may fail there: then its last words are shown, and belong to the question.
    """
    scenario = next((scene for part, scene in _SCENES if part in check), _USUAL_SCENE)
    sys.stdout.flush()
    environment = {**os.environ, "KERNELD_SOCKET": socket}
    words = [sys.executable, "-P", "-m", "target.scene", scenario]
    subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, check=False)


def choose(name: str, chance: random.Random) -> list[str]:
    """Return mistakes to choose from, in any order: the true one, and others that the same check does not find."""
    seen_by = BUGS[name].checks[0]
    others = [other for other, bug in BUGS.items() if other != name and seen_by not in bug.checks]
    kin = [other for other in others if other.partition("-")[0] == name.partition("-")[0]]
    wrong = chance.sample(kin, min(len(kin), _CHOICES - 1))
    rest = [other for other in others if other not in wrong]
    wrong += chance.sample(rest, _CHOICES - 1 - len(wrong))
    choices = [name, *wrong]
    chance.shuffle(choices)
    return choices


@contextmanager
def broken_kernel(name: str) -> Iterator[str]:
    """Run a private kernel with the mistake `name`, and yield its socket. Raises Failure."""
    with private_directory("kerneld-quiz-") as directory:
        socket = os.path.join(directory, "kerneld.sock")
        words = ["--socket", socket, "--ram", "512M", "--log-format", "json", "--bug", name]
        try:
            # In the background: then its log is a file, and no pipe that fills.
            started = _run("start", "--detach", *words)
            if started.returncode:
                raise Failure(Status.FAILED, f"the kernel does not start: {started.stderr.strip()}")
            yield socket
        finally:
            _run("stop", "--socket", socket)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of kerneld to its end. Raises TimeoutExpired."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "kerneld", *words], capture_output=True, text=True, timeout=_SECONDS, check=False
    )


def look(kit: Path, check: str, socket: str) -> Sequence[str]:
    """Run a check inside the kernel, and return the lines that tell what it did and saw. Raises Failure."""
    try:
        done = _run("exec", "--socket", socket, "--", str(kit), "--only", check, "--log", os.devnull)
    except subprocess.TimeoutExpired:
        raise Failure(Status.FAILED, f"the check {check} does not end") from None
    if done.returncode == KerneldStatus.CANNOT_RUN:
        raise Failure(KerneldStatus.CANNOT_RUN, done.stderr.strip() or "no program runs inside kerneld here")
    lines = [line.removeprefix("#").strip() for line in done.stdout.splitlines() if line.startswith(_SHOWN)]
    if not lines:
        raise Failure(Status.FAILED, f"the check {check} shows nothing: {done.stdout.strip() or done.stderr.strip()}")
    return lines
