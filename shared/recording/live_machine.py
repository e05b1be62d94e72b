"""The memory of a running kerneld's processes, kept up by its events alone. Nothing is written down.

A viewer that needs no past uses this in place of a record. The kernel never waits for it. Where records were lost, it
opens another trace, whose snapshot makes the model exact again.
"""

from __future__ import annotations

from shared.client import Process
from shared.recording.live import DEFAULT_RING_BYTES, end_trace, open_with_snapshot
from shared.recording.machine import Machine
from shared.trace.record import Entry, Lost, Record, decode
from shared.trace.state_events import SNAPSHOT_BEGIN, SNAPSHOT_END

GLOBS = ("snapshot", "vma:*", "pte:*", "mm", "pgtable:alloc", "pgtable:free", "task:*", "sched:*")
"""Processes, VMAs and page-table entries. Frames, page cache, swap and marks of the processor are left out."""


class LiveMachine:
    """Every address space of a running kerneld at two moments: now, and when the viewer showed it last."""

    def __init__(self, process: Process, ring_bytes: int = DEFAULT_RING_BYTES) -> None:
        """Begin. The connection of `process` stays the caller's. Raises OSError as TraceSession does, KerneldGone."""
        self._process = process
        self._session, self._ring_bytes = open_with_snapshot(process, GLOBS, (), ring_bytes)
        self.now = Machine()
        """The machine as far as has been read."""
        self.shown = Machine()
        """The machine at the last `mark_shown`."""
        self._since: list[bytes] = []
        self.gaps = 0
        """How often records were lost."""
        self.read()
        self.mark_shown()

    def wait(self, timeout_seconds: float, *others: int) -> bool:
        """Wait until the ring should be emptied, for the time, or for a descriptor. Return whether it has anything.

        A wait is short: call it again.
        """
        reader = self._session.reader
        return reader.wait(timeout_seconds, self._process.fileno(), *others, wanted_bytes=reader.size_bytes // 8)

    def read(self) -> list[Record]:
        """Take the events that have come into `now`, and return them. Those of a snapshot tell nothing new.

        Raises OSError and KerneldGone when a new trace is needed and cannot be opened.
        """
        entries = self._take(self._session.reader.take())
        if any(isinstance(one, Lost) for one in entries):
            self.gaps += 1
            old = self._session
            self._session, self._ring_bytes = open_with_snapshot(self._process, GLOBS, (), self._ring_bytes)
            end_trace(old)
            entries += self._take(self._session.reader.take())
        return _without_snapshots(entries)

    def _take(self, data: bytes) -> list[Entry]:
        self.now.apply(data)
        self._since.append(data)
        return list(decode(data))

    def mark_shown(self) -> None:
        """Let `shown` be the machine of now."""
        for data in self._since:
            self.shown.apply(data)
        self._since.clear()

    def close(self) -> None:
        """End the trace."""
        end_trace(self._session)


def _without_snapshots(entries: list[Entry]) -> list[Record]:
    found, is_snapshot = [], False
    for entry in entries:
        if isinstance(entry, Record):
            is_snapshot |= entry.event is SNAPSHOT_BEGIN
            if not is_snapshot:
                found.append(entry)
            is_snapshot &= entry.event is not SNAPSHOT_END
    return found
