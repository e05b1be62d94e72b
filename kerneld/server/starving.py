"""Whether a process that should answer at once waits for a processor: then its silence is not its fault.

Reads the host's /proc, and keeps nothing. On a busy machine a process that could answer may have no turn for seconds.
A process that does not want to run, or that uses its turns for other things, does not starve.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_STATE, _UTIME, _STIME = 0, 11, 12
"""Fields of /proc/PID/stat, counted from the state. Source: proc(5)."""


class Look(NamedTuple):
    """A process and its children at one moment."""

    wants_to_run: bool
    """Whether a thread runs, or waits for a processor."""
    cpu_seconds: float
    """The processor time that all have used."""


class Starvation:
    """Tells again and again whether a process still starves. The first look is the beginning."""

    def __init__(self, pid: int, most_seconds: float, most_idle: int) -> None:
        """A process that uses `most_seconds` of processor time, or does not want to run in `most_idle` looks one after
        the other, does not starve."""
        self._pid = pid
        self._most_seconds = most_seconds
        self._most_idle = most_idle
        self._idle = 0
        self._began = look_at(pid).cpu_seconds

    def is_over(self) -> bool:
        """Look, and return whether the process does not starve."""
        now = look_at(self._pid)
        self._idle = 0 if now.wants_to_run else self._idle + 1
        return self._idle >= self._most_idle or now.cpu_seconds - self._began >= self._most_seconds


def look_at(pid: int) -> Look:
    """Return what the threads and the children of a process do. One that is gone, or hidden, does nothing."""
    wants_to_run, ticks = False, 0
    for task in _tasks(Path(f"/proc/{pid}/task")):
        try:
            text = (task / "stat").read_text("utf-8", "replace")
        except OSError:
            continue
        fields = text[text.rfind(")") + 2 :].split()
        wants_to_run |= fields[_STATE] == "R"
        ticks += int(fields[_UTIME]) + int(fields[_STIME])
    return Look(wants_to_run, ticks / _TICKS)


def _tasks(threads: Path) -> list[Path]:
    """Return the directories in /proc of the threads, and of their children."""
    try:
        found = list(threads.iterdir())
    except OSError:
        return []
    for thread in list(found):
        try:
            found += [Path("/proc") / child for child in (thread / "children").read_text().split()]
        except OSError:
            continue
    return found
