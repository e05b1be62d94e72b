"""What a scenario is made of: steps to announce, facts to report, ranges to watch.

Owns the vocabulary between scenarios and the runner. A scenario's generator yields a `Step` before it does the thing,
so that the runner alone owns pausing and printing; it must not print or sleep by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from shared.client import Process
from target.stage import Stage


@dataclass(frozen=True, slots=True)
class Step:
    """What changes next: announced, then a pause, then the generator goes on and does it."""

    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """What has come of the last step; printed without a pause."""

    text: str


@dataclass(frozen=True, slots=True)
class Watch:
    """A range [start, end) of a process to give to an inspector; a longer pause follows, time to start one."""

    pid: int
    start: int
    end: int
    what: str


Beat: TypeAlias = Step | Note | Watch
Beats: TypeAlias = Generator[Beat, None, None]
Play: TypeAlias = Callable[[Stage], Beats]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One lesson: its name on the command line, its title, what it teaches, and the generator that plays it.

    `in_window` says that all that changes lies in the tour's window; `ends_process` that nothing can follow it. `last`
    is what it does at the very end, when the tour is over.
    """

    name: str
    title: str
    teaches: str
    play: Play
    in_window: bool = True
    ends_process: bool = False
    last: Callable[[Process], None] | None = None
