"""A run of the referee: runs many programs, and shrinks and saves the first divergence.

Owns the order of the steps. Prints nothing itself: it passes lines for people to a function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kerneld.referee.describe import describe_difference, describe_divergence, describe_op
from kerneld.referee.match import Divergence, Match, open_match
from kerneld.referee.mode import Mode
from kerneld.referee.program import Program, from_json, to_json
from kerneld.referee.programs import make_program
from kerneld.referee.shrink import shrink

CHECKED_SHARE, CHECKED_SHARE_OF_MANY = 21, 201
"""One program in this number runs with a check of all invariants after every call, which takes long with hundreds of
mappings. The numbers are odd: every second of these programs has small sizes."""
SMALL_SHARE = 2
"""One program in this number runs with small sizes of kerneld's inner structures."""
SECONDS_BETWEEN = 60
"""The time between two lines with the progress of a run."""
Say = Callable[[str], None]


class Result(NamedTuple):
    """The result of a run."""

    programs: int
    """The number of programs that ran. The last one may have a divergence."""
    saved: Path | None
    """The file of the shortest program with the divergence; None without a divergence."""


def run(
    programs: int,
    seed: str,
    nr_ops: int,
    folder: Path,
    say: Say,
    mode: Mode = Mode.PLAIN,
    host_command: str | None = None,
    *,
    first: int = 0,
    inside: bool = False,
    counts: bool = False,
) -> Result:
    """Run programs of a seed up to the first divergence. Shrink and describe it, and save its program in `folder`.

    `first` is the number of the first program, so that a run goes on where an earlier one was ended.
    `host_command`, `inside`, `counts`: see `open_match`. Raises HostError if the host cannot be the referee.
    """
    started = told = time.monotonic()
    share = CHECKED_SHARE_OF_MANY if mode is Mode.MANY else CHECKED_SHARE
    prefix = "referee" if mode is Mode.PLAIN else f"referee-{mode}"
    with open_match(mode, host_command=host_command, inside=inside, counts=counts) as match:
        say(match.describe())
        names = (f"{seed}-{number}" for number in range(first, first + programs))
        made = ((name, make_program(mode, name, nr_ops)) for name in names)
        for number, (name, program) in enumerate(_expected(match, made), first):
            match.ours.check_invariants(number % share == 0)
            small = number % SMALL_SHARE == 1
            divergence = match.play(program, small=small)
            if divergence is not None:
                match.ours.check_invariants(False)
                file = folder / f"{prefix}-{name}.json"
                return Result(number + 1 - first, _report(match, name, program, divergence, file, say, small=small))
            if time.monotonic() - told >= SECONDS_BETWEEN:
                told = time.monotonic()
                say(f"{number + 1 - first} programs, {told - started:.0f} s")
    return Result(programs, None)


def replay(
    file: Path,
    say: Say,
    mode: Mode = Mode.PLAIN,
    host_command: str | None = None,
    *,
    inside: bool = False,
    counts: bool = False,
) -> bool:
    """Run the program of a file, with the usual and with small sizes. Return whether the two sides agree.

    Raises HostError, OSError if the file cannot be read, and ValueError if it has no program.
    """
    program = from_json(file.read_text())
    with open_match(mode, check_invariants=True, host_command=host_command, inside=inside, counts=counts) as match:
        say(match.describe())
        for small in (False, True):
            divergence = match.play(program, small=small)
            if divergence is not None:
                for line in [*_with_small_sizes(small), *describe_divergence(program, divergence)]:
                    say(line)
                return False
    return True


def _with_small_sizes(small: bool) -> list[str]:
    return ["kerneld's inner structures have small sizes"] if small else []


def _expected(match: Match, programs: Iterator[tuple[str, Program]]) -> Iterator[tuple[str, Program]]:
    """Yield programs with their names. The host is told of each one before that one's predecessor is yielded."""
    waiting: tuple[str, Program] | None = None
    for named in programs:
        match.expect(named[1])
        if waiting is not None:
            yield waiting
        waiting = named
    if waiting is not None:
        yield waiting


def _report(
    match: Match, name: str, program: Program, divergence: Divergence, file: Path, say: Say, *, small: bool
) -> Path:
    """Tell of a divergence, shrink its program, and save it. The search takes long, so both come first as they are."""
    program = program[: divergence.step + 1]
    file.write_text(to_json(program))
    say(f"program {name} diverges at its call {divergence.step}: {describe_op(program[-1])}")
    for line in [*_with_small_sizes(small), *describe_difference(divergence)]:
        say(line)
    say(f"saved as {file}; looking for the shortest that diverges")
    kind = divergence.kind(program)

    def diverges(candidate: Program) -> bool:
        found = match.play(candidate, small=small)
        return found is not None and found.kind(candidate) == kind

    program = shrink(program, diverges)
    shortest = match.play(program, small=small)
    for line in describe_divergence(program, shortest if shortest is not None else divergence):
        say(line)
    file.write_text(to_json(program))
    return file
