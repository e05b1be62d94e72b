"""`inspector --replay FILE` in plain text: what is in a record, a process at a moment, what happened to its pages.

Pure: lines out. `inspector.viewing` opens the file and prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from inspector.address import Span
from shared.recording.address_space import AddressSpace, Vma
from shared.recording.compare import compare_pages, compare_vmas
from shared.recording.machine import Machine
from shared.recording.marks import marks_of
from shared.recording.physical import entry_pfn, is_swap, swap_slot
from shared.recording.reader import Recording
from shared.recording.search import entry_changes, frame_history
from shared.terminal import one_line
from shared.trace.event import PRESENT, PSE, SPECIAL
from shared.trace.record import Record
from shared.trace.text import cause_text, fields_text
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

_MARKS = ((1 << 5, "accessed"), (1 << 6, "dirty"))
_PRESENT, _RW = 1 << 0, 1 << 1
_RIGHTS = ((0x1, "r"), (0x2, "w"), (0x4, "x"))
_MAYSHARE = 0x80


def summary_lines(recording: Recording, path: str) -> Iterator[str]:
    """Yield what a record is, and its processes, as they are at its end."""
    machine = recording.machine(recording.nr_events)
    seconds = max(0, machine.time - recording.start_time) / 1e9
    began = when(recording, recording.start_time)
    cut = " The file is cut off there." if recording.is_cut else ""
    yield f"{one_line(path)}: {recording.nr_events} events in {seconds:.3f} s, from {began} on.{cut}"
    if not machine.is_whole:
        yield "Events are missing before its end."
    yield f"{'PID':>9} {'PARENT':>9} {'MAPPED':>9}  NAME"
    for task in sorted(machine.tasks.values(), key=lambda task: task.pid):
        mm = machine.mms.get(task.mm)
        pages = "-" if mm is None else str(mm.rss[0] + mm.rss[1] + mm.rss[3])
        ended = (
            ""
            if task.exit_signal is None
            else "  (has exited)"
            if not task.exit_signal
            else f"  (signal {task.exit_signal})"
        )
        viewer = "  (the recorder)" if task.pid == recording.head.get("viewer") else ""
        yield f"{task.pid:>9} {task.ppid or '-':>9} {pages:>9}  {one_line(task.comm)}{ended}{viewer}"
    for mark in marks_of(recording.head):
        yield f"Mark {mark.name}: event {mark.at}"


def when(recording: Recording, monotonic_ns: int) -> str:
    """Return the time of day of a moment."""
    head = recording.head
    unix_ns = int(head["unix_ns"]) - int(head["monotonic_ns"]) + monotonic_ns
    return f"{datetime.fromtimestamp(unix_ns / 1e9):%H:%M:%S.%f}"


def find_mm(machine: Machine, pid: int) -> AddressSpace | None:
    """Return the address space that a process has at a moment, or None."""
    task = machine.tasks.get(pid)
    return None if task is None else machine.mms.get(task.mm)


def vma_name(machine: Machine, mm: AddressSpace, vma: Vma) -> str:
    """Return the name of a VMA as /proc/PID/maps has it."""
    file = machine.files.get(vma.mapping)
    if file is not None:
        return one_line(file.name)
    if vma.start < mm.brk and vma.end > mm.start_brk:
        return "[heap]"
    return "[stack]" if vma.start <= mm.start_stack <= vma.end else ""


def vma_text(machine: Machine, mm: AddressSpace, vma: Vma) -> str:
    """Return a VMA in words."""
    rights = "".join(letter if vma.vm_flags & flag else "-" for flag, letter in _RIGHTS)
    kind = "s" if vma.vm_flags & _MAYSHARE else "p"
    mapped = sum(run.nr_pages for run in mm.runs(vma.start, vma.end) if run.entry & PRESENT)
    name = vma_name(machine, mm, vma)
    return (
        f"{vma.start:#014x}-{vma.end:#014x} {rights}{kind} {vma.nr_pages:>7} pages {mapped:>7} mapped  {name}".rstrip()
    )


def maps_lines(machine: Machine, mm: AddressSpace) -> Iterator[str]:
    """Yield the VMAs of an address space."""
    for _start, vma in sorted(mm.vmas.items()):
        yield vma_text(machine, mm, vma)


def entry_text(entry: int) -> str:
    """Return a page-table entry in words."""
    if not entry:
        return "no entry"
    if is_swap(entry):
        return f"swap slot {swap_slot(entry)}"
    rights = "PROT_NONE" if not entry & _PRESENT else "writable" if entry & _RW else "read-only"
    kind = " ".join(["huge"] * bool(entry & PSE) + ["zero page" if entry & SPECIAL else "page"])
    marks = [name for bit, name in _MARKS if entry & bit]
    return " ".join([f"pfn {entry_pfn(entry):#x}", *([kind] if kind != "page" else []), rights, *marks])


def table_lines(mm: AddressSpace, span: Span) -> Iterator[str]:
    """Yield the entries of a range, in runs, with the empty parts."""
    at = span.start
    for run in mm.runs(span.start, span.end):
        if run.vaddr > at:
            yield pages_text(" ", at, (run.vaddr - at) >> PAGE_SHIFT, "no entry")
        yield pages_text(" ", run.vaddr, run.nr_pages, entry_text(run.entry))
        at = run.vaddr + (run.nr_pages << PAGE_SHIFT)
    if at < span.end:
        yield pages_text(" ", at, (span.end - at) >> PAGE_SHIFT, "no entry")


def pages_text(mark: str, vaddr: int, nr_pages: int, text: str) -> str:
    """Return a line about pages in a row."""
    pages = "page " if nr_pages == 1 else "pages"
    return f"{mark} {vaddr:#014x}-{vaddr + nr_pages * PAGE_SIZE:#014x} {nr_pages:>7} {pages}  {text}"


def event_prefix(recording: Recording, number: int, record: Record) -> str:
    """Return the number and the time of an event."""
    return f"{number:>8}  {when(recording, record.time)}"


def change_lines(recording: Recording, mm: int, span: Span, first: int) -> Iterator[str]:
    """Yield what happened to the entries of a range from event `first` on, each with its cause."""
    for change in entry_changes(recording, mm, span.start, span.end, first):
        mark = "+" if not change.old else "-" if not change.new else "*"
        cause = cause_text(change.record)
        text = f"{entry_text(change.old)} -> {entry_text(change.new)}"
        prefix = event_prefix(recording, change.number, change.record)
        yield f"{prefix}  {mark} {change.vaddr:#014x}  {text}" + (f"  ({cause})" if cause else "")


def frame_lines(recording: Recording, pfn: int) -> Iterator[str]:
    """Yield the events that name a frame: when did it change hands?"""
    for number, record in frame_history(recording, pfn):
        cause = cause_text(record)
        who = f"  process {record.owner}" if record.owner else ""
        text = f"{event_prefix(recording, number, record)}  {record.event.name}{who}  {fields_text(record)}"
        yield text + (f"  ({cause})" if cause else "")


def event_line(recording: Recording, number: int) -> str:
    """Return the event that led to a moment; "" for the beginning."""
    record = recording.record(number - 1) if number else None
    if record is None:
        return ""
    cause = cause_text(record)
    return f"{event_prefix(recording, number - 1, record)}  {record.event.name}  {fields_text(record)}" + (
        f"  ({cause})" if cause else ""
    )


def compare_lines(
    machines: tuple[Machine, Machine], mms: tuple[AddressSpace, AddressSpace], span: Span | None
) -> Iterator[str]:
    """Yield what came (+), went (-), changed (*) and moved (>) between two moments of an address space."""
    for vma_change in compare_vmas(*mms):
        side = 1 if vma_change.after is not None else 0
        vma = vma_change.after or vma_change.before
        assert vma is not None
        if span is None or (vma.start < span.end and span.start < vma.end):
            yield f"{vma_change.how.value} {vma_text(machines[side], mms[side], vma)}"
    bounds = (0, 1 << 47) if span is None else (span.start, span.end)
    for change in compare_pages(*mms, *bounds):
        text = f"{entry_text(change.before)} -> {entry_text(change.after)}"
        moved = f"  from {change.came_from:#x}" if change.came_from else ""
        yield pages_text(change.how.value, change.vaddr, change.nr_pages, text + moved)
