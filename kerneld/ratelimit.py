"""A limit on what clients can make the daemon write to its log: so many messages of a kind in so long.

A kind is a place in the program that logs: names, numbers and errors in a line are the client's to vary. Owns the
counts of each kind; knows no log. Answers to Linux v6.8 lib/ratelimit.c:___ratelimit(), which tells of the "callbacks
suppressed" as well, when the next message of the kind is due.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

INTERVAL_SECONDS, BURST = 5.0, 10
"""Linux v6.8 include/linux/ratelimit_types.h: DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST."""


class RateLimit:
    """The limit of one kind of message (Linux: struct ratelimit_state)."""

    __slots__ = ("_begun", "_clock", "_printed", "missed")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._printed = 0
        self.missed = 0
        """Messages that were not to be written, and of which none has told yet."""

    def allows(self) -> bool:
        """Tell whether a message may be written now. One that may is counted, and one that may not."""
        now = self._clock()
        if now - self._begun >= INTERVAL_SECONDS:
            self._begun, self._printed = now, 0
        if self._printed >= BURST:
            self.missed += 1
            return False
        self._printed += 1
        return True

    def take_missed(self) -> int:
        """Return how many have not been written since last asked, for the message that is to tell of them."""
        missed, self.missed = self.missed, 0
        return missed
