"""Rows 27 to 35: programs inside kerneld (`kerneld exec`), beside the same outside.

Calls, refills and faults are made by C programs that answer commands, one inside and one outside. A whole program is
started by such a program, which is inside or outside already: what is measured is what a shell there sees.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.machine import ROOT, Answering, Daemon, compiled
from bench.sample import Mark, Row, interleave
from bench.small_calls import run_ns, start_uml

PLACEMENT = "unpinned"
ROUNDS = 21
CALLS = 2000
PAGES = 200
IDLE_SECONDS = 1.0
SQLITE = (
    "create table t(a integer primary key, b text); begin; "
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000) "
    "insert into t select i, hex(i * 2654435761 % 4294967296) from n; commit; "
    "select count(*) from (select b from t order by b limit 100000);"
)


class Program(NamedTuple):
    """A whole program: its row, what it does, its words, and what its time outside is to be multiplied with at most."""

    number: int
    measured: str
    words: list[str]
    bound: float
    rounds: int = 11


def rows(daemon: Daemon, wanted: set[int]) -> Iterator[Row]:
    """Yield the wanted rows. A program that this machine lacks is left out, with a line that says so."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kerneld-bench-"))
        program = compiled("inside", directory)
        small = compiled("small", directory, "-static")
        if wanted & {27, 28}:
            yield from _calls_and_refills(daemon, program)
        if 29 in wanted:
            yield from _first_writes(daemon, small)
        for case in programs(directory):
            if case.number in wanted:
                yield _whole(daemon, program, case)
        if 35 in wanted:
            yield _idle(daemon, program)


def started(daemon: Daemon, *words: str) -> Answering:
    """Start a program inside."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return Answering(
        [str(ROOT / "bin" / "kerneld"), "exec", "--socket", daemon.socket_path, "--", *words],
        env=environment,
    )


@contextlib.contextmanager
def _both(daemon: Daemon, *words: str) -> Iterator[tuple[Answering, Answering]]:
    """Run a program inside and outside."""
    with (
        contextlib.closing(started(daemon, *words)) as inside,
        contextlib.closing(Answering(list(words))) as outside,
    ):
        yield inside, outside


def _calls_and_refills(daemon: Daemon, program: str) -> Iterator[Row]:
    with _both(daemon, program) as (inside, outside):
        added = Row(
            27, "a call that goes on to the host: what it takes more than outside", "none", PLACEMENT, "ns", Mark(3000)
        )
        for _ in range(ROUNDS):
            added.ours.append((inside.measure("call", CALLS) - outside.measure("call", CALLS)) / CALLS)
        yield added
        for what, command in (("alone", "refill"), ("in a run", "run_of")):

            def ours(command: str = command) -> float:
                return inside.measure(command, PAGES) / PAGES

            beside = "SIGSEGV handler and mmap, C"
            refill = Row(28, f"refill of a page in the page table, {what}", beside, PLACEMENT, "ns", Mark(2))
            yield interleave(refill, ROUNDS, ours, lambda: outside.measure("handler", PAGES) / PAGES)


def _first_writes(daemon: Daemon, small: str) -> Iterator[Row]:
    with _both(daemon, small) as (inside, outside):

        def ours() -> float:
            return inside.measure("write", PAGES) / PAGES

        beside = Row(29, "first write to a fresh page", "host, C", PLACEMENT, "ns", None)
        yield interleave(beside, ROUNDS, ours, lambda: outside.measure("write", PAGES) / PAGES)
        uml = start_uml(small)
        if uml is not None:
            with contextlib.closing(uml):
                beside = Row(29, "first write to a fresh page", "User-Mode Linux", PLACEMENT, "ns", Mark(0.15))
                yield interleave(beside, ROUNDS, ours, lambda: uml.measure("write", PAGES) / PAGES)


def programs(directory: str) -> Iterator[Program]:
    source = Path(directory, "small.c")
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    found = _find("python3"), _find("gcc"), _find("git"), _find("sqlite3")
    python, gcc, git, sqlite = found
    if python:
        yield Program(30, "python3 -c pass", [python, "-I", "-c", "pass"], 3)
    if gcc:
        yield Program(31, "gcc of a small C file", [gcc, "-c", "-o", f"{directory}/small.o", str(source)], 3)
    if git and (ROOT / ".git").exists():
        yield Program(
            32, "git status of the repository", [git, "-C", str(ROOT), "--no-optional-locks", "status", "--short"], 2
        )
    if sqlite:
        yield Program(33, "sqlite3: 100,000 inserts and a sort", [sqlite, ":memory:", SQLITE], 1.3, 5)
    if python:
        loop = "total = 0\nfor i in range(20_000_000): total += i * i & 7"
        yield Program(34, "python3: a numeric loop", [python, "-I", "-c", loop], 1.05, 5)


def _find(name: str) -> str | None:
    path = shutil.which(name, path="/usr/bin:/bin:/usr/local/bin")
    if path is None:
        print(f"bench: no row for {name}: this machine has none", file=sys.stderr)
    return path


def _whole(daemon: Daemon, program: str, case: Program) -> Row:
    with _both(daemon, program, *case.words) as (inside, outside):
        row = Row(case.number, case.measured, "outside", PLACEMENT, "ns", Mark(case.bound))
        return interleave(row, case.rounds, lambda: inside.measure("run", 1), lambda: outside.measure("run", 1))


def _idle(daemon: Daemon, program: str) -> Row:
    """Return the processor time of an idle program inside, of its agent and of the daemon, in a second."""
    row = Row(35, "an idle program: it, its agent and kerneld, in a second", "none", PLACEMENT, "ns", Mark(0))
    with contextlib.closing(started(daemon, program)) as inside:
        inside.measure("call", 1)
        children = Path(f"/proc/{inside.pid}/task/{inside.pid}/children").read_text(encoding="ascii").split()
        pids = (inside.pid, daemon.pid, *map(int, children))
        time.sleep(IDLE_SECONDS)
        for _ in range(3):
            before = sum(map(run_ns, pids))
            time.sleep(IDLE_SECONDS)
            row.ours.append(sum(map(run_ns, pids)) - before)
    return row
