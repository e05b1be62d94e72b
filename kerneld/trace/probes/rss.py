"""Resident pages: records the changed counters of address spaces at the end of a request.

Owns nothing: the tracing object holds the changed and the last recorded counters. Differs from Linux: there an event
comes with each change of a counter (batched by thread). Here it comes at the end of the request, with the counters that
/proc shows.
Answers to Linux v6.8 mm/memory.c:mm_trace_rss_stat().
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pages import Pages
from kerneld.task.table import ProcessTable
from kerneld.task.task import Process
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from shared.trace.events import RSS_STAT
from shared.uapi.page import PAGE_SHIFT

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing


def _of_primitive(function: Function) -> None:
    """Wrap a primitive that changes the counters of its address space."""

    @probe(function, RSS_STAT)
    def _change(tracing: Tracing, inner: Function) -> Function:
        changed = tracing.rss_changed

        def change(self: Pages, *args: Any) -> Any:
            changed[self.number] = self.rss
            return inner(self, *args)

        return change


for _primitive in (
    Pages.set_pte, Pages.swap_in_pte, Pages.replace_pte, Pages.set_ptes, Pages.set_cached_ptes, Pages.share_ptes,
    Pages.share_swap_ptes, Pages.unmap_frames, Pages._zap_ptes, Pages._zap_huge_pmd, Pages.zap_swapped,
    Pages.zap_cached, Pages.set_huge_pmd,
):  # fmt: skip
    _of_primitive(_primitive)


@probe(ProcessTable.add, RSS_STAT)
def _add(tracing: Tracing, inner: Function) -> Function:
    """The counters of a process are recorded from its beginning, with its pages from a fork."""

    def add(self: ProcessTable, process: Process) -> None:
        inner(self, process)
        note_rss(tracing, process)

    return add


@probe(Process.exec_mmap, RSS_STAT)
def _exec_mmap(tracing: Tracing, inner: Function) -> Function:
    def exec_mmap(self: Process, new_mm: MmStruct) -> None:
        inner(self, new_mm)
        note_rss(tracing, self)

    return exec_mmap


def note_rss(tracing: Tracing, process: Process) -> None:
    """Note that all counters of a process have to be recorded."""
    mm = process.mm
    if mm is not None:
        tracing.rss_changed[mm.number] = mm.rss
        tracing.rss_told.pop(mm.number, None)


def tell_rss(tracing: Tracing) -> None:
    """Record the changed counters of all address spaces that belong to a process."""
    point, told = tracing.point(RSS_STAT), tracing.rss_told
    for number, rss in tracing.rss_changed.items():
        owner = tracing.find_pid(number)
        process = tracing.processes.get(owner)
        if process is None or process.mm is None or process.mm.number != number:
            told.pop(number, None)
            continue
        counters = tuple(rss.counts)
        before = told.get(number) or (-1,) * len(counters)
        told[number] = counters
        is_current = tracing.current.pid == owner
        for member, pages in enumerate(counters):
            if pages != before[member]:
                point.emit(owner, number, is_current, member, pages << PAGE_SHIFT)
    tracing.rss_changed.clear()
