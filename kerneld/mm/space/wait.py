"""What a request waits for, until something else in the machine or on the host says that it is over.

Knows no thread: who sleeps for a wait sets `wake`. Answers to Linux v6.8 include/linux/wait.h: a waitqueue entry.
"""

from __future__ import annotations

from collections.abc import Callable


class Wait:
    """One wait of one request."""

    __slots__ = ("is_over", "wake")

    def __init__(self) -> None:
        self.is_over = False
        self.wake: Callable[[], None] | None = None
        """Wakes the thread that sleeps for it."""

    def end(self) -> None:
        """Note that the wait is over, and wake the thread."""
        self.is_over = True
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()
