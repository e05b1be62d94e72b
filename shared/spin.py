"""Waiting awake for a moment before sleeping: both ends of a connection save the way through the scheduler.

Owns the decision whether that pays. Knows no socket: what is waited for is a function that says whether it is there.

To wait awake is right only while nobody else wants the processor, and the other end has one of its own to run on:
- With one processor allowed there is none: never.
- Switched out against our will since last asked, or while awake: somebody else wants this one, so not for a while.
- A wait that was in vain cost up to LONGEST_NS: after each in a row, twice as many waits go to sleep at once.
An idle program therefore sleeps: a wait awake is at most LONGEST_NS long, and comes only after something was done.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import TypeVar

LONGEST_NS = 50_000
SWITCHED_NS = 25_000
"""A gap this long between two looks is no look's: another task ran here, or the machine below us had other work."""
ASK_EVERY = 64
"""Waits between two looks at what the scheduler says."""
MOST_SKIPPED = 1024

T = TypeVar("T")


class Spin:
    """One waiter's experience with waiting awake."""

    __slots__ = ("_asked_in", "_misses", "_switches", "skip")

    def __init__(self) -> None:
        self.skip = 0
        """So many waits sleep at once; the waiter counts them down itself where a call of `wait` is too dear."""
        self._misses = 0
        self._asked_in = 0
        self._switches = _involuntary_switches()

    def wait(self, look: Callable[[], T]) -> T | None:
        """Call `look` until it returns something true, and return that; None when it is time to sleep instead."""
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
            if now - started > LONGEST_NS or now - before > SWITCHED_NS:
                self._misses += 1
                self.skip = min(1 << self._misses, MOST_SKIPPED)
                return None
            before = now

    def _ask(self) -> bool:
        """Ask the system whether a processor is free for this; where not, skip as many waits as until the next time."""
        self._asked_in = ASK_EVERY
        switches = _involuntary_switches()
        is_wanted, self._switches = switches > self._switches + 1, switches
        if is_wanted or len(os.sched_getaffinity(0)) < 2:
            self.skip = ASK_EVERY
            return False
        return True


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
