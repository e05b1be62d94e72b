"""Faults: their cause, how they are settled, and the fault as the cause of other events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerneld.mm.fault.cow import wp_page_copy, wp_page_reuse, wp_page_shared
from kerneld.mm.fault.fault import do_anonymous_page, do_fault, do_read_fault, do_swap_page, handle_mm_fault
from kerneld.mm.fault.populate import _fill_anonymous
from kerneld.mm.fault.thp import _fault_in_one, do_huge_pmd_anonymous_page, do_huge_pmd_wp_page
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pagewalk import Leaf
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_SHARED
from kerneld.task.task import Thread
from kerneld.task.trap import exc_page_fault
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from shared.trace.events import MM_FAULT, PAGE_FAULT_USER, Cause, FaultKind
from shared.trace.record import push_cause

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing

_INNERMOST = 0xF


@probe(exc_page_fault)
def _exc_page_fault(tracing: Tracing, inner: Function) -> Function:
    """The exception is the cause of the following events, also of a grown stack or a signal."""
    point, now = tracing.point(PAGE_FAULT_USER), tracing.current

    def exc_page_fault(thread: Thread, error_code: int, address: int) -> None:
        if point.traces:
            point.emit(thread.process.pid, address, error_code)
        causes, at = now.causes, now.address
        now.causes, now.address = push_cause(causes, Cause.FAULT), address
        try:
            inner(thread, error_code, address)
        finally:
            now.causes, now.address = causes, at

    return exc_page_fault


@probe(handle_mm_fault)
def _handle_mm_fault(tracing: Tracing, inner: Function) -> Function:
    point, now = tracing.point(MM_FAULT), tracing.current

    def handle_mm_fault(mm: MmStruct, vma: Vma, address: int, write: bool) -> int:
        causes, at = now.causes, now.address
        if causes & _INNERMOST != Cause.FAULT:
            now.causes = push_cause(causes, Cause.FAULT)
        now.address = address
        tracing.fault_kind, tracing.fault_pages = FaultKind.SPURIOUS, 1
        try:
            result: int = inner(mm, vma, address, write)
            if point.traces:
                point.emit(
                    tracing.owner(mm.number), mm.number, write, address, tracing.fault_pages, tracing.fault_kind, result
                )
            return result
        finally:
            now.causes, now.address = causes, at

    return handle_mm_fault


@probe(_fill_anonymous)
def _fill_range(tracing: Tracing, inner: Function) -> Function:
    """Many first faults are taken together, and get one record."""
    point, now = tracing.point(MM_FAULT), tracing.current

    def _fill_anonymous(mm: MmStruct, vma: Vma, leaf: Leaf, write: bool) -> None:
        causes, at = now.causes, now.address
        now.causes, now.address = push_cause(causes, Cause.FAULT), leaf.start
        before = mm.range_faults
        try:
            inner(mm, vma, leaf, write)
            count = mm.range_faults - before
            if count and point.traces:
                kind = FaultKind.ANONYMOUS if write else FaultKind.ZERO_PAGE
                point.emit(tracing.owner(mm.number), mm.number, write, leaf.start, count, kind, 0)
        finally:
            now.causes, now.address = causes, at

    return _fill_anonymous


@probe(_fault_in_one)
def _fault_in_huge(tracing: Tracing, inner: Function) -> Function:
    point, now = tracing.point(MM_FAULT), tracing.current

    def _fault_in_one(mm: MmStruct, vma: Vma, vaddr: int, write: bool) -> bool:
        causes, at = now.causes, now.address
        now.causes, now.address = push_cause(causes, Cause.FAULT), vaddr
        tracing.fault_kind, tracing.fault_pages = FaultKind.SPURIOUS, 1
        before = mm.range_faults
        try:
            settled: bool = inner(mm, vma, vaddr, write)
            if mm.range_faults != before and point.traces:
                point.emit(
                    tracing.owner(mm.number), mm.number, write, vaddr, tracing.fault_pages, tracing.fault_kind, 0
                )  # fmt: skip
            return settled
        finally:
            now.causes, now.address = causes, at

    return _fault_in_one


@probe(do_anonymous_page, MM_FAULT)
def _do_anonymous_page(tracing: Tracing, inner: Function) -> Function:
    def do_anonymous_page(mm: MmStruct, vma: Vma, vaddr: int, pte: int, write: bool) -> int:
        tracing.fault_kind = FaultKind.ANONYMOUS if write else FaultKind.ZERO_PAGE
        result: int = inner(mm, vma, vaddr, pte, write)
        return result

    return do_anonymous_page


@probe(do_fault, MM_FAULT)
def _do_fault(tracing: Tracing, inner: Function) -> Function:
    def do_fault(mm: MmStruct, vma: Vma, vaddr: int, pte: int, write: bool) -> int:
        tracing.fault_kind = FaultKind.COW if write and not vma.vm_flags & VM_SHARED else FaultKind.FILE
        result: int = inner(mm, vma, vaddr, pte, write)
        return result

    return do_fault


@probe(do_read_fault, MM_FAULT)
def _do_read_fault(tracing: Tracing, inner: Function) -> Function:
    def do_read_fault(mm: MmStruct, vma: Vma, vaddr: int, pte: int) -> int:
        before = mm.rss.resident_pages
        result: int = inner(mm, vma, vaddr, pte)
        # Reclaim may have taken pages away during the fault. Another event records that.
        tracing.fault_pages = max(1, mm.rss.resident_pages - before)
        if tracing.fault_pages > 1:
            tracing.fault_kind = FaultKind.FAULT_AROUND
        return result

    return do_read_fault


@probe(do_swap_page, MM_FAULT)
def _do_swap_page(tracing: Tracing, inner: Function) -> Function:
    def do_swap_page(mm: MmStruct, vma: Vma, vaddr: int, pte: int, entry: int, write: bool) -> int:
        result: int = inner(mm, vma, vaddr, pte, entry, write)
        tracing.fault_kind = FaultKind.SWAP_IN
        return result

    return do_swap_page


@probe(wp_page_copy, MM_FAULT)
def _wp_page_copy(tracing: Tracing, inner: Function) -> Function:
    def wp_page_copy(mm: MmStruct, vma: Vma, vaddr: int, pte: int, source: int) -> int:
        tracing.fault_kind = FaultKind.COW
        result: int = inner(mm, vma, vaddr, pte, source)
        return result

    return wp_page_copy


@probe(wp_page_reuse, MM_FAULT)
def _wp_page_reuse(tracing: Tracing, inner: Function) -> Function:
    def wp_page_reuse(mm: MmStruct, vma: Vma, vaddr: int, pte: int, entry: int) -> None:
        tracing.fault_kind = FaultKind.REUSE
        inner(mm, vma, vaddr, pte, entry)

    return wp_page_reuse


@probe(wp_page_shared, MM_FAULT)
def _wp_page_shared(tracing: Tracing, inner: Function) -> Function:
    def wp_page_shared(mm: MmStruct, vma: Vma, vaddr: int, pte: int, entry: int) -> int:
        result: int = inner(mm, vma, vaddr, pte, entry)
        tracing.fault_kind = FaultKind.SHARED
        return result

    return wp_page_shared


@probe(do_huge_pmd_anonymous_page, MM_FAULT)
def _do_huge_pmd_anonymous_page(tracing: Tracing, inner: Function) -> Function:
    def do_huge_pmd_anonymous_page(mm: MmStruct, vma: Vma, haddr: int, write: bool) -> bool:
        settled: bool = inner(mm, vma, haddr, write)
        if settled:
            tracing.fault_kind = FaultKind.HUGE if write else FaultKind.HUGE_ZERO_PAGE
            tracing.fault_pages = HPAGE_PMD_NR
        return settled

    return do_huge_pmd_anonymous_page


@probe(do_huge_pmd_wp_page, MM_FAULT)
def _do_huge_pmd_wp_page(tracing: Tracing, inner: Function) -> Function:
    def do_huge_pmd_wp_page(mm: MmStruct, vma: Vma, haddr: int, pmd: int) -> bool:
        reused: bool = inner(mm, vma, haddr, pmd)
        if reused:
            tracing.fault_kind, tracing.fault_pages = FaultKind.REUSE, HPAGE_PMD_NR
        return reused

    return do_huge_pmd_wp_page
