"""The shadow table: its sessions, and each change of its entries with the cause.

The table is written at the end of a request, from the VMAs and entries at that time. Their cause is over by then. So
each range is noted with its cause when it becomes dirty, and the records of its changes have that cause.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kerneld.shadowpt.fault_log import FaultLog
from kerneld.shadowpt.session import ShadowPt
from kerneld.shadowpt.table import ShadowTable
from kerneld.syscalls.dispatch import explain_refusal
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from shared.trace.events import (
    LAST_CONSTANT_PFN,
    SHADOWPT_CLOSE,
    SHADOWPT_OPEN,
    SHADOWPT_START,
    SHADOWPT_STOP,
    SPTE_UPDATE,
)
from shared.uapi.page import PAGE_SHIFT
from shared.uapi.shadowpt import USER_SHADOW_PT
from shared.uapi.syscalls import Nr

if TYPE_CHECKING:
    from kerneld.errors import SysError
    from kerneld.syscalls.answer import Call
    from kerneld.trace.tracing import Tracing

Words = npt.NDArray[np.uint64]
_MOST_NOTES = 64


class Note(NamedTuple):
    """The cause for which a range of the target became dirty."""

    start: int
    end: int
    causes: int
    address: int


class SpteLog:
    """The causes noted since the last flush, and the target of the table."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._point = tracing.point(SPTE_UPDATE)
        self.notes: list[Note] = []

    def note(self, start: int, end: int) -> None:
        """Note that a range becomes dirty now."""
        now = self._tracing.current
        if self.notes and (now.causes, now.address) == self.notes[-1][2:] and start <= self.notes[-1].end:
            last = self.notes.pop()
            start, end = min(start, last.start), max(end, last.end)
        elif len(self.notes) >= _MOST_NOTES:
            del self.notes[0]
        self.notes.append(Note(start, end, now.causes, now.address))

    def emit(self, nr_pages: int, vaddr: int, old: tuple[int, int], new: tuple[int, int]) -> None:
        """Record a change of a run of entries with its cause. `old` and `new` are frame and flags."""
        now = self._tracing.current
        causes, address = now.causes, now.address
        for note in reversed(self.notes):
            if note.start <= vaddr < note.end:
                now.causes, now.address = note.causes, note.address
                break
        self._point.emit(self._tracing.shadow_target, nr_pages, vaddr, *old, *new)
        now.causes, now.address = causes, address


def _constant(pfns: Words) -> npt.NDArray[np.bool_]:
    return pfns <= np.uint64(LAST_CONSTANT_PFN)


def _follows(pfns: Words) -> Words:
    """Return for each frame the frame of the next page in a run."""
    return np.where(_constant(pfns), pfns, pfns + np.uint64(1))


@probe(ShadowTable.update, SPTE_UPDATE)
def _update(tracing: Tracing, inner: Function) -> Function:
    def update(self: ShadowTable, first_index: int, flags: Words, pfns: Words) -> None:
        log = spte_log(tracing)
        last = first_index + len(flags)
        old_flags, old_pfns = self._flags[first_index:last].copy(), self._pfns[first_index:last].copy()
        inner(self, first_index, flags, pfns)
        for change in tell_entries(self._start, first_index, old_flags, old_pfns, flags, pfns):
            log.emit(*change)

    return update


Entry = tuple[int, int]
"""Frame and flags."""


def tell_entries(
    start: int, first_index: int, old_flags: Words, old_pfns: Words, flags: Words, pfns: Words
) -> Iterator[tuple[int, int, Entry, Entry]]:
    """Yield the runs of changed entries from `first_index` on of a table that begins at the address `start`.

    A run is its number of pages, its first address, and the old and the new entry of its first page.
    """
    at = np.flatnonzero((old_flags != flags) | (old_pfns != pfns))
    if not len(at):
        return
    olds, news, old_f, new_f = old_pfns[at], pfns[at], old_flags[at], flags[at]
    breaks = (np.diff(at) != 1) | (old_f[1:] != old_f[:-1]) | (new_f[1:] != new_f[:-1])
    breaks |= (olds[1:] != _follows(olds[:-1])) | (news[1:] != _follows(news[:-1]))
    firsts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
    for first, end in zip(firsts, [*firsts[1:], len(at)], strict=True):
        vaddr = start + ((first_index + int(at[first])) << PAGE_SHIFT)
        yield end - first, vaddr, (int(olds[first]), int(old_f[first])), (int(news[first]), int(new_f[first]))


@probe(ShadowTable.update_one, SPTE_UPDATE)
def _update_one(tracing: Tracing, inner: Function) -> Function:
    def update_one(self: ShadowTable, index: int, flags: int, pfn: int) -> None:
        old = int(self._pfns[index]), int(self._flags[index])
        inner(self, index, flags, pfn)
        if old != (pfn, flags):
            spte_log(tracing).emit(1, self._start + (index << PAGE_SHIFT), old, (pfn, flags))

    return update_one


@probe(ShadowPt.invalidate_range, SPTE_UPDATE)
def _invalidate_range(tracing: Tracing, inner: Function) -> Function:
    def invalidate_range(self: ShadowPt, start: int, end: int) -> None:
        inner(self, start, end)
        if self.dirty:
            spte_log(tracing).note(start, end)

    return invalidate_range


@probe(ShadowPt.flush, SPTE_UPDATE)
def _flush(tracing: Tracing, inner: Function) -> Function:
    def flush(self: ShadowPt) -> None:
        inner(self)
        spte_log(tracing).notes.clear()

    return flush


def spte_log(tracing: Tracing) -> SpteLog:
    """Return the log of this tracing's kernel."""
    log = tracing.spte_log
    if log is None:
        log = tracing.spte_log = SpteLog(tracing)
    return log


@probe(ShadowPt.open, SHADOWPT_OPEN)
def _open(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SHADOWPT_OPEN).emit

    def open_(self: ShadowPt, opener: Any, target: Any, start: int, end: int, *args: Any) -> Any:
        opened = inner(self, opener, target, start, end, *args)
        emit(target.pid, opener.pid, target.pid, start, opened[0], 0, os.fsencode(self.caveat))
        return opened

    return open_


@probe(FaultLog.open, SHADOWPT_OPEN)
def _open_faults(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SHADOWPT_OPEN).emit

    def open_(self: FaultLog, opener: Any, target: Any, size_bytes: int, *args: Any) -> Any:
        fds = inner(self, opener, target, size_bytes, *args)
        emit(target.pid, opener.pid, target.pid, 0, size_bytes, 0, b"")
        return fds

    return open_


@probe(FaultLog._close, SHADOWPT_CLOSE)
def _close_faults(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SHADOWPT_CLOSE).emit

    def _close(self: FaultLog, session: Any) -> None:
        inner(self, session)
        emit(session.target.pid, session.opener.pid, session.target.pid, 0, session.size_bytes)

    return _close


@probe(explain_refusal, SHADOWPT_OPEN)
def _refuse(tracing: Tracing, inner: Function) -> Function:
    """Record a refused open. The record is about the caller, because there may be no target."""
    emit = tracing.point(SHADOWPT_OPEN).emit

    def refuse(call: Call, nr: int, error: SysError) -> None:
        inner(call, nr, error)
        if nr == Nr.SHADOWPT_OPEN:
            opener = call.process.pid
            start, end, _entries = _unpack_range(call.data)
            emit(opener, opener, call.int_arg(0), start, end, -error.errno, os.fsencode(error.why))

    return refuse


def _unpack_range(data: bytes) -> tuple[int, ...]:
    return USER_SHADOW_PT.unpack(data) if len(data) == USER_SHADOW_PT.size else (0, 0, 0)


def _of_session(function: Function, event: Any) -> None:
    """Record the start or stop of a session after it is done, and a close before its session is dropped."""

    @probe(function, event)
    def _tell(tracing: Tracing, inner: Function) -> Function:
        emit = tracing.point(event).emit

        def tell(self: ShadowPt, *args: Any) -> Any:
            before = self._session
            result = inner(self, *args)
            session = self._session or before
            if session is not None:
                target = session.target.pid
                emit(target, session.opener.pid, target, session.start, session.end)
            return result

        return tell


_of_session(ShadowPt.start, SHADOWPT_START)
_of_session(ShadowPt.stop, SHADOWPT_STOP)
_of_session(ShadowPt._close, SHADOWPT_CLOSE)


@probe(ShadowPt._close, SPTE_UPDATE)
def _closing(tracing: Tracing, inner: Function) -> Function:
    """Keep the target of the session: the table is emptied after the session is dropped."""

    def _close(self: ShadowPt, session: Any) -> None:
        tracing.closing_target = session.target.pid
        try:
            inner(self, session)
        finally:
            tracing.closing_target = 0

    return _close
