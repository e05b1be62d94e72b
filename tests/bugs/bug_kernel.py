"""A kernel with one mistake, and the checks on it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.commands.conformance.kit_program import Run, run_kit
from tests.support.daemons import environment, private_socket, start_kerneld

KERNELD = (sys.executable, "-P", "-m", "kerneld")
RAM = "512M"


def run_on_bug(
    kit: Path, directory: Path, bug: str | None, checks: Sequence[str] = (), options: Sequence[str] = ()
) -> Run:
    """Run checks, all without `checks`, inside a kernel with the mistake `bug`, or with none; `directory` is empty."""
    path = private_socket(directory)
    planted = () if bug is None else ("--bug", bug)
    daemon = start_kerneld(path, *planted, ram=RAM, check_invariants=False)
    only = ("--only", ",".join(checks)) if checks else ()
    try:
        return run_kit([*KERNELD, "exec", "--", str(kit)], *only, *options, environment=environment(path))
    finally:
        daemon.kill()
        daemon.communicate()
