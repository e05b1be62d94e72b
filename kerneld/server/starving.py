"""Whether a process that should answer at once waits for a processor: then its silence is not its fault.

Reads the host's /proc, and keeps nothing. On a busy machine a process that could answer may have no turn for seconds.
A process that does not want to run, or that uses its turns for other things, does not starve. One that the host holds
up in a call (it reads from a disk, or waits for mmap_lock) starves for a while.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_EXTRA_FOR, _MOST_TIMES = 16, 4
"""A process may use its processor time once more for each so many threads that want to run, four times at the most: one
that should answer has its turn after theirs, and may wait for two of them that were about to map a page."""
_STATE, _UTIME, _STIME = 0, 11, 12
"""Fields of /proc/PID/stat, counted from the state. Source: proc(5)."""


class Look(NamedTuple):
    """A process and its children at one moment."""

    wants_to_run: bool
    """Whether a thread runs, or waits for a processor."""
    cpu_seconds: float
    """The processor time that all have used."""
    is_held: bool = False
    """Whether a thread waits inside the host's kernel, and no signal ends that, or a debugger has the one that should
    answer."""
    is_stopped: bool = False
    """Whether the one that should answer is stopped (SIGSTOP)."""
    nr_running: int = 0
    """How many threads run, or wait for a processor."""


class Starvation:
    """Tells again and again whether a process still starves. The first look is the beginning."""

    def __init__(self, pid: int, name: str, most_seconds: float, most_idle: int, most_held: int) -> None:
        """A process does not starve if it uses `most_seconds` of processor time (more if it has many threads), if it
        does not want to run in `most_idle` looks one after the other, or if its thread or child called `name` is
        stopped. Of these looks it may be held up by the host in `most_held`."""
        self._pid = pid
        self._name = name
        self._most_seconds = most_seconds
        self._most_idle = most_idle
        self._left_held = most_held
        self._idle = 0
        self._began = look_at(pid, name).cpu_seconds

    def is_over(self) -> bool:
        """Look, and return whether the process does not starve."""
        now = look_at(self._pid, self._name)
        if now.is_held and self._left_held:
            self._left_held -= 1
        else:
            self._idle = 0 if now.wants_to_run else self._idle + 1
        used = now.cpu_seconds - self._began
        most = self._most_seconds * min(_MOST_TIMES, 1 + now.nr_running // _EXTRA_FOR)
        return now.is_stopped or self._idle >= self._most_idle or used >= most


def look_at(pid: int, name: str) -> Look:
    """Return what the threads and the children of a process do. One that is gone, or hidden, does nothing."""
    states, own_states, ticks = Counter[str](), set(), 0
    for task in _tasks(Path(f"/proc/{pid}/task")):
        try:
            text = (task / "stat").read_text("utf-8", "replace")
        except OSError:
            continue
        fields = text[text.rfind(")") + 2 :].split()
        states[fields[_STATE]] += 1
        if f"({name})" in text:
            own_states.add(fields[_STATE])
        ticks += int(fields[_UTIME]) + int(fields[_STIME])
    is_held = "D" in states or "t" in own_states
    return Look("R" in states, ticks / _TICKS, is_held, "T" in own_states, states["R"])


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
