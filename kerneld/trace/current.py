"""What is under way: whom the kernel serves, and why it does what it does.

Kept only while something is traced, by wrappers around the few functions where a cause begins and ends
(`kerneld.trace.request` and others). Answers to Linux v6.8's `current`, and what a reader of ftrace sees by nesting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.trace.events import Cause
from shared.trace.record import push_cause

NOBODY = (1 << 32) - 1
"""In place of the pid that memory belongs to: of a process that has ended, and whose pid is another's by now."""


class Current:
    """The moment's who and why."""

    __slots__ = ("address", "causes", "depth", "nr", "pid", "tid")

    def __init__(self) -> None:
        self.pid = 0
        self.tid = 0
        self.nr = 0
        """The call or access that is being served."""
        self.causes = 0
        """Four bits each, the innermost lowest: `shared.trace.record`."""
        self.address = 0
        """The innermost fault's."""
        self.depth = 0
        """How many of the functions after which records are written are under way."""

    @contextmanager
    def under(self, cause: Cause) -> Iterator[None]:
        """Note a cause while it lasts. For what happens often the same is written out where it does."""
        before = self.causes
        self.causes = push_cause(before, cause)
        try:
            yield
        finally:
            self.causes = before
