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
        command = [sys.executable, "-P", "-m", "bench.handlers"]
        if counter == "callgrind":
            library = compiled("callgrind", directory, "-shared", "-fPIC")
            out = f"--callgrind-out-file={directory}/out"
            command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", out, *command, library]
        else:
            command.append(counter)
        environment = os.environ | {"PYTHONPATH": f"{directory}:{tree}", "PYTHONHASHSEED": "0"}
        # It runs in the directory, where no __pycache__ and no package of the same name is.
        done = subprocess.run(
            ["setarch", "-R", *command, str(times), *calls],
            env=environment, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise OSError(f"the calls could not be counted in {tree}:\n{done.stdout}")
        totals = read_dumps(Path(directory)) if counter == "callgrind" else read_lines(done.stdout)
    return Counted(machine(), counter, {call: total // times for call, total in totals.items()})


def read_dumps(directory: Path) -> Counts:
    """Return the totals of the files that callgrind has written, by the names that the program gave them."""
    totals = {}
    for path in sorted(directory.glob("out.*")):
        text = path.read_text(encoding="utf-8")
        name, total = _TRIGGER.search(text), _TOTALS.search(text)
        if name is not None and total is not None:
            totals[name[1]] = int(total[1])
    return totals


def read_lines(text: str) -> Counts:
    """Return the figures of lines that are a name and a number."""
    words = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def stored(path: Path = STORED) -> Counted:
    """Return the counts that a file keeps. Raises OSError."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Counted(kept["machine"], kept["counter"], kept["calls"])


def store(counted: Counted, path: Path = STORED) -> None:
    """Write counts to a file, the calls in the order of their names. Raises OSError."""
    kept = {**counted._asdict(), "calls": dict(sorted(counted.calls.items()))}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Count the working tree, print the counts and keep them."""
    try:
        counted = count(ROOT, find_counter())
    except OSError as error:
        sys.exit(f"bench: {error}")
    for call, instructions in sorted(counted.calls.items()):
        print(f"{call:<10} {instructions:>12,}")
    store(counted)
    print(f"written to {STORED}")


if __name__ == "__main__":
    with ending_by_signals("bench"):
        main()
