"""Mistakes of the tracking of mappings: hooks that are missing, and bounds that are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerneld.bugs.planting import Function, Seen, ignore, mute, plant, session_of, wrap
from kerneld.mm.calls import brk, mmap, mremap, stack
from kerneld.mm.space import munmap
from kerneld.mm.space.mm import MmStruct
from kerneld.shadowpt import describe as describing
from kerneld.shadowpt.describe import describe, describe_page
from kerneld.shadowpt.session import ShadowPt
from kerneld.shadowpt.table import ShadowTable
from kerneld.syscalls import process as process_calls
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, page_align

_RIGHTS = 7
"""VM_READ, VM_WRITE, VM_EXEC. Source: Linux v6.8 include/linux/mm.h."""


@plant("no-mmap-update")
def _no_mmap_update() -> None:
    mute(mmap.mmap_region)


class _In:
    """Whether a function is running."""

    depth = 0

    def __init__(self, function: Function) -> None:
        @wrap(function)
        def noted(inner: Function, *args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            try:
                return inner(*args, **kwargs)
            finally:
                self.depth -= 1


@plant("no-merge-update")
def _no_merge_update() -> None:
    mapping = _In(mmap.mmap_region)
    mute(MmStruct.move_vma_bounds, lambda *_args: mapping.depth > 0)


@plant("no-munmap-update")
def _no_munmap_update() -> None:
    mute(munmap.do_munmap)


def _is_of_one_mapping(mm: MmStruct, start: int, length: int, **_how: bool) -> bool:
    """Whether a munmap takes a part of one mapping away, and leaves a part."""
    end = start + page_align(length)
    vma = mm.vmas.find(start)
    return vma is not None and vma.start <= start and end <= vma.end and (vma.start < start or end < vma.end)


@plant("no-partial-munmap")
def _no_partial_munmap() -> None:
    mute(munmap.do_munmap, _is_of_one_mapping)


@plant("no-middle-munmap")
def _no_middle_munmap() -> None:
    """A mapping that becomes two is not seen."""

    def is_middle(mm: MmStruct, start: int, length: int, **_how: bool) -> bool:
        vma = mm.vmas.find(start)
        return vma is not None and vma.start < start and start + page_align(length) < vma.end

    mute(munmap.do_munmap, is_middle)


@plant("munmap-first-only")
def _munmap_first_only() -> None:
    first: list[Any] = [None]

    @wrap(munmap.do_munmap)
    def do_munmap(inner: Function, mm: MmStruct, start: int, length: int, **how: bool) -> None:
        vma = mm.vmas.find(start)
        first[0] = None if vma is None else max(vma.start, start)
        try:
            inner(mm, start, length, **how)
        finally:
            first[0] = None

    mute(munmap.unmap_vma, lambda _mm, _vma, start, _end: first[0] is not None and start != first[0])


@plant("no-brk-update")
def _no_brk_update() -> None:
    mute(brk.do_brk_flags)


@plant("no-brk-shrink")
def _no_brk_shrink() -> None:
    mute(brk.brk_in_pieces, lambda mm, new, **_kwargs: new < mm.brk)


@plant("no-growth-update")
def _no_growth_update() -> None:
    mute(stack.expand_stack)


@plant("no-exit-update")
def _no_exit_update() -> None:
    @wrap(ShadowPt.release)
    def release(_inner: Function, table: ShadowPt) -> None:
        session = session_of(table)
        if session is not None:
            table._follow(session, None)
            table.dirty.clear()


@plant("no-kill-update")
def _no_kill_update() -> None:
    """Only the exit call tells the table; a process that is killed leaves its last state there."""
    exiting = _In(process_calls.sys_exit_group)

    @wrap(ShadowPt.release)
    def release(inner: Function, table: ShadowPt) -> None:
        session = session_of(table)
        if exiting.depth:
            inner(table)
        elif session is not None:
            table._follow(session, None)
            table.dirty.clear()


@plant("no-execve-update")
def _no_execve_update() -> None:
    @wrap(ShadowPt.exec_mmap)
    def exec_mmap(_inner: Function, table: ShadowPt, _new_mm: MmStruct) -> None:
        session = session_of(table)
        if session is not None:
            table._follow(session, None)


@plant("no-mremap-update")
def _no_mremap_update() -> None:
    mute(mremap.move_vma)


@plant("file-anonymous")
def _file_anonymous() -> None:
    @wrap(describing._vma_flags)
    def vma_flags(inner: Function, vma: Any, layout: Any) -> int:
        return int(inner(vma, layout)) | int(layout.anonymous)


@plant("never-anonymous")
def _never_anonymous() -> None:
    @wrap(describing._vma_flags)
    def vma_flags(inner: Function, vma: Any, layout: Any) -> int:
        return int(inner(vma, layout)) & ~int(layout.anonymous & ~layout.allocated)


@plant("prot-none-unallocated")
def _prot_none_unallocated() -> None:
    @wrap(describing._vma_flags)
    def vma_flags(inner: Function, vma: Any, layout: Any) -> int:
        return int(inner(vma, layout)) if int(vma.vm_flags) & _RIGHTS else 0


@plant("anonymous-stays")
def _anonymous_stays() -> None:
    """ANONYMOUS is set and never unset while the page is allocated."""
    anonymous, allocated = 2, 1

    @wrap(ShadowTable.update)
    def update(inner: Function, table: ShadowTable, first: int, flags: Any, pfns: Any) -> None:
        old = table._flags[first : first + len(flags)] & np.uint64(anonymous)
        inner(table, first, np.where(flags & np.uint64(allocated), flags | old, flags), pfns)


def _tell_only(is_told: Function) -> None:
    """Tell the table only of some changes: `is_told` gets the bounds of the change and of the table."""

    @wrap(ShadowPt.invalidate_range)
    def invalidate_range(inner: Function, table: ShadowPt, start: int, end: int) -> None:
        session = session_of(table)
        if session is not None and is_told(start, end, session.start, session.end):
            inner(table, start, end)


@plant("across-start-missed")
def _across_start_missed() -> None:
    _tell_only(lambda start, _end, low, _high: start >= low)


@plant("across-end-missed")
def _across_end_missed() -> None:
    _tell_only(lambda _start, end, _low, high: end <= high)


@plant("first-page-missed")
def _first_page_missed() -> None:
    @wrap(ShadowPt.invalidate_range)
    def invalidate_range(inner: Function, table: ShadowPt, start: int, end: int) -> None:
        session = session_of(table)
        low = 0 if session is None else session.start + PAGE_SIZE
        if end > low:
            inner(table, max(start, low), end)


@plant("last-page-missed")
def _last_page_missed() -> None:
    @wrap(ShadowPt.invalidate_range)
    def invalidate_range(inner: Function, table: ShadowPt, start: int, end: int) -> None:
        session = session_of(table)
        high = end if session is None else session.end - PAGE_SIZE
        if start < high:
            inner(table, start, min(end, high))


@plant("outside-clamped")
def _outside_clamped() -> None:
    """A page after the range is taken for the last page of it."""

    @wrap(ShadowPt.invalidate_range)
    def invalidate_range(inner: Function, table: ShadowPt, start: int, end: int) -> None:
        session = session_of(table)
        inner(table, start, end)
        if session is not None and session.mm is not None and start == session.end:
            flags, pfn = describe_page(session.mm, start, session.layout)
            session.table.update_one(session.table.nr_pages - 1, flags, pfn)
            session.table.publish()


@plant("any-process")
def _any_process() -> None:
    """The hook of mmap does not ask whose mapping it is."""
    seen = Seen()

    @wrap(mmap.mmap_region)
    def mmap_region(inner: Function, mm: MmStruct, addr: int, length: int, *args: Any, **kwargs: Any) -> Any:
        vma = inner(mm, addr, length, *args, **kwargs)
        session = seen.session
        if session is None or session.mm is None or session.mm is mm:
            return vma
        start, end = max(addr, session.start), min(addr + length, session.end)
        if start < end:
            session.table.update((start - session.start) >> PAGE_SHIFT, *describe(mm, start, end, session.layout))
            session.table.publish()
        return vma


@plant("no-updates")
def _no_updates() -> None:
    """The table is what start made it, for ever."""
    ignore(ShadowPt.invalidate_range)
