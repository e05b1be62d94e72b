"""Mistakes of shadowpt_open: callers, targets, ranges."""

from __future__ import annotations

import errno
from typing import Any

from kerneld.bugs.planting import Function, opener_of, plant, wrap
from kerneld.errors import SysError
from kerneld.shadowpt.refusal import NoTarget
from kerneld.shadowpt.session import ShadowPt
from kerneld.syscalls import shadow
from shared.uapi.page import PAGE_MASK, PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE, USER_SHADOW_PT


class _Inside:
    """Which handler of the shadow page table's calls is running."""

    handler: Function | None = None

    def __init__(self, *handlers: Function) -> None:
        for handler in handlers:
            self._note(handler)

    def _note(self, handler: Function) -> None:
        @wrap(handler)
        def noted(inner: Function, call: Any) -> Any:
            self.handler = handler
            try:
                return inner(call)
            finally:
                self.handler = None


def _let_anyone(handler: Function) -> None:
    inside = _Inside(handler)

    @wrap(shadow._check_superuser)
    def check(inner: Function, call: Any) -> None:
        if inside.handler is not handler:
            inner(call)


@plant("open-anyone")
def _open_anyone() -> None:
    _let_anyone(shadow.shadowpt_open)


@plant("contents-anyone")
def _contents_anyone() -> None:
    _let_anyone(shadow.shadowpt_page_contents)


@plant("open-second")
def _open_second() -> None:
    @wrap(ShadowPt.why_busy)
    def why_busy(_inner: Function, table: ShadowPt) -> str:
        opener = opener_of(table)
        if opener is not None:
            table.opener_gone(opener)
        return ""


@plant("open-second-self")
def _open_second_self() -> None:
    @wrap(ShadowPt.open)
    def open_again(inner: Function, table: ShadowPt, opener: Any, *args: Any) -> Any:
        if opener_of(table) is opener:
            table.opener_gone(opener)
        return inner(table, opener, *args)


@plant("open-esrch")
def _open_esrch() -> None:
    @wrap(ShadowPt.open)
    def open_or_esrch(inner: Function, table: ShadowPt, opener: Any, target: Any, *args: Any) -> Any:
        if isinstance(target, NoTarget):
            raise SysError(errno.ESRCH, target.why)
        return inner(table, opener, target, *args)


@plant("open-pid-zero")
def _open_pid_zero() -> None:
    @wrap(shadow._find_target)
    def find_target(inner: Function, call: Any, pid: int) -> Any:
        return call.process if pid == 0 else inner(call, pid)


@plant("open-thread")
def _open_thread() -> None:
    @wrap(shadow._find_target)
    def find_target(inner: Function, call: Any, pid: int) -> Any:
        for process in call.kernel.processes.values():
            if any(thread.tid == pid for thread in process.threads):
                return process
        return inner(call, pid)


def _change_bounds(change: Function) -> None:
    """Let a function change the bounds that a caller of open gives, before they are looked at."""

    @wrap(shadow.shadowpt_open)
    def open_changed(inner: Function, call: Any) -> Any:
        if len(call.data) == USER_SHADOW_PT.size:
            start, end, entries = USER_SHADOW_PT.unpack(call.data)
            call.data = USER_SHADOW_PT.pack(*change(start, end), entries)
        return inner(call)


@plant("open-reversed")
def _open_reversed() -> None:
    _change_bounds(lambda start, end: (min(start, end), max(start, end)))


@plant("open-start-rounded")
def _open_start_rounded() -> None:
    _change_bounds(lambda start, end: (start & PAGE_MASK, end))


@plant("open-end-rounded")
def _open_end_rounded() -> None:
    _change_bounds(lambda start, end: (start, end & PAGE_MASK))


@plant("truncate-start")
def _truncate_start() -> None:
    _change_bounds(lambda start, end: (max(start, end - MAX_SPT_RANGE), end))


@plant("limit-excluded")
def _limit_excluded() -> None:
    _change_bounds(lambda start, end: (start, end - PAGE_SIZE if end - start == MAX_SPT_RANGE else end))


@plant("truncate-silently")
def _truncate_silently() -> None:
    @wrap(shadow.shadowpt_open)
    def open_silently(inner: Function, call: Any) -> Any:
        given = call.data
        answer = inner(call)
        return answer._replace(data=given) if hasattr(answer, "_replace") else _with_data(answer, given)


def _with_data(answer: Any, data: bytes) -> Any:
    return type(answer)(answer.ret, data, fds=answer.fds)


@plant("truncate-refused")
def _truncate_refused() -> None:
    @wrap(ShadowPt.open)
    def open_short(inner: Function, table: ShadowPt, opener: Any, target: Any, start: int, end: int, *args: Any) -> Any:
        if end - start > MAX_SPT_RANGE:
            raise SysError(errno.EINVAL, "the range is over the limit")
        return inner(table, opener, target, start, end, *args)


@plant("open-failure-keeps-busy")
def _open_failure_keeps_busy() -> None:
    holders: list[Any] = []

    @wrap(ShadowPt.open)
    def open_and_keep(inner: Function, table: ShadowPt, opener: Any, *args: Any) -> Any:
        if holders:
            raise SysError(errno.EBUSY, "an open that failed has left the table busy")
        try:
            return inner(table, opener, *args)
        except SysError:
            if opener_of(table) is None:
                holders.append(opener)
            raise

    @wrap(ShadowPt.opener_gone)
    def opener_gone(inner: Function, table: ShadowPt, process: Any) -> None:
        if process in holders:
            holders.remove(process)
        inner(table, process)


def parent_of(pid: int) -> int:
    """Return the parent of a real process; 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rsplit(b")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
