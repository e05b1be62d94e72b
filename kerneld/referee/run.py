"""A run of the referee: many programs, the first divergence shrunk and saved.

Owns the order of things; prints nothing itself: lines for people go to the function that it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kerneld.referee.describe import describe_divergence
from kerneld.referee.match import Divergence, Match, open_match
from kerneld.referee.mode import Mode
from kerneld.referee.program import Program, from_json, to_json
from kerneld.referee.programs import make_program
from kerneld.referee.shrink import shrink

CHECKED_SHARE = 20
"""One program in so many is run again with every invariant of the machine checked after every call."""
SECONDS_BETWEEN = 60
"""So often a line says how far a run has come."""
Say = Callable[[str], None]


class Result(NamedTuple):
    """How a run ended."""

    programs: int
    """Programs that were run, the last one possibly with a divergence."""
    saved: Path | None
    """The file of the shortest program that diverges; None where none did."""


def run(programs: int, seed: str, nr_ops: int, folder: Path, say: Say, mode: Mode = Mode.PLAIN) -> Result:
    """Run programs of a seed up to the first divergence, which is shrunk, described and saved in `folder`.

    Raises HostError where this host cannot be the referee.
    """
    started = told = time.monotonic()
    prefix = "referee" if mode is Mode.PLAIN else f"referee-{mode}"
    with open_match(mode) as match:
        say(match.describe())
        for number in range(programs):
            name = f"{seed}-{number}"
            match.ours.check_invariants(number % CHECKED_SHARE == 0)
            program = make_program(mode, name, nr_ops)
            divergence = match.play(program)
            if divergence is not None:
                match.ours.check_invariants(False)
                say(f"program {name} diverges at its call {divergence.step}; looking for the shortest that does")
                return Result(number + 1, _report(match, program, divergence, folder / f"{prefix}-{name}.json", say))
            if time.monotonic() - told >= SECONDS_BETWEEN:
                told = time.monotonic()
                say(f"{number + 1} programs, {told - started:.0f} s")
    return Result(programs, None)


def replay(file: Path, say: Say, mode: Mode = Mode.PLAIN) -> bool:
    """Run the program of a file; returns whether the two sides agree.

    Raises HostError, OSError where the file cannot be read, ValueError where it holds no program.
    """
    program = from_json(file.read_text())
    with open_match(mode, check_invariants=True) as match:
        say(match.describe())
        divergence = match.play(program)
        if divergence is not None:
            for line in describe_divergence(program, divergence):
                say(line)
    return divergence is None


def _report(match: Match, program: Program, divergence: Divergence, file: Path, say: Say) -> Path:
    kind = divergence.kind(program)

    def diverges(candidate: Program) -> bool:
        found = match.play(candidate)
        return found is not None and found.kind(candidate) == kind

    program = shrink(program[: divergence.step + 1], diverges)
    shortest = match.play(program)
    for line in describe_divergence(program, shortest if shortest is not None else divergence):
        say(line)
    file.write_text(to_json(program))
    return file
