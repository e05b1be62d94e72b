"""Where `--follow` looks: the places in which the followed processes have changed since the last print. Pure.

A place is a window of one process. A change counts if it changes the shadow page table: a VMA comes, goes or gets other
bounds; an entry gets a frame, another frame, or none. The window is the mapping that has changed, rounded outward to
64 KiB, so that its next growth lies inside. Children of fork are followed from their first moment on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from inspector.address import Span
from inspector.replay import find_mm
from shared.recording.address_space import AddressSpace, Vma
from shared.recording.machine import Machine
from shared.recording.physical import entry_pfn
from shared.trace import events as ev
from shared.trace.event import PRESENT
from shared.trace.record import Record
from shared.trace.text import cause_text
from shared.uapi.page import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE

ROUNDING = 16 * PAGE_SIZE
PTE_EVENTS = frozenset({ev.PTE_SET, ev.PTE_REPLACE, ev.PTE_CLEAR})


MOST_PENDING = 64
"""So many places are kept between two prints. Of more, the first ones are only counted."""


class Place(NamedTuple):
    """A window of process `pid`, and what led there."""

    pid: int
    span: Span
    cause: str
    is_told: bool = False
    """Whether the cause is worth a line even if the window stays where it is."""


def changed_span(record: Record) -> Span | None:
    """Return the pages whose entry in a shadow page table a record changes, or None."""
    fields, event = record.fields, record.event
    if event in (ev.VMA_INSERT, ev.VMA_REMOVE):
        return Span(fields["start"], fields["end"])
    if event is ev.VMA_CHANGE:
        before, now = (fields["old_start"], fields["old_end"]), (fields["start"], fields["end"])
        if before[0] != now[0]:
            return Span(*sorted((before[0], now[0])))
        return Span(*sorted((before[1], now[1]))) if before[1] != now[1] else None
    if event in PTE_EVENTS:
        old, new = fields["old"], fields["new"]
        if bool(old & PRESENT) == bool(new & PRESENT) and (not new & PRESENT or entry_pfn(old) == entry_pfn(new)):
            return None
        return Span(fields["vaddr"], fields["vaddr"] + fields["nr_pages"] * PAGE_SIZE)
    return None


def window_of(mm: AddressSpace | None, changed: Span) -> Span:
    """Return the window to look at for a change: the mapping at its start, rounded outward; a part of a large one."""
    vma = None if mm is None else mm.find_vma(changed.start)
    whole = changed if mm is None or vma is None else _joined(mm, vma)
    rounded = Span(whole.start & -ROUNDING, min(-(-whole.end // ROUNDING) * ROUNDING, TASK_SIZE))
    if rounded.end - rounded.start <= MAX_SPT_RANGE:
        return rounded
    start = max(rounded.start, (changed.start & -PMD_SIZE) - PMD_SIZE)
    return Span(start, min(rounded.end, start + MAX_SPT_RANGE // 2))


def _joined(mm: AddressSpace, vma: Vma) -> Span:
    """Return a VMA together with its neighbours that map the same file, or no file either."""
    start, end = vma.start, vma.end
    ordered = sorted(mm.vmas.values())
    for one in reversed(ordered):
        start = one.start if one.end == start and one.mapping == vma.mapping else start
    for one in ordered:
        end = one.end if one.start == end and one.mapping == vma.mapping else end
    return Span(start, end)


def _contains(outer: Span, inner: Span) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


class Places:
    """The followed processes, where each is looked at, and the places to look at next."""

    def __init__(self, machine: Machine, shown: Machine, pid: int, span: Span | None) -> None:
        """Follow `pid`; `machine` and `shown` are kept up by the caller. Begin at `span`, or at its stack."""
        self._machine, self._shown = machine, shown
        self.root = pid
        self.parents = {pid: 0}
        """The followed processes that live, each with its parent."""
        self._mms = {pid: machine.tasks[pid].mm} if pid in machine.tasks else {}
        """The address space of each at the record that was taken last; the machine is ahead of that."""
        self.current = Place(pid, span or _first_window(find_mm(machine, pid)), "")
        self._windows = {pid: self.current.span}
        self._pending: list[Place] = []
        self._left = 0

    def take(self, records: Iterable[Record]) -> None:
        """Note where the followed processes have changed."""
        for record in records:
            fields = record.fields
            if record.event is ev.PROCESS_FORK and fields["parent_pid"] in self.parents:
                self._mms[fields["child_pid"]] = fields["mm"]
                self._fork(fields["parent_pid"], fields["child_pid"])
            elif record.event is ev.PROCESS_EXEC and fields["pid"] in self.parents:
                self._mms[fields["pid"]] = fields["mm"]
                self._exec(fields["pid"], fields["filename"])
            elif record.event is ev.PROCESS_EXIT and fields["pid"] in self.parents:
                self._exit(fields["pid"])
            elif record.owner in self.parents:
                changed = changed_span(record)
                # One that an execve fills is not the process's yet; one before it, or of an end, is gone.
                if changed is not None and self._mms.get(record.owner) == fields["mm"]:
                    self._touch(record.owner, changed, cause_text(record))

    def next(self, most: int) -> tuple[list[Place], int]:
        """Return the last `most` places to show now, and how many others there were. There is always one to show."""
        places = self._pending[-most:] or [self.current._replace(is_told=False)]
        left = self._left + max(0, len(self._pending) - most)
        self._pending, self._left = [], 0
        self.current = places[-1]
        if self.current.pid not in self.parents and self.parents:
            # The end of a child has been shown: back to the process that is there.
            pid = self.root if self.root in self.parents else next(iter(self.parents))
            self._pending = [Place(pid, self._windows[pid], f"process {self.current.pid} has ended")]
        return places, left

    def _look_at(self, place: Place) -> None:
        """Let a place be the last one to look at. It replaces those that lie inside it."""
        others = [one for one in self._pending if one.pid != place.pid or not _contains(place.span, one.span)]
        if len(others) >= MOST_PENDING:
            self._left += 1
            del others[0]
        self._pending = [*others, place]
        self._windows[place.pid] = place.span

    def _touch(self, pid: int, changed: Span, cause: str) -> None:
        known = [self._windows[pid], *(one.span for one in self._pending if one.pid == pid)]
        span = next((one for one in known if _contains(one, changed)), None) or self._window_of(pid, changed, known)
        self._look_at(Place(pid, span, cause))

    def _window_of(self, pid: int, changed: Span, known: list[Span]) -> Span:
        mm = find_mm(self._machine, pid)
        if mm is not None and mm.find_vma(changed.start) is not None:
            wanted = window_of(mm, changed)
            return next((one for one in known if _contains(one, wanted)), wanted)
        # What has gone is seen where it was looked at.
        overlapping = (one for one in known if one.start < changed.end and changed.start < one.end)
        return next(overlapping, None) or window_of(find_mm(self._shown, pid), changed)

    def _fork(self, parent: int, child: int) -> None:
        self.parents[child] = parent
        self._look_at(Place(child, self._windows[parent], f"fork by {parent}"))

    def _exec(self, pid: int, filename: str) -> None:
        """Show that all is gone from the window; then the program's image."""
        cause = f"execve of {filename}"
        self._pending = [one for one in self._pending if one.pid != pid]
        self._pending.append(Place(pid, self._windows[pid], cause, is_told=True))
        mm = find_mm(self._machine, pid)
        image = None if mm is None else _image(self._machine, mm, filename)
        if image is not None:
            self._look_at(Place(pid, window_of(mm, Span(image.start, image.end)), cause))

    def _exit(self, pid: int) -> None:
        del self.parents[pid]
        self._mms.pop(pid, None)
        if pid in (self.root, self.current.pid) or any(one.pid == pid for one in self._pending):
            self._pending = [one for one in self._pending if one.pid != pid]
            self._pending.append(Place(pid, self._windows[pid], "exit"))


def _first_window(mm: AddressSpace | None) -> Span:
    """Return the window to begin with: the stack, which every process has, or the last mapping."""
    if mm is None or not mm.vmas:
        return Span(0, ROUNDING)
    stack = mm.find_vma(mm.start_stack) or max(mm.vmas.values())
    return window_of(mm, Span(stack.start, stack.end))


def _image(machine: Machine, mm: AddressSpace, filename: str) -> Vma | None:
    """Return the first mapping of a program's own file; the lowest mapping if no name fits."""
    ordered = sorted(mm.vmas.values())
    name = os.path.basename(filename)
    named = (one for one in ordered if one.mapping and os.path.basename(machine.files[one.mapping].name) == name)
    return next(named, ordered[0] if ordered else None)
