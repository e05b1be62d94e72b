"""The current state for records: the process that the kernel serves, and the causes of its work.

It is kept only while something is traced, by wrappers around the few functions where a cause begins and ends
(`kerneld.trace.probes.request` and others). Answers to Linux v6.8's `current`; ftrace shows causes by nesting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.trace.events import Cause
from shared.trace.record import push_cause

NOBODY = (1 << 32) - 1
"""The owner of memory of an ended process whose pid belongs to another process by now."""


class Current:
    """The process and the causes of this moment."""

    __slots__ = ("address", "causes", "depth", "nr", "pid", "tid")

    def __init__(self) -> None:
        self.pid = 0
        self.tid = 0
        self.nr = 0
        """The number of the call or access that the kernel is serving."""
        self.causes = 0
        """The causes, four bits each; the lowest bits are the innermost (`shared.trace.record`)."""
        self.address = 0
        """The address of the innermost fault."""
        self.depth = 0
        """The nesting depth of the functions at whose end records are written."""

    @contextmanager
    def under(self, cause: Cause) -> Iterator[None]:
        """Note a cause during a with block. Hot paths do the same inline, without this call."""
        before = self.causes
        self.causes = push_cause(before, cause)
        try:
            yield
        finally:
            self.causes = before
