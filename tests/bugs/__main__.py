"""`make bugs`: every check on every kernel with a mistake, and many times on the right kernel under load.

Prints a line for each mistake, or each run of the right kernel: how many are done, how long is left at this pace, and
the checks that failed. With `--results FILE` each result is also kept there, and a later call with the same file goes
on where the last one ended. Ends with status 1 if a mistake is not found by the checks that the catalogue names, or if
a check fails on the right kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kerneld.bugs.catalogue import BUGS
from kerneld.commands.conformance.kit import ensure_kit
from tests.bugs.bug_kernel import run_on_bug
from tests.commands.conformance.kit_program import SECONDS, Run

_OPENS = ("--opens", "2000")
_LIMIT = ("--limit", "60")
"""Less than the checks have by themselves: a mistake may hang one for ever."""
_RIGHT_SECONDS = 3600.0
_SPIN = "while True: pass"

Verdict = tuple[bool, str]
"""Whether a run is as it should be, and what to print of it."""


def try_bug(name: str, own_checks: bool) -> Verdict:
    """Run all checks, or those of the catalogue, on a kernel with a mistake. The catalogue's must fail."""
    checks = BUGS[name].checks if own_checks else ()
    run = _run(name, checks, (*_OPENS, *_LIMIT, "--patience", "300"), SECONDS)
    if isinstance(run, str):
        return False, run
    missing = set(BUGS[name].checks) - run.failed
    return not missing, f"{'MISSED' if missing else 'found':7}{' '.join(sorted(run.failed))}"


def try_right_kernel() -> Verdict:
    """Run all checks on the right kernel. None may fail."""
    run = _run(None, (), _OPENS, _RIGHT_SECONDS)
    if isinstance(run, str):
        return False, run
    is_right = bool(run.passed) and not run.failed
    return is_right, "right" if is_right else f"FALSE ALARM: {' '.join(sorted(run.failed))}\n{run.output}"


def _run(name: str | None, checks: Sequence[str], options: Sequence[str], seconds: float) -> Run | str:
    with tempfile.TemporaryDirectory(prefix="bugs-") as directory:
        try:
            return run_on_bug(ensure_kit(), Path(directory), name, checks, options, seconds)
        except subprocess.TimeoutExpired as error:
            told = (error.stdout or b"").decode(errors="replace").splitlines()
            return "NO END of the checks: " + "\n".join(line for line in told if not line.startswith("ok "))


class Campaign:
    """Runs what has no good result yet, and tells how far it is. The results are a file of JSON lines."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._began = time.monotonic()
        if path is not None:
            _end_last_line(path)
        self.good = _good_results(path)
        """What has been as it should be, in this call or one before."""
        self.bad: list[str] = []

    def run(self, names: Sequence[str], attempt: Callable[[str], Verdict], jobs: int) -> None:
        """Run `attempt` for each name that has no good result."""
        left = [name for name in names if name not in self.good]
        if len(left) < len(names):
            print(f"{len(names) - len(left)} of {len(names)} are done already: {self._path}", flush=True)
        with ThreadPoolExecutor(jobs) as pool:
            for done, (name, verdict) in enumerate(pool.map(lambda name: (name, attempt(name)), left), 1):
                self._note(name, verdict, done, len(left))

    def _note(self, name: str, verdict: Verdict, done: int, wanted: int) -> None:
        is_good, words = verdict
        if is_good:
            self.good.add(name)
        else:
            self.bad.append(name)
        minutes = (time.monotonic() - self._began) / done * (wanted - done) / 60
        print(f"{done}/{wanted}  {name}: {words}  (about {minutes:.0f} minutes left)", flush=True)
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "good": is_good, "words": words}) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _end_last_line(path: str) -> None:
    """Give a last line that was cut off its end, so that the next result has a line of its own."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")


def _good_results(path: str | None) -> set[str]:
    """Return the names with a good result in a file. A line that was cut off counts as none."""
    if path is None:
        return set()
    good: set[str] = set()
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        (good.add if found["good"] else good.discard)(found["name"])
    return good


def main() -> int:
    """Run what the options ask for."""
    options = argparse.ArgumentParser(prog="make bugs", description=__doc__)
    options.add_argument("--right-runs", type=int, default=0, help="runs on the right kernel instead of the mistakes")
    options.add_argument("--load", type=int, default=0, help="processes that keep the processors busy meanwhile")
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--own-checks", action="store_true", help="only the checks that the catalogue names: sooner")
    options.add_argument("--results", metavar="FILE", help="keep the results; leave out what is right in it already")
    options.add_argument("names", nargs="*", help="these mistakes alone")
    given = options.parse_args()
    # Then the processes of the load end too.
    signal.signal(signal.SIGTERM, lambda *_signal: sys.exit(1))
    campaign = Campaign(given.results)
    busy = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(given.load)]
    names = [f"run {number}" for number in range(given.right_runs)] or given.names or list(BUGS)
    try:
        if given.right_runs:
            campaign.run(names, lambda _name: try_right_kernel(), given.jobs)
        else:
            campaign.run(names, lambda name: try_bug(name, given.own_checks), given.jobs)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(f"{len(names) - len(campaign.bad)} of {len(names)} as they should be")
    return 1 if campaign.bad else 0


if __name__ == "__main__":
    sys.exit(main())
