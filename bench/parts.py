"""Where the instructions of a call go: `make bench-count ARGS=--parts`, which writes bench/results/parts.json.

`python -m bench.parts` prints what has been counted.

Three tables. A round trip by its parts, by the socket and by the ring (`bench.one_house`); the handler of each small
call by kerneld's functions, in instructions of the interpreter (`bench.handlers functions`); and the requests of whole
programs by their kinds (`bench.counted_programs`). Beside the missed marks of the last `make bench`: the time that the
mark allows, and the time of a bare echo in that run.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.counted_programs import Kind, Requests, count_programs
from bench.counting import TIMES, Counted, Counts, find_totals, run_counted
from bench.machine import ROOT
from bench.one_house import KINDS
from bench.report import RESULTS
from bench.small_calls import CASES
from shared.interrupts import ending_by_signals

STORED = RESULTS / "parts.json"
CALLS = (
    "pair",
    "mprotect",
    "brk",
    "mremap",
    "dontneed",
    "read",
    "write",
    "cow",
    "cached",
    "file",
    "swap",
    "fork",
    "execve",
)
REQUESTS = {1: 1, 2: 1, 3: 1, 28: 1, 29: 1} | {case.number: case.calls for case in CASES} | {26: 3}
"""How many requests one of a row is. A fork is three: clone, the child's attach and its exit."""
SHARE = 0.8
"""The functions of a call are kept that together run this share of its instructions."""
MOST_NAMES = 12
"""A row of the table names no more."""
SOCKET_PARTS = {
    "client's library": ("client", "pause"),
    "loop and epoll": ("turn", "serve"),
    "receive, with credentials": ("receive", "nothing"),
    "send": ("send", "nothing"),
    "decode, encode": ("answer", "dispatch"),
    "dispatch": ("dispatch", "handler"),
    "handler": ("handler", "nothing"),
}
"""The parts of a round trip: each is the difference of two levels of `bench.one_house`."""
RING_PARTS = {
    "client's library": ("ring_client", "nothing"),
    "loop, rings and epoll": ("ring_turn", "ring_serve"),
    "decode, encode": ("answer", "dispatch"),
    "dispatch": ("dispatch", "handler"),
    "handler": ("handler", "nothing"),
}


class Function(NamedTuple):
    """A function of a call: its file and name, the instructions of the interpreter, and its calls into C."""

    place: str
    opcodes: float
    calls: float


class Handler(NamedTuple):
    """A call: its instructions, those of the interpreter, its calls into C, and its dearest functions."""

    instructions: int
    opcodes: float
    calls: float
    most: list[Function]
    """The functions that together run `SHARE` of the interpreter's instructions, the dearest first."""
    others: int
    """How many functions run the rest."""


def levels_of(counter: str) -> Counts:
    """Count every level of every kind of round trip. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as directory:
        said = run_counted(counter, directory, str(ROOT), "bench.one_house", str(TIMES))
        return {name: total // TIMES for name, total in find_totals(counter, Path(directory), said)}


def round_trip(levels: Mapping[str, int], kind: str) -> dict[str, dict[str, int]]:
    """Return the parts of a round trip of this kind, by the way that it goes."""

    def between(level: str, without: str) -> int:
        return levels[f"{kind}_by_{level}"] - levels[f"{kind}_by_{without}"]

    def parts(ways: Mapping[str, tuple[str, str]], serve: str) -> dict[str, int]:
        found = {name: between(*levels) for name, levels in ways.items()}
        # What is between the receipt and the sending, and is neither: the choice of the way, and the end of a request.
        inner = sum(count for name, count in found.items() if not name.startswith(("client", "loop")))
        return found | {"service": between(serve, "nothing") - inner}

    return {
        "echo": {"both ends": between("echo", "nothing")},
        "socket": parts(SOCKET_PARTS, "serve"),
        "ring": parts(RING_PARTS, "ring_serve"),
    }


def functions_of(calls: tuple[str, ...] = CALLS, times: int = TIMES) -> dict[str, list[Function]]:
    """Return the functions of each call, the dearest first. They are the same each time. Raises OSError."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench.handlers", "functions", str(times), *calls],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise OSError(f"the functions could not be counted:\n{done.stderr}")
    found = {}
    for line in done.stdout.splitlines():
        name, _, functions = line.partition(" ")
        each = [Function(place, ran / times, c / times) for place, (ran, c) in json.loads(functions).items()]
        found[name] = sorted(each, key=lambda function: function.opcodes, reverse=True)
    return found


def handler_of(instructions: int, functions: list[Function]) -> Handler:
    """Return a call by its functions, given the dearest first."""
    opcodes, seen, most = sum(function.opcodes for function in functions), 0.0, []
    for function in functions:
        if seen >= SHARE * opcodes:
            break
        seen += function.opcodes
        most.append(function)
    calls = sum(function.calls for function in functions)
    return Handler(instructions, opcodes, calls, most, len(functions) - len(most))


class Missed(NamedTuple):
    """A mark that a row has missed. Times are in µs."""

    what: str
    ours: float
    allowed: float
    echoes: float | None
    """The bare echo's time on the same processors, for each of its requests; None for a whole program."""


def missed(rounds: list[dict[str, Any]]) -> Iterator[Missed]:
    """Yield the missed marks of a run that are a ratio to a time."""
    # The last one of a placement: all of them are the same echo.
    echo = {row["cpus"]: median(row["theirs"]) / 1000 for row in rounds if row["yardstick"].startswith("echo")}
    for row in rounds:
        if row["unit"] != "ns" or not row["theirs"] or not row["mark"].startswith("≤"):
            continue
        bound = float(row["mark"].removeprefix("≤"))
        if row["ratio"] > bound:
            what = f"{row['row']}: {row['measured']}, {row['cpus']}, beside {row['yardstick']}"
            ours, theirs = median(row["ours"]) / 1000, median(row["theirs"]) / 1000
            requests = REQUESTS.get(row["row"])
            yield Missed(what, ours, bound * theirs, requests and requests * echo[row["cpus"]])


def lines_of_round_trips(trips: Mapping[str, dict[str, dict[str, int]]]) -> Iterator[str]:
    """Yield a table: a row for each part, a column for each kind."""
    yield "| instructions of a round trip | " + " | ".join(trips) + " |"
    yield "|---|" + "---|" * len(trips)
    first = next(iter(trips.values()))
    for way, parts in first.items():
        for part in parts:
            yield f"| {way}: {part} | " + " | ".join(f"{trip[way][part]:,}" for trip in trips.values()) + " |"
        if len(parts) > 1:
            yield f"| {way}: in all | " + " | ".join(f"{sum(trip[way].values()):,}" for trip in trips.values()) + " |"


def lines_of_handlers(handlers: Mapping[str, Handler]) -> Iterator[str]:
    """Yield a table: the instructions of each call, and the functions that run most of the interpreter's."""
    yield "| call | instructions | opcodes | instructions for one | calls into C | where most opcodes are, per cent |"
    yield "|---|---|---|---|---|---|"
    for call, found in handlers.items():
        shown = [f"{_name(each.place)} {100 * each.opcodes / found.opcodes:.0f}" for each in found.most[:MOST_NAMES]]
        left = len(found.most) - len(shown)
        names = ", ".join(shown) + (f"; {left} more make 80" if left else "") + f"; {found.others} others"
        each = found.instructions / found.opcodes
        yield f"| {call} | {found.instructions:,} | {found.opcodes:,.0f} | {each:.0f} | {found.calls:.0f} | {names} |"


def _name(place: str) -> str:
    return place.rpartition(":")[2].rpartition(".")[2]


def lines_of_programs(programs: list[Requests]) -> Iterator[str]:
    """Yield a table: for each program the number of requests of each kind, the thousands of instructions of one, and
    the millions of all. Kinds that nowhere make a hundredth are one row."""
    yield "| requests | " + " | ".join(program.measured for program in programs) + " |"
    yield "|---|" + "---|" * len(programs)
    totals = [sum(kind.instructions for kind in program.kinds.values()) for program in programs]
    sums = collections.Counter[str]()
    large = set()
    for program, total in zip(programs, totals, strict=True):
        for name, kind in program.kinds.items():
            sums[name] += kind.instructions
            if kind.instructions >= total / 100:
                large.add(name)
    for name, _ in sums.most_common():
        if name in large:
            cells = (_cell([program.kinds[name]] if name in program.kinds else []) for program in programs)
            yield f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |"
    rest = (_cell([kind for name, kind in program.kinds.items() if name not in large]) for program in programs)
    yield "| all else | " + " | ".join(rest) + " |"
    yield "| all handlers | " + " | ".join(_cell(list(program.kinds.values())) for program in programs) + " |"
    yield "| the whole daemon | " + " | ".join(f"{program.whole / 1e6:.1f}" for program in programs) + " |"


def _cell(kinds: list[Kind]) -> str:
    number, instructions = sum(kind.number for kind in kinds), sum(kind.instructions for kind in kinds)
    return f"{number} · {instructions / number / 1000:,.0f} · {instructions / 1e6:.1f}" if number else "–"


def lines_of_missed(marks: list[Missed]) -> Iterator[str]:
    """Yield a table of the missed marks."""
    yield "| row | measured, µs | the mark allows | bare echoes of its requests |"
    yield "|---|---|---|---|"
    for what, ours, allowed, echoes in marks:
        yield f"| {what} | {ours:,.1f} | {allowed:,.1f} | {'–' if echoes is None else f'{echoes:.1f}'} |"


def write(counted: Counted) -> None:
    """Count where the instructions go, and keep it. Raises OSError."""
    levels, functions = levels_of(counted.counter), functions_of()
    kept = {
        "machine": counted.machine,
        "counter": counted.counter,
        "round_trips": {kind: round_trip(levels, kind) for kind in KINDS},
        "handlers": {call: handler_of(counted.calls[call], found)._asdict() for call, found in functions.items()},
        "programs": [program._asdict() for program in count_programs(counted.counter)],
        "missed": list(missed(json.loads((RESULTS / "latest.json").read_text(encoding="utf-8")))),
    }
    STORED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def show() -> None:
    """Print the tables of what has been counted. Raises OSError where nothing has."""
    kept = json.loads(STORED.read_text(encoding="utf-8"))
    handlers = {
        call: Handler(**found | {"most": list(itertools.starmap(Function, found["most"]))})
        for call, found in kept["handlers"].items()
    }
    programs = [
        Requests(found["measured"], {name: Kind(*kind) for name, kind in found["kinds"].items()}, found["whole"])
        for found in kept["programs"]
    ]
    print(*lines_of_round_trips(kept["round_trips"]), "", sep="\n")
    print(*lines_of_handlers(handlers), "", sep="\n")
    print(*lines_of_programs(programs), "", sep="\n")
    print(*lines_of_missed(list(itertools.starmap(Missed, kept["missed"]))), "", sep="\n")
    print(f"kept in {STORED}")


if __name__ == "__main__":
    with ending_by_signals("bench"):
        show()
