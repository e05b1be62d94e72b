"""The live inspector of the demonstration: reads its prints, one at a time.

Knows the head line of a print: time, pid, range, counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from target.demo_program import DemoError, Program

INTERVAL_SECONDS = 0.05
_HEAD = re.compile(
    r"^\d\d:\d\d:\d\d\.\d{3}  pid \d+.* pages?: "
    r"(\d+) allocated, (\d+) anonymous, (\d+) mapped, (?:(\d+) changed|first print)$"
)


class Counts(NamedTuple):
    """How many pages of the range are allocated, anonymous and mapped."""

    allocated: int
    anonymous: int
    mapped: int


class Print(NamedTuple):
    """One print: its lines, the counts in its head, and the number of entries that changed since the print before."""

    lines: list[str]
    counts: Counts
    changed: int


class LiveInspector:
    """An inspector that prints until it is interrupted."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the inspector that `words` name, and wait for its first print."""
        self._program = Program("the inspector", [*words, "--interval", str(INTERVAL_SECONDS)], environment)
        self._lines: list[str] = []
        try:
            self.first = self.next_prints(1)[-1]
        except BaseException:
            self.kill()
            raise

    def next_prints(self, count: int) -> list[Print]:
        """Return complete prints, up to the `count`th print that begins after this call."""
        prints = self._take(self._program.read_waiting_lines())
        begun = 0
        # A print is complete when the next one begins.
        while begun <= count:
            line = self._program.read_line()
            if line is None:
                self._program.wait()
                raise DemoError("the inspector has ended by itself")
            begun += _HEAD.match(line) is not None
            prints += self._take([line])
        return prints

    def close(self) -> list[str]:
        """Send SIGINT, wait for the end, and return the last line. Raises DemoError if the end was not clean."""
        self._program.interrupt()
        return self._program.wait()[-1:]

    def kill(self) -> None:
        """End the inspector if it still runs."""
        self._program.kill()

    def _take(self, lines: Sequence[str]) -> list[Print]:
        prints = []
        for line in lines:
            if _HEAD.match(line) and (done := parse_print(self._lines)):
                prints.append(done)
            if _HEAD.match(line):
                self._lines = []
            self._lines.append(line)
        return prints


def parse_print(lines: list[str]) -> Print | None:
    """Return the print of `lines`; None if they do not begin with a head."""
    head = _HEAD.match(lines[0]) if lines else None
    if head is None:
        return None
    allocated, anonymous, mapped, changed = (int(group or 0) for group in head.groups())
    return Print(lines, Counts(allocated, anonymous, mapped), changed)


def pick_shown(prints: Sequence[Print]) -> Print:
    """Return the print to show: the last print with a change, else the last print."""
    return next((shown for shown in reversed(prints) if shown.changed), prints[-1])
