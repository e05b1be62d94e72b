"""Mistakes of shadowpt_close, and of the end of the process that opened."""

from __future__ import annotations

import errno
import time
from typing import Any

from kerneld.bugs.planting import Function, opener_of, plant, session_of, wrap
from kerneld.bugs.plants.opening import parent_of
from kerneld.errors import SysError
from kerneld.shadowpt.session import ShadowPt
from kerneld.syscalls import process as process_calls
from kerneld.syscalls import shadow

_OWNER_CALLS = (ShadowPt.close, ShadowPt.start, ShadowPt.stop)


def let_anyone(call: Function) -> None:
    """Let every process make a call that only the opener may make."""

    @wrap(call)
    def by_anyone(inner: Function, table: ShadowPt, caller: Any) -> None:
        inner(table, opener_of(table) or caller)


def _note_opening() -> list[float]:
    """Return the place of the time at which a table was opened last, in seconds of the monotonic clock."""
    opened_at = [0.0]

    @wrap(ShadowPt.open)
    def open_noted(inner: Function, table: ShadowPt, *args: Any) -> Any:
        found = inner(table, *args)
        opened_at[0] = time.monotonic()
        return found

    return opened_at


def let_child(*calls: Function) -> None:
    """Let a process that the opener has forked since the open make these calls."""
    opened_at = _note_opening()
    for call in calls:

        @wrap(call)
        def by_child(inner: Function, table: ShadowPt, caller: Any) -> None:
            opener = opener_of(table)
            is_child = opener is not None and caller.start_time > opened_at[0] and parent_of(caller.pid) == opener.pid
            inner(table, opener if is_child else caller)


@plant("close-anyone")
def _close_anyone() -> None:
    let_anyone(ShadowPt.close)


@plant("close-child")
def _close_child() -> None:
    let_child(ShadowPt.close)


@plant("close-keeps-busy")
def _close_keeps_busy() -> None:
    _stay_busy(lambda _holder, _opener: True)


@plant("close-owner-stays")
def _close_owner_stays() -> None:
    _stay_busy(lambda holder, opener: holder is not opener)


def _stay_busy(is_refused: Function) -> None:
    """After close, refuse some opens until the process that closed has ended."""
    holders: list[Any] = []

    @wrap(ShadowPt.close)
    def close(inner: Function, table: ShadowPt, caller: Any) -> None:
        inner(table, caller)
        holders.append(caller)

    @wrap(ShadowPt.open)
    def open_if_free(inner: Function, table: ShadowPt, opener: Any, *args: Any) -> Any:
        if any(is_refused(holder, opener) for holder in holders):
            raise SysError(errno.EBUSY, "close has not reset the owner")
        return inner(table, opener, *args)

    @wrap(ShadowPt.opener_gone)
    def opener_gone(inner: Function, table: ShadowPt, process: Any) -> None:
        holders[:] = [holder for holder in holders if holder is not process]
        inner(table, process)


@plant("close-while-tracking-refused")
def _close_while_tracking_refused() -> None:
    @wrap(ShadowPt.close)
    def close(inner: Function, table: ShadowPt, caller: Any) -> None:
        session = session_of(table)
        if session is not None and session.mm is not None and session.opener is caller:
            raise SysError(errno.EINVAL, "stop it first")
        inner(table, caller)


@plant("close-says-yes")
def _close_says_yes() -> None:
    @wrap(shadow.shadowpt_close)
    def close(inner: Function, call: Any) -> int:
        try:
            return int(inner(call))
        except SysError as error:
            if error.errno == errno.EINVAL:
                return 0
            raise


@plant("exit-no-cleanup")
def _exit_no_cleanup() -> None:
    _clean_up_if(lambda _table, _process: False)


def _clean_up_if(is_seen: Function) -> None:
    """Close the table at the end of its opener only in some cases; in the others it stays open for ever."""

    @wrap(ShadowPt.opener_gone)
    def opener_gone(inner: Function, table: ShadowPt, process: Any) -> None:
        if opener_of(table) is not process or is_seen(table, process):
            inner(table, process)


@plant("exit-call-only")
def _exit_call_only() -> None:
    exited: list[Any] = []

    @wrap(process_calls.sys_exit_group)
    def sys_exit_group(inner: Function, call: Any) -> Any:
        exited.append(call.process)
        return inner(call)

    _clean_up_if(lambda _table, process: process in exited)


@plant("exit-after-target")
def _exit_after_target() -> None:
    def is_target_alive(table: ShadowPt, _process: Any) -> bool:
        session: Any = session_of(table)
        return not session.target.ended

    _clean_up_if(is_target_alive)


@plant("exit-of-child-closes")
def _exit_of_child_closes() -> None:
    opened_at = _note_opening()

    @wrap(ShadowPt.opener_gone)
    def opener_gone(inner: Function, table: ShadowPt, process: Any) -> None:
        opener = opener_of(table)
        if opener is not None and process.start_time > opened_at[0] and parent_of(process.pid) in (opener.pid, 0):
            inner(table, opener)
        inner(table, process)


@plant("close-leaks")
def _close_leaks() -> None:
    """Each close keeps frames of the machine's RAM for ever."""

    @wrap(shadow.shadowpt_close)
    def close(inner: Function, call: Any) -> int:
        session = session_of(call.kernel.shadowpt)
        done = int(inner(call))
        if session is not None:
            call.kernel.frames.alloc_pages(max(1, session.table.nr_pages // 170))
        return done
