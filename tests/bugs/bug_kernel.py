"""A kernel with one mistake, and the checks on it."""

from __future__ import annotations

import re
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from tests.commands.conformance.kit_program import SECONDS, Run, run_kit
from tests.support.daemons import environment, private_socket, start_kerneld

KERNELD = (sys.executable, "-P", "-m", "kerneld")
RAM = "512M"
LOG = "kerneld.log"


@contextmanager
def running_kernel(directory: Path, *options: str) -> Iterator[dict[str, str]]:
    """Run a kerneld with room for the checks, and yield the environment that finds it.

    Its log is read all the time, into a file of `directory`: thousands of opens fill a pipe that nobody reads, and the
    kernel would wait.
    """
    path = private_socket(directory)
    daemon = start_kerneld(path, *options, ram=RAM, check_invariants=False)
    assert daemon.stderr is not None
    reader = threading.Thread(target=_keep, args=(daemon.stderr, directory / LOG))
    reader.start()
    try:
        yield environment(path)
    finally:
        daemon.kill()
        reader.join()
        daemon.stderr.close()
        daemon.wait()


def _keep(stream: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file)


def warnings_of(directory: Path) -> str:
    """Return what a kernel that ran in `directory` has complained about: the lines above the level of info."""
    lines = (directory / LOG).read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if not re.search(r'"level": "(info|debug)"', line))


def run_on_bug(
    kit: Path,
    directory: Path,
    bug: str | None,
    checks: Sequence[str] = (),
    options: Sequence[str] = (),
    seconds: float = SECONDS,
) -> Run:
    """Run checks, all without `checks`, inside a kernel with the mistake `bug`, or with none; `directory` is empty.

    Raises TimeoutExpired if they take longer than `seconds`.
    """
    planted = () if bug is None else ("--bug", bug)
    only = ("--only", ",".join(checks)) if checks else ()
    with running_kernel(directory, *planted) as found:
        run = run_kit([*KERNELD, "exec", "--", str(kit)], *only, *options, environment=found, seconds=seconds)
    return replace(run, output=run.output + warnings_of(directory)) if run.failed else run
