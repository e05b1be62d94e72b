"""Slices of time, made of the causes of records: a call, in it a fault, in the fault a reclaim.

Every record has its causes. A slice lasts from the first record with its cause to the last. Some events tell the begin
or the end of a call, an access or a fault; then the slice has the time of that event. The kernel serves one request at
a time, so one stack is enough. Pure: a sink is called for each begin and end. Knows no file format.

Invariants: the slices of a thread are nested; the times that the sink gets never go back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from shared.trace.events import (
    ACCESS_ENTER,
    ACCESS_EXIT,
    MM_FAULT,
    PAGE_FAULT_USER,
    RSS_STAT,
    SPTE_UPDATE,
    SYS_ENTER,
    SYS_EXIT,
    Cause,
)
from shared.trace.record import Record
from shared.trace.text import call_name

_BEGINS = frozenset({SYS_ENTER.number, ACCESS_ENTER.number})
_ENDS = frozenset({SYS_EXIT.number, ACCESS_EXIT.number})
SLICE_EVENTS = _BEGINS | _ENDS | {PAGE_FAULT_USER.number, MM_FAULT.number}
"""Events that are only the begin or the end of a slice."""
_AFTERWARDS = frozenset({SPTE_UPDATE.number, RSS_STAT.number})
"""Events that come after the end of their cause."""
_REQUESTS = frozenset({Cause.SYSCALL, Cause.ACCESS})

Who = tuple[int, int]
"""A process and one of its threads; zeros for the kernel itself."""


class Sink(Protocol):
    """The receiver of begins and ends."""

    def begin(self, who: Who, time: int, category: str, name: str, record: Record) -> None:
        """A slice begins; `record` is the first that shows it."""

    def end(self, who: Who, time: int, last: tuple[Record, ...]) -> None:
        """The innermost slice of a thread ends; `last` are the records with its result."""


@dataclass(slots=True)
class _Open:
    cause: Cause
    key: int
    last: int
    is_exception: bool = False
    """The slice began with an exception event, and ends with the exception, not with one fault."""
    results: list[Record] = field(default_factory=list)


class Slices:
    """The slices that are open now."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._who: Who = (0, 0)
        self._stack: list[_Open] = []

    def follow(self, record: Record) -> None:
        """Take a record: end the slices that it shows to be over, begin those that it shows first."""
        event = record.event
        if event.number in _AFTERWARDS:
            return
        who = (record.pid, record.tid)
        if who != self._who or event.number in _BEGINS:
            self.close()
            self._who = who
        self._show(record)
        if event is PAGE_FAULT_USER:
            self._begin(Cause.FAULT, record.fields["address"], record, is_exception=True)
        elif event is MM_FAULT:
            self._settle_fault(record)
        elif event.number in _ENDS and self._stack:
            self._stack[0].results.append(record)
            self._cut(0, record.time)

    def close(self) -> None:
        """End all slices: a request has ended, another thread is served, or records are missing."""
        self._cut(0)

    def _show(self, record: Record) -> None:
        """Make the stack equal to the causes of the record."""
        causes = record.causes
        keys = _keys(record)
        depth = 0
        for opened, cause, key in zip(self._stack, causes, keys, strict=False):
            if opened.cause is not cause or opened.key != key:
                break
            depth += 1
        self._cut(depth)
        for cause, key in list(zip(causes, keys, strict=True))[depth:]:
            self._begin(cause, key, record)
        for opened in self._stack:
            opened.last = record.time

    def _begin(self, cause: Cause, key: int, record: Record, *, is_exception: bool = False) -> None:
        self._stack.append(_Open(cause, key, record.time, is_exception))
        self._sink.begin(self._who, record.time, cause.name.lower(), _name(cause, record), record)

    def _settle_fault(self, record: Record) -> None:
        top = self._stack[-1]
        top.results.append(record)
        if not top.is_exception:
            self._cut(len(self._stack) - 1)

    def _cut(self, depth: int, time: int = 0) -> None:
        """End all slices except the outermost `depth`: at the time of their last record, or at `time` if that is
        later."""
        while len(self._stack) > depth:
            opened = self._stack.pop()
            self._sink.end(self._who, max(time, opened.last), tuple(opened.results))


def _keys(record: Record) -> list[int]:
    """Return a key for each cause: the number of a call, the address of the innermost fault."""
    causes = record.causes
    innermost = len(causes) - 1 - causes[::-1].index(Cause.FAULT) if Cause.FAULT in causes else -1
    return [
        record.nr if cause in _REQUESTS else record.address if at == innermost else 0 for at, cause in enumerate(causes)
    ]


def _name(cause: Cause, record: Record) -> str:
    if cause in _REQUESTS:
        # The record of a process that the reader may not see has no call.
        return call_name(record.nr) if record.pid else cause.name.lower()
    return "page fault" if cause is Cause.FAULT else cause.name.lower()
