"""Converts times, so that people can compare the log, the inspector and a trace.

Records of a trace have CLOCK_MONOTONIC, as in Linux; people read the time of day. The log and the inspector's JSON have
both. `kerneld trace --clock realtime` has the time of day.
"""

from __future__ import annotations

import time
from datetime import datetime


def seconds_text(nanoseconds: int) -> str:
    """Return a time of CLOCK_MONOTONIC as trace_pipe and the kernel's log show it: seconds and microseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{seconds}.{rest // 1000:06}"


class WallClock:
    """Turns a time of CLOCK_MONOTONIC into the local time of day, by their difference when the object was made."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def at(self, nanoseconds: int) -> datetime:
        """Return the local time, to the microsecond."""
        return datetime.fromtimestamp((nanoseconds + self._offset) // 1000 / 1e6).astimezone()
