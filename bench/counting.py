"""The instructions of each small call's handler, counted in a run of `bench.handlers`, and the file that keeps them.

By the processor's counter where it has one for this user (`perf stat -e instructions:u`), else by valgrind's callgrind,
which takes a minute. Counts repeat where times do not: strings hash to the same numbers, addresses are not random, and
the garbage collector is off.

    python -m bench.counting        count the working tree, and write bench/results/instructions.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.machine import ROOT, compiled
from bench.meters import PerfCounter
from bench.report import RESULTS, machine
from shared.interrupts import ending_by_signals

TIMES = 20
STORED = RESULTS / "instructions.json"
_TRIGGER = re.compile(r"^desc: Trigger: Client Request: (\w+)$", re.MULTILINE)
_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)

Counts = dict[str, int]


class Counted(NamedTuple):
    """The instructions of one call of each kind, and by what they were counted on which machine."""

    machine: str
    counter: str
    calls: Counts


def find_counter() -> str:
    """Return `perf` or `callgrind`. Raises OSError where there is neither."""
    try:
        os.close(PerfCounter().fd)
    except OSError:
        if shutil.which("valgrind") is None:
            raise OSError("the processor's counter is not to be had, and valgrind is not installed") from None
        return "callgrind"
    return "perf"


def count(tree: Path, counter: str, calls: tuple[str, ...] = (), times: int = TIMES) -> Counted:
    """Count the calls, all where none is named, of the kerneld in the directory `tree`, by the handlers of this tree.

    Raises OSError, with what the program has printed, where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as directory:
        # This tree's bench is found before the other's, and the other's kerneld before this one's.
        (Path(directory) / "bench").symlink_to(ROOT / "bench")
        said = run_counted(counter, directory, f"{directory}:{tree}", "bench.handlers", str(times), *calls)
        totals = dict(find_totals(counter, Path(directory), said))
    return Counted(machine(), counter, {call: total // times for call, total in totals.items()})


def counter_command(counter: str, directory: str) -> tuple[list[str], str]:
    """Return the words that come before a program that is to be counted, and the counter's name for `bench.meters`."""
    # Strings hash to the same numbers, and addresses are not random.
    words = ["env", "PYTHONHASHSEED=0", "setarch", "-R"]
    if counter != "callgrind":
        return words, counter
    out = f"--callgrind-out-file={directory}/out"
    library = compiled("callgrind", directory, "-shared", "-fPIC")
    return [*words, "valgrind", "-q", "-q", "--tool=callgrind", "--instr-atstart=no", out], library


def run_counted(counter: str, directory: str, path: str, module: str, *words: str) -> str:
    """Run a module of the benchmark's, whose first argument is a counter, and return what it has printed.

    It finds modules in the directories of `path`. Raises OSError, with what it has printed, where it fails.
    """
    before, name = counter_command(counter, directory)
    # It runs in the directory, where no __pycache__ and no package of the same name is.
    done = subprocess.run(
        [*before, sys.executable, "-P", "-m", module, name, *words],
        env=os.environ | {"PYTHONPATH": path},
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise OSError(f"{module} could not be counted in {path}:\n{done.stdout}")
    return done.stdout


def find_totals(counter: str, directory: Path, said: str) -> Iterator[tuple[str, int]]:
    """Yield the names and the totals of the pieces that a program has counted: from callgrind's files, or its lines."""
    return read_dumps(directory) if counter == "callgrind" else read_lines(said)


def read_dumps(directory: Path) -> Iterator[tuple[str, int]]:
    """Yield the totals of the files that callgrind has written, with the names that the program gave them."""
    for path in directory.glob("out.*"):
        text = path.read_text(encoding="utf-8")
        name, total = _TRIGGER.search(text), _TOTALS.search(text)
        if name is not None and total is not None:
            yield name[1], int(total[1])


def read_lines(text: str) -> Iterator[tuple[str, int]]:
    """Yield the figures of lines that are a name and a number."""
    for words in (line.split() for line in text.splitlines()):
        if len(words) == 2 and words[1].isdigit():
            yield words[0], int(words[1])


def stored(path: Path = STORED) -> Counted:
    """Return the counts that a file keeps. Raises OSError."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Counted(kept["machine"], kept["counter"], kept["calls"])


def store(counted: Counted, path: Path = STORED) -> None:
    """Write counts to a file, the calls in the order of their names. Raises OSError."""
    kept = {**counted._asdict(), "calls": dict(sorted(counted.calls.items()))}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Count the working tree, print the counts and keep them; with --parts also where they go (`bench.parts`)."""
    if arguments not in ([], ["--parts"]):
        sys.exit("bench: only --parts can be asked for: make bench-count ARGS=--parts")
    try:
        counted = count(ROOT, find_counter())
        for call, instructions in sorted(counted.calls.items()):
            print(f"{call:<10} {instructions:>12,}")
        store(counted)
        print(f"written to {STORED}", flush=True)
        if arguments:
            from bench import parts  # noqa: PLC0415  (it counts by the functions of this module)

            parts.write(counted)
            parts.show()
    except OSError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    with ending_by_signals("bench"):
        main(sys.argv[1:])
