"""Polling for a moment before sleeping (busy waiting). Both ends of a connection then avoid the scheduler.

Owns the decision whether to poll. Knows no socket: the caller passes a function that says whether data has come.

Polling helps only if no other task wants this processor, and the other end runs on another processor:
- A process that may use only one processor never polls.
- If the scheduler has preempted this process in every slice since the last question, or during a poll, another task
  wants the processor. Then the next waits do not poll. The same holds if more tasks want to run than there are
  processors.
- A poll without result costs up to LONGEST_NS. After the first one the next wait polls again: one long wait is no sign
  of others. After each further one in a row, twice as many waits sleep at once.
So an idle program sleeps: a poll lasts at most LONGEST_NS, and comes only after some work.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import TypeVar

LONGEST_NS = 50_000
SWITCHED_NS = 25_000
"""After a longer gap between two polls the system is asked whether another task has run here. Most gaps are interrupts,
or another virtual machine: on a virtual processor there are eight in 10 ms of polls."""
ASK_EVERY = 64
"""The number of waits between two questions to the system."""
MOST_SKIPPED = 1024
SLICE_NS = 5_000_000
"""A task that wants this processor for long takes it more often than this: a slice of Linux's scheduler is 3 ms. A task
that is woken takes it too, once, and a start of a program wakes many."""

T = TypeVar("T")


class Spin:
    """The state of one waiting side: how well polling has worked for it."""

    __slots__ = (
        "_asked_at",
        "_asked_in",
        "_longest_ns",
        "_misses",
        "_most_skipped",
        "_seen_switches",
        "_switches",
        "skip",
    )

    def __init__(self, longest_ns: int = LONGEST_NS, most_skipped: int = MOST_SKIPPED) -> None:
        """`longest_ns` is the longest poll, and `most_skipped` the most waits that sleep at once after polls without a
        result."""
        self._longest_ns = longest_ns
        self._most_skipped = most_skipped
        self.skip = 0
        """The number of next waits that sleep at once. On a hot path the caller counts it down, without a call of
        `wait`."""
        self._misses = 0
        self._asked_in = 0
        self._asked_at = time.perf_counter_ns()
        self._switches = _involuntary_switches()
        """As many at the last question."""
        self._seen_switches = self._switches
        """As many at the last gap, or at the last question if it is later."""

    def wait(self, look: Callable[[], T]) -> T | None:
        """Call `look` until it returns a true value, and return that value; None if the caller should sleep instead."""
        if self.skip:
            self.skip -= 1
            return None
        self._asked_in -= 1
        if self._asked_in < 0 and not self._ask():
            return None
        clock = time.perf_counter_ns
        before = started = clock()
        while True:
            found = look()
            if found:
                self._misses = 0
                return found
            now = clock()
            if now - started > self._longest_ns or (now - before > SWITCHED_NS and self._is_preempted()):
                self._misses += 1
                self.skip = min((1 << self._misses) - 2, self._most_skipped)
                return None
            before = now

    def _is_preempted(self) -> bool:
        """Return whether another task has taken the processor since this was asked last."""
        seen, self._seen_switches = self._seen_switches, _involuntary_switches()
        return self._seen_switches > seen

    def _ask(self) -> bool:
        """Ask the system whether polling makes sense now. If not, skip all waits until the next question."""
        self._asked_in = ASK_EVERY
        switches, now = _involuntary_switches(), time.perf_counter_ns()
        most = 1 + (now - self._asked_at) // SLICE_NS
        is_wanted = switches > self._switches + most
        self._switches = self._seen_switches = switches
        self._asked_at = now
        if is_wanted or len(os.sched_getaffinity(0)) < 2 or _is_crowded():
            self.skip = ASK_EVERY
            self._asked_in = 0
            return False
        return True


def _is_crowded() -> bool:
    """Return whether more tasks want to run now than there are processors. Source: proc(5), /proc/loadavg."""
    try:
        with open("/proc/loadavg", "rb") as loadavg:
            running = int(loadavg.read().split()[3].partition(b"/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running > (os.cpu_count() or 1)


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
