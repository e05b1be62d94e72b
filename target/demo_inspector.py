"""The live inspector of the demonstration: its prints, one at a time, as it writes them for people.

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
    """One print: its lines, the counts in its head, how many entries changed since the print before."""

    lines: list[str]
    counts: Counts
    changed: int


class LiveInspector:
    """An inspector that prints on and on until it is interrupted."""

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
        """Return the prints up to the one that is the `count`th to begin from now on, each whole."""
        prints = self._take(self._program.read_waiting_lines())
        begun = 0
        # A print is whole when the next begins.
        while begun <= count:
            line = self._program.read_line()
            if line is None:
                self._program.wait()
                raise DemoError("the inspector has ended by itself")
            begun += _HEAD.match(line) is not None
            prints += self._take([line])
        return prints

    def close(self) -> list[str]:
        """Send what Ctrl+C sends, wait for the end, return the last line. Raises DemoError where it was not clean."""
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
    """Return the print that `lines` are, None where they do not begin with a head."""
    head = _HEAD.match(lines[0]) if lines else None
    if head is None:
        return None
    allocated, anonymous, mapped, changed = (int(group or 0) for group in head.groups())
    return Print(lines, Counts(allocated, anonymous, mapped), changed)


def pick_shown(prints: Sequence[Print]) -> Print:
    """Return the print to show of several: the last in which something changed, else the last."""
    return next((shown for shown in reversed(prints) if shown.changed), prints[-1])
