"""The requests of whole programs inside (rows 30 to 33): how many of each kind, and the instructions of each.

The daemon runs under the counter (`bench.counted_daemon`), the programs outside of it. Everything has one processor: so
nobody polls, and all requests go by the socket. A program is started twice, and the second start is counted.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.counted_daemon import ALL, COUNT
from bench.counting import counter_command, find_totals
from bench.inside import Program, programs, started
from bench.machine import ONE_CPU, Daemon, compiled, placed

RAM = "2G"
PROGRAMS = range(30, 34)


class Kind(NamedTuple):
    """Requests of one kind: how many, and their instructions in all."""

    number: int
    instructions: int


class Requests(NamedTuple):
    """The requests of a program's start, by kinds, and what the whole daemon has taken for it."""

    measured: str
    kinds: dict[str, Kind]
    whole: int


def count_programs(counter: str) -> Iterator[Requests]:
    """Yield the counts of each program that this machine has. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as directory, placed(ONE_CPU):
        starter = compiled("inside", directory)
        for program in programs(directory):
            if program.number in PROGRAMS:
                pieces = _count(counter, starter, program, "")
                kinds: dict[str, list[int]] = collections.defaultdict(list)
                for name, instructions in pieces:
                    kinds[name].append(instructions)
                ((_, whole),) = _count(counter, starter, program, ALL)
                found = {name: Kind(len(each), sum(each)) for name, each in kinds.items()}
                yield Requests(program.measured, found, whole)


def _count(counter: str, starter: str, program: Program, what: str) -> list[tuple[str, int]]:
    """Return the pieces that a daemon under the counter has counted while the program was started the second time."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as directory:
        said = Path(directory, "said")
        before, name = counter_command(counter, directory)
        command = [*before, sys.executable, "-P", "-m", "bench.counted_daemon", what + name]
        with contextlib.ExitStack() as stack:
            stdout = stack.enter_context(said.open("wb"))
            daemon = stack.enter_context(contextlib.closing(Daemon(RAM, command=command, stdout=stdout)))
            inside = stack.enter_context(contextlib.closing(started(daemon, starter, *program.words)))
            process = stack.enter_context(daemon.attach())
            inside.measure("run", 1)
            process.syscall(COUNT)
            inside.measure("run", 1)
            process.syscall(COUNT)
        return list(find_totals(counter, Path(directory), said.read_text(encoding="utf-8")))
