"""Waits until somebody has a shadow page table of this process open, as kerneld says in /proc/kerneld/status."""

from __future__ import annotations

from collections.abc import Callable

from shared.client import Process
from target.pace import Pace


def find_watcher(process: Process) -> int | None:
    """Return the pid of the process that has a table of this process open; None if there is none."""
    rows = dict(
        line.split(":\t", 1) for line in process.read_proc("kerneld/status").decode().splitlines() if ":\t" in line
    )
    if rows.get("ShadowTarget") != str(process.pid):
        return None
    return int(rows["ShadowOpener"])


def wait_for_watcher(process: Process, pause: Pace, say: Callable[[str], None]) -> None:
    """Return when a table of this process is open, and say whose it is. Between two looks `pause` waits.

    Raises the exceptions of the pause.
    """
    say("  Waiting for an inspector …\n")
    while (watcher := find_watcher(process)) is None:
        pause.wait()
    say(f"  Process {watcher} has opened a table of this process.\n")
