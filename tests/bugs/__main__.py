"""`make bugs`: every check on every kernel with a mistake, and many times on the right kernel under load.

Prints a line for each mistake: the checks that it failed. Ends with status 1 if a mistake is not found by the checks
that the catalogue names, or if a check fails on the right kernel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kerneld.bugs.catalogue import BUGS
from kerneld.commands.conformance.kit import ensure_kit
from tests.bugs.bug_kernel import run_on_bug

_OPENS = ("--opens", "2000", "--limit", "60")
_SPIN = "while True: pass"


def try_bug(name: str) -> bool:
    """Run all checks on one kernel, print what failed, and return whether the catalogue's checks are among it."""
    with tempfile.TemporaryDirectory(prefix="bug-") as directory:
        try:
            run = run_on_bug(ensure_kit(), Path(directory), name, options=(*_OPENS, "--patience", "300"))
        except subprocess.TimeoutExpired as error:
            print(f"NO END of the checks on {name}: {error.stdout!r}", flush=True)
            return False
    missing = set(BUGS[name].checks) - run.failed
    print(f"{'MISSED' if missing else 'found':7}{name}: {' '.join(sorted(run.failed))}", flush=True)
    return not missing


def try_right_kernel(run_number: int) -> bool:
    """Run all checks on the right kernel, and return whether none failed."""
    with tempfile.TemporaryDirectory(prefix="right-") as directory:
        try:
            run = run_on_bug(ensure_kit(), Path(directory), None, options=_OPENS)
        except subprocess.TimeoutExpired as error:
            print(f"NO END of run {run_number}: {error.stdout!r}", flush=True)
            return False
    is_right = bool(run.passed) and not run.failed
    how = "right" if is_right else f"FALSE ALARM: {' '.join(sorted(run.failed))}\n{run.output}"
    print(f"run {run_number}: {how}", flush=True)
    return is_right


def main() -> int:
    """Run what the options ask for."""
    options = argparse.ArgumentParser(prog="make bugs", description=__doc__)
    options.add_argument("--right-runs", type=int, default=0, help="runs on the right kernel instead of the mistakes")
    options.add_argument("--load", type=int, default=0, help="processes that keep the processors busy meanwhile")
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("names", nargs="*", help="these mistakes alone")
    given = options.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(given.load)]
    try:
        with ThreadPoolExecutor(given.jobs) as pool:
            if given.right_runs:
                results = list(pool.map(try_right_kernel, range(given.right_runs)))
            else:
                results = list(pool.map(try_bug, given.names or BUGS))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(f"{sum(results)} of {len(results)} as they should be")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
