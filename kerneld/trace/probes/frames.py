"""Allocated and freed frames. Consecutive frames of one operation are one record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kerneld.mm.frames.buddy import Buddy
from kerneld.mm.frames.frames import Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, HPAGE_PMD_ORDER, HugeFrames
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from kerneld.trace.tracepoint import Tracepoint
from shared.trace.events import MM_PAGE_ALLOC, MM_PAGE_FREE
from shared.trace.state_events import MM_PAGE_ALLOC_ZONE_LOCKED, MM_PAGE_FREE_BATCHED, MM_PAGE_PCPU_DRAIN

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing


def emit_runs(point: Tracepoint, pfns: Pfns, *more: int) -> None:
    """Record frames in their order. Consecutive frames are one run."""
    if not len(pfns):
        return
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(pfns) != 1) + 1))
    counts = np.diff(np.append(firsts, len(pfns)))
    if len(firsts) == 1:
        point.emit(0, int(pfns[0]), len(pfns), 0, *more)
    else:
        point.emit_many(0, len(firsts), pfns[firsts], counts, 0, *more)


@probe(Frames.alloc_page, MM_PAGE_ALLOC)
def _alloc_page(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(MM_PAGE_ALLOC).emit

    def alloc_page(self: Frames, flags: int = 0, *, zero: bool = True) -> int:
        pfn: int = inner(self, flags, zero=zero)
        emit(0, pfn, 1, 0, flags)
        return pfn

    return alloc_page


@probe(Frames.alloc_pages, MM_PAGE_ALLOC)
def _alloc_pages(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(MM_PAGE_ALLOC)

    def alloc_pages(self: Frames, count: int, flags: int = 0, *, zero: bool = True) -> Pfns:
        pfns: Pfns = inner(self, count, flags, zero=zero)
        emit_runs(point, pfns, flags)
        return pfns

    return alloc_pages


@probe(HugeFrames.alloc, MM_PAGE_ALLOC)
def _alloc_huge(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(MM_PAGE_ALLOC).emit

    def alloc(self: HugeFrames, flags: int = 0) -> int:
        head: int = inner(self, flags)
        emit(0, head, HPAGE_PMD_NR, HPAGE_PMD_ORDER, flags)
        return head

    return alloc


@probe(Buddy.free_one, MM_PAGE_FREE)
def _free_one(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(MM_PAGE_FREE).emit

    def free_one(self: Buddy, pfn: int) -> None:
        emit(0, pfn, 1, 0)
        inner(self, pfn)

    return free_one


@probe(Buddy.free_many, MM_PAGE_FREE)
def _free_many(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(MM_PAGE_FREE)

    def free_many(self: Buddy, pfns: Pfns) -> None:
        emit_runs(point, pfns)
        inner(self, pfns)

    return free_many


@probe(Buddy.free_block, MM_PAGE_FREE)
def _free_block(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(MM_PAGE_FREE).emit

    def free_block(self: Buddy, pfn: int, order: int) -> None:
        emit(0, pfn, 1 << order, order)
        inner(self, pfn, order)

    return free_block


# Where free frames are: in the blocks of the buddy allocator, or on the per-cpu list in front of them


@probe(Buddy._fill_pcp, MM_PAGE_ALLOC_ZONE_LOCKED)
def _fill_pcp(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(MM_PAGE_ALLOC_ZONE_LOCKED)

    def _fill_pcp(self: Buddy) -> None:
        inner(self)
        emit_runs(point, np.array(self.pcp[::-1], dtype=np.int64))

    return _fill_pcp


@probe(Buddy.drain_pcp, MM_PAGE_PCPU_DRAIN)
def _drain_pcp(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(MM_PAGE_PCPU_DRAIN)

    def drain_pcp(self: Buddy, count: int) -> None:
        emit_runs(point, np.array(self.pcp[:count], dtype=np.int64))
        inner(self, count)

    return drain_pcp


@probe(Buddy.free_many, MM_PAGE_FREE_BATCHED)
def _free_batched(tracing: Tracing, inner: Function) -> Function:
    """After mm_page_free, which says the same of a frame that goes to the per-cpu list."""
    point = tracing.point(MM_PAGE_FREE_BATCHED)

    def free_many(self: Buddy, pfns: Pfns) -> None:
        inner(self, pfns)
        emit_runs(point, pfns)

    return free_many
