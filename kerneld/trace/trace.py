"""One open trace: the events that it wants, the rights of its opener, and its ring.

Owns the records collected since the last write. Knows neither probes nor the kernel: its creator passes the owner.
Answers to Linux v6.8 kernel/events/core.c:struct perf_event.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kerneld.task.ptrace import ptrace_may_access
from kerneld.trace.ring import ReaderGone, Ring
from shared.trace.record import pack_comm

if TYPE_CHECKING:
    from kerneld.task.task import Process, Thread
    from kerneld.trace.current import Current
    from shared.trace.event import Event

_COMM_BYTES = 15
_MOST_GATHERED = 8192
_LARGE_BYTES = 256 << 10


class Trace:
    """The trace of one reader."""

    __slots__ = ("events", "handle", "hides", "owner", "pids", "records", "ring", "wanted_pids")

    def __init__(
        self, handle: int, owner: Thread, events: tuple[Event, ...], pids: tuple[int, ...], ring: Ring
    ) -> None:
        """`owner` is the opening thread: the trace ends with it. Empty `pids` mean every process."""
        self.handle = handle
        self.owner = owner
        self.events = events
        self.ring = ring
        self.wanted_pids = frozenset(pids)
        self.hides = not owner.process.cred.superuser
        """Whether frame numbers and the processes of other users are hidden from the trace."""
        self.pids: set[int] | None = set(pids) if self.hides or pids else None
        """The processes whose events it gets; None for all processes."""
        self.records: list[bytes] = []

    def wants(self, pid: int, owner: int) -> bool:
        """Return whether a trace gets an event: it follows the process, or the owner of the memory.

        A trace with hidden processes gets no events about the memory of other users, whichever process touched it.
        """
        pids = self.pids
        if pids is None:
            return True
        if self.hides and owner:
            return owner in pids
        return pid in pids or owner in pids

    def sight(self, now: Current) -> tuple[int, int, int, int]:
        """Return pid, tid, call and fault address as this trace may see them."""
        if self.hides and (self.pids is None or now.pid not in self.pids):
            return 0, 0, 0, 0
        return now.pid, now.tid, now.nr, now.address

    def note_process(self, process: Process, mm: int) -> None:
        """Note a new process, or a process with a new name or new credentials."""
        if self.hides:
            self._look_at(process)
        if self.pids is None or process.pid in self.pids:
            name = process.comm.encode("utf-8", "surrogateescape")[:_COMM_BYTES]
            self.records.append(pack_comm(process.pid, mm, name))

    def _look_at(self, process: Process) -> None:
        assert self.pids is not None
        if ptrace_may_access(self.owner.process, process) and (not self.wanted_pids or process.pid in self.wanted_pids):
            self.pids.add(process.pid)
        else:
            self.pids.discard(process.pid)

    def add(self, record: bytes) -> None:
        """Collect one or more whole records.

        A large number is written at once, so that a request does not fill memory.
        """
        self.records.append(record)
        if len(self.records) >= _MOST_GATHERED:
            with contextlib.suppress(ReaderGone):
                self.flush()

    def add_many(self, records: bytes) -> None:
        """Collect many records. What is large is written at once: memory for all would cost more than the writes."""
        self.add(records)
        if len(records) >= _LARGE_BYTES:
            with contextlib.suppress(ReaderGone):
                self.flush()

    def loses(self, count: int, size: int) -> bool:
        """Return whether so many records of this size are lost, because the ring is full. They need not be made."""
        if count * size < _LARGE_BYTES:
            return False
        with contextlib.suppress(ReaderGone):
            self.flush()
        return self.ring.lose(count, size)

    def flush(self) -> None:
        """Write the collected records. Raises ReaderGone."""
        if self.records:
            records, self.records = self.records, []
            self.ring.write(records)
