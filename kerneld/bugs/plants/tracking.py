"""Mistakes of shadowpt_start and shadowpt_stop."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from kerneld.bugs.planting import Function, mute, plant, session_of, wrap
from kerneld.bugs.plants.closing import let_anyone, let_child
from kerneld.errors import SysError
from kerneld.mm.space.mm import MmStruct
from kerneld.shadowpt.session import ShadowPt, _find_mm

_VMA_CHANGES = (MmStruct.insert_vma, MmStruct.remove_vma, MmStruct.move_vma_bounds, MmStruct.set_vma_flags)


@plant("start-anyone")
def _start_anyone() -> None:
    let_anyone(ShadowPt.start)


@plant("stop-anyone")
def _stop_anyone() -> None:
    let_anyone(ShadowPt.stop)


@plant("start-child")
def _start_child() -> None:
    let_child(ShadowPt.start, ShadowPt.stop)


def _after_start(change: Function) -> None:
    """Let a function change the table's flags and frames after start; it gets those of before and of now."""

    @wrap(ShadowPt.start)
    def start(inner: Function, table: ShadowPt, caller: Any) -> None:
        session = session_of(table)
        before = None if session is None else (session.table._flags.copy(), session.table._pfns.copy())
        inner(table, caller)
        session = session_of(table)
        if session is None or before is None:
            return
        flags, pfns = session.table._flags.copy(), session.table._pfns.copy()
        change(session.layout, *before, flags, pfns)
        session.table.update(0, flags, pfns)
        session.table.publish()


@plant("start-adds-only")
def _start_adds_only() -> None:
    def change(layout: Any, flags: Any, _pfns: Any, now_flags: Any, _now_pfns: Any) -> None:
        now_flags |= flags & np.uint64(layout.anonymous)

    _after_start(change)


@plant("start-keeps-frames")
def _start_keeps_frames() -> None:
    def change(layout: Any, flags: Any, pfns: Any, now_flags: Any, now_pfns: Any) -> None:
        stale = ((flags & layout.mapped) != 0) & ((now_flags & layout.mapped) == 0) & (now_flags != 0)
        now_flags[stale] |= np.uint64(layout.mapped)
        now_pfns[stale] = pfns[stale]

    _after_start(change)


@plant("start-fills-nothing")
def _start_fills_nothing() -> None:
    def change(_layout: Any, flags: Any, pfns: Any, now_flags: Any, now_pfns: Any) -> None:
        now_flags[:], now_pfns[:] = flags, pfns

    _after_start(change)


@plant("start-vmas-only")
def _start_vmas_only() -> None:
    def change(layout: Any, _flags: Any, _pfns: Any, now_flags: Any, now_pfns: Any) -> None:
        now_flags &= ~np.uint64(layout.mapped)
        now_pfns[:] = 0

    _after_start(change)


@plant("start-twice-refused")
def _start_twice_refused() -> None:
    @wrap(ShadowPt.start)
    def start(inner: Function, table: ShadowPt, caller: Any) -> None:
        session = session_of(table)
        if session is not None and session.mm is not None and session.opener is caller:
            raise SysError(errno.EBUSY, "it tracks already")
        inner(table, caller)


@plant("start-once")
def _start_once() -> None:
    """After a stop no start tracks again: it fills the table only."""
    stopped: list[Any] = []

    @wrap(ShadowPt.stop)
    def stop(inner: Function, table: ShadowPt, caller: Any) -> None:
        inner(table, caller)
        stopped[:] = [session_of(table)]

    @wrap(ShadowPt.start)
    def start(inner: Function, table: ShadowPt, caller: Any) -> None:
        inner(table, caller)
        session = session_of(table)
        if session is not None and session in stopped:
            table._follow(session, None)


@plant("open-tracks")
def _open_tracks() -> None:
    @wrap(ShadowPt.open)
    def open_tracking(inner: Function, table: ShadowPt, *args: Any) -> Any:
        found = inner(table, *args)
        session: Any = session_of(table)
        if session is not None:
            table._follow(session, _find_mm(session.target))
        return found


@plant("stop-goes-on")
def _stop_goes_on() -> None:
    @wrap(ShadowPt.stop)
    def stop(_inner: Function, table: ShadowPt, caller: Any) -> None:
        table._get_session(caller)
        table.flush()


@plant("stop-vmas-only")
def _stop_vmas_only() -> None:
    """Faults go on to change the table after stop; mappings do not."""
    stopped: list[Any] = []

    @wrap(ShadowPt.stop)
    def stop(_inner: Function, table: ShadowPt, caller: Any) -> None:
        session = table._get_session(caller)
        table.flush()
        stopped[:] = [session.mm]

    @wrap(ShadowPt.start)
    def start(inner: Function, table: ShadowPt, caller: Any) -> None:
        stopped.clear()
        inner(table, caller)

    for change in _VMA_CHANGES:
        mute(change, lambda mm, *_args: any(mm is one for one in stopped))


@plant("stop-empties")
def _stop_empties() -> None:
    @wrap(ShadowPt.stop)
    def stop(inner: Function, table: ShadowPt, caller: Any) -> None:
        inner(table, caller)
        session = session_of(table)
        if session is not None:
            session.table.clear_flags()
            session.table.publish()


@plant("start-late")
def _start_late() -> None:
    """Start fills the table from the first page that is mapped on: the pages before it keep what they were."""

    def change(_layout: Any, flags: Any, pfns: Any, now_flags: Any, now_pfns: Any) -> None:
        first = int(np.argmax(now_flags != 0)) if now_flags.any() else len(now_flags)
        now_flags[:first], now_pfns[:first] = flags[:first], pfns[:first]

    _after_start(change)
