"""The parts of a scenario: steps to announce, facts to report, ranges to watch.

Owns the vocabulary between scenarios and the runner. The generator of a scenario yields a `Step` before it takes that
step. Only the runner pauses and prints: a scenario must not print or sleep.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from shared.client import Process
from target.stage import Stage


@dataclass(frozen=True, slots=True)
class Step:
    """The next change. The runner announces it and pauses; then the generator continues and makes the change."""

    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """The result of the last step. The runner prints it without a pause."""

    text: str


@dataclass(frozen=True, slots=True)
class Watch:
    """A range [start, end) of a process for an inspector.

    A longer pause follows: a person has to start the inspector.
    """

    pid: int
    start: int
    end: int
    what: str
    also: int = 0
    """Another process whose same range is worth a look beside it; 0 for none."""


Beat: TypeAlias = Step | Note | Watch
Beats: TypeAlias = Generator[Beat, None, None]
Play: TypeAlias = Callable[[Stage], Beats]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One lesson: its name on the command line, its title, its lesson, and the generator that plays it.

    `in_window`: all changes lie in the tour's window. `ends_process`: no scenario can follow. `last` is the action at
    the very end, after the tour.
    """

    name: str
    title: str
    teaches: str
    play: Play
    in_window: bool = True
    ends_process: bool = False
    last: Callable[[Process], None] | None = None
