"""A limit on the messages that clients can make the daemon write to its log: BURST of a kind in INTERVAL_SECONDS.

A kind is a place in the program that logs. The text of a message is no kind, because a client can vary the names and
numbers in it. Owns the counts of each kind. Knows no log. Answers to Linux v6.8 lib/ratelimit.c:___ratelimit(), which
also reports "callbacks suppressed" with the next message of the kind.
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
        """The number of suppressed messages that no later message has reported yet."""

    def allows(self) -> bool:
        """Return whether a message may be written now, and count it as written or as missed."""
        now = self._clock()
        if now - self._begun >= INTERVAL_SECONDS:
            self._begun, self._printed = now, 0
        if self._printed >= BURST:
            self.missed += 1
            return False
        self._printed += 1
        return True

    def take_missed(self) -> int:
        """Return the number of messages suppressed since the last call. The caller's next message reports it."""
        missed, self.missed = self.missed, 0
        return missed
