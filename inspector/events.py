"""The log of the shadow table: each change of an entry, with the old value, the new value and the cause.

Owns the trace that has the changes. A record is about a run of consecutive pages; an update can be split into pages.
Knows no terminal.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from inspector.table import Change, Entry, Frames, Run, change_of
from shared.failure import Failure, Status
from shared.trace.events import LAST_CONSTANT_PFN, SPTE_UPDATE
from shared.trace.record import Entry as TraceEntry
from shared.trace.record import Lost, Record
from shared.trace.text import cause_text
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import Spte
from shared.uapi.syscalls import Nr

if TYPE_CHECKING:
    from shared.client import Process

GLOBS = (SPTE_UPDATE.name,)
_WHY = {
    errno.EMFILE: "too many traces are open",
    errno.ENOSPC: "kerneld allows no buffer of that size",
    errno.ENOSYS: "this kerneld cannot be traced",
    errno.EINVAL: "this kerneld has no such events",
}


class Update(NamedTuple):
    """Consecutive pages that have changed in the same way at one moment: the run before and the run after."""

    time: datetime
    before: Run
    after: Run
    cause: str
    by: int
    """The process that the kernel was serving; 0 for none."""
    monotonic: int = 0
    """`time` as CLOCK_MONOTONIC, in nanoseconds, as in a trace and in the log."""

    @property
    def change(self) -> Change:
        """The kind of change, the same for all pages."""
        return self.after.change

    def unfolded(self) -> Iterator[Update]:
        """Yield one update for each page."""
        for index in range(self.after.pages):
            yield self._replace(before=_page_of(self.before, index), after=_page_of(self.after, index))


class Ring(Protocol):
    """The part of `shared.trace.reader.Reader` that is used here."""

    @property
    def lost(self) -> int: ...
    def read(self) -> Iterator[TraceEntry]: ...
    def wait(self, timeout_seconds: float | None = None, *others: int) -> bool: ...


class Session(Protocol):
    """The part of `shared.client.trace.TraceSession` that is used here."""

    @property
    def reader(self) -> Ring: ...
    def close(self) -> None: ...


def open_session(process: Process) -> Session:
    """Open a trace of the table's changes. Raises Failure when kerneld refuses, and KerneldGone."""
    from shared.client.trace import TraceSession  # noqa: PLC0415  (for this alone)

    try:
        return TraceSession(process, GLOBS)
    except OSError as error:
        raise Failure(Status.FAILED, _WHY.get(error.errno or 0, f"cannot trace: {error.strerror}")) from None


class EventLog:
    """The changes since the table was started. Must be opened before the start, so that no change is missed."""

    def __init__(self, session: Session, now: Callable[[], tuple[int, int]] | None = None) -> None:
        self.reader = session.reader
        self._session = session
        realtime, monotonic = (now or _clocks)()
        self._offset = realtime - monotonic
        self.pages = 0
        """The number of changed entries so far."""

    @property
    def lost(self) -> int:
        """The number of records that found no room in the ring."""
        return self.reader.lost

    def read(self) -> Iterator[Update | Lost]:
        """Yield the changes since the last call. The first filling of the table at its start is no change."""
        for entry in self.reader.read():
            if isinstance(entry, Lost):
                yield entry
            elif isinstance(entry, Record) and entry.event is SPTE_UPDATE and entry.nr != Nr.SHADOWPT_START:
                self.pages += entry.fields["nr_pages"]
                yield self._update(entry)

    def _update(self, record: Record) -> Update:
        fields = record.fields
        vaddr, pages = fields["vaddr"], fields["nr_pages"]
        old = Entry(vaddr, fields["old_pfn"], fields["old_flags"])
        new = Entry(vaddr, fields["new_pfn"], fields["new_flags"])
        change = change_of(old, new)
        when = datetime.fromtimestamp((record.time + self._offset) / 1e9).astimezone()
        return Update(
            when, _run(old, pages, change), _run(new, pages, change), cause_text(record), record.pid, record.time
        )

    def close(self) -> None:
        """Unmap the ring. The trace ends with the connection."""
        self._session.close()


def _clocks() -> tuple[int, int]:
    return time.time_ns(), time.monotonic_ns()


def _run(first: Entry, pages: int, change: Change) -> Run:
    frames = Frames.ABSENT
    if first.flags & Spte.PTE_MAPPED:
        frames = Frames.SAME if first.pfn <= LAST_CONSTANT_PFN else Frames.CONSECUTIVE
    return Run(first, pages, frames, change)


def _page_of(run: Run, index: int) -> Run:
    vaddr, pfn, flags = run.first
    pfn += index if run.frames is Frames.CONSECUTIVE else 0
    return run._replace(first=Entry(vaddr + index * PAGE_SIZE, pfn, flags), pages=1)
