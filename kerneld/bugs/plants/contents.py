"""Mistakes of shadowpt_page_contents."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerneld.bugs.planting import Function, plant, session_of, wrap
from kerneld.errors import SysError
from kerneld.hw.paging import pte_pfn
from kerneld.shadowpt.session import ShadowPt
from kerneld.task.task import Process
from shared.uapi.page import PAGE_SIZE

_SHORT = 8


def _instead_of_refusal(is_allowed: Function) -> None:
    """Give out the frame where page_contents refuses, if `is_allowed` is true of the table and the frame."""

    @wrap(ShadowPt.page_contents)
    def page_contents(inner: Function, table: ShadowPt, pfn: int) -> bytes:
        try:
            return bytes(inner(table, pfn))
        except SysError:
            if 0 < pfn < table._ram.nr_frames and is_allowed(table, pfn):
                return bytes(table._ram.page(pfn))
            raise


@plant("contents-any-frame")
def _contents_any_frame() -> None:
    _instead_of_refusal(lambda table, _pfn: session_of(table) is not None)


@plant("contents-closed")
def _contents_closed() -> None:
    _instead_of_refusal(lambda table, _pfn: session_of(table) is None)


@plant("contents-whole-target")
def _contents_whole_target() -> None:
    def is_of_target(table: ShadowPt, pfn: int) -> bool:
        session = session_of(table)
        if session is None or not isinstance(session.target, Process) or session.target.mm is None:
            return False
        mm = session.target.mm
        walk = mm.page_table.walk
        return any(bool(np.any(pte_pfn(walk.entries(vma.start, vma.end)) == np.uint64(pfn))) for vma in mm.vmas)

    _instead_of_refusal(is_of_target)


@plant("contents-stale")
def _contents_stale() -> None:
    given: set[int] = set()

    @wrap(ShadowPt.open)
    def open_new(inner: Function, table: ShadowPt, *args: Any) -> Any:
        given.clear()
        return inner(table, *args)

    @wrap(ShadowPt.start)
    def start(inner: Function, table: ShadowPt, caller: Any) -> None:
        inner(table, caller)
        session = session_of(table)
        if session is not None:
            given.update(int(pfn) for pfn in session.table._pfns)

    _instead_of_refusal(lambda table, pfn: session_of(table) is not None and pfn in given)


@plant("contents-short")
def _contents_short() -> None:
    @wrap(ShadowPt.page_contents)
    def page_contents(inner: Function, table: ShadowPt, pfn: int) -> bytes:
        return bytes(inner(table, pfn)[: PAGE_SIZE - _SHORT]) + bytes(_SHORT)


@plant("contents-first-copy")
def _contents_first_copy() -> None:
    copies: dict[int, bytes] = {}

    @wrap(ShadowPt.open)
    def open_new(inner: Function, table: ShadowPt, *args: Any) -> Any:
        copies.clear()
        return inner(table, *args)

    @wrap(ShadowPt.page_contents)
    def page_contents(inner: Function, table: ShadowPt, pfn: int) -> bytes:
        return copies.setdefault(pfn, bytes(inner(table, pfn)))
