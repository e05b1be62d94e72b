"""One open trace: what it wants, what it may see, and its ring.

Owns the records gathered since the last write. Knows neither probes nor the kernel: whoever opens it says whose it is.
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


class Trace:
    """What one reader has asked for."""

    __slots__ = ("events", "handle", "hides", "owner", "pids", "records", "ring", "wanted_pids")

    def __init__(
        self, handle: int, owner: Thread, events: tuple[Event, ...], pids: tuple[int, ...], ring: Ring
    ) -> None:
        """`owner` is the thread that opened it: it lives as long as that. `pids` empty: every process."""
        self.handle = handle
        self.owner = owner
        self.events = events
        self.ring = ring
        self.wanted_pids = frozenset(pids)
        self.hides = not owner.process.cred.superuser
        """Whether frame numbers, and what others do, are kept from it."""
        self.pids: set[int] | None = set(pids) if self.hides or pids else None
        """Whose events it gets; None for everybody's."""
        self.records: list[bytes] = []

    def wants(self, pid: int, owner: int) -> bool:
        """Tell whether an event is for this trace: of a process that it follows, or about such a one's memory.

        Who may not see everything is told of nobody else's memory, whoever touched it.
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
        """A process is there, or has another name or other credentials than before."""
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
        """Gather a record, or several whole ones; very many are written at once, so that no request fills memory."""
        self.records.append(record)
        if len(self.records) >= _MOST_GATHERED:
            with contextlib.suppress(ReaderGone):
                self.flush()

    def flush(self) -> None:
        """Write what was gathered. Raises ReaderGone."""
        if self.records:
            records, self.records = self.records, []
            self.ring.write(records)
