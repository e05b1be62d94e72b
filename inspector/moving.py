"""`--follow`: the table of a window that moves to wherever the process, or a child of it, changes. Knows no arguments.

The kernel has one table at a time, with fixed bounds. A move closes it and opens another. The events say where to, and
what was there at the print before, so that a print in a new window shows its changes too.
"""

from __future__ import annotations

import contextlib
import time

from inspector.address import Span
from inspector.interrupts import Woken
from inspector.live_events import open_live_machine, wait_reading
from inspector.places import Place, Places
from inspector.printing import Options, emit, emit_table, has_ended, note
from inspector.replay import find_mm, vma_name
from inspector.session import Machine, Watch
from inspector.table import Entry
from shared.client import Process
from shared.failure import Failure, Status
from shared.recording.live_machine import LiveMachine
from shared.recording.shadow import shadow_entries
from shared.stop_signals import StopSignals, stop_signals

MOST_PLACES = 4
"""So many places are printed at once, the last ones that have changed."""


class MovingWindow:
    """The open table, and what was printed of it last."""

    def __init__(self, machine: Machine, live: LiveMachine, options: Options) -> None:
        self._machine = machine
        self._live = live
        self._options = options
        self._watch: Watch | None = None
        self._stack = contextlib.ExitStack()
        self._before: list[Entry] | None = None

    def show(self, place: Place, parents: dict[int, int]) -> None:
        """Print a place. The table is moved there first. Raises Failure as Watch does, KerneldGone."""
        watch = self._watch
        moved = watch is None or (watch.pid, watch.span) != (place.pid, place.span)
        if moved or watch is None:
            watch = self._move(place)
            if watch is None:
                self._tell(f"Process {place.pid} has ended.")
                return
        if place.cause and (moved or place.is_told):
            self._tell(self._words(place, parents, moved))
        entries = watch.read()
        cause = place.cause or None if moved or place.is_told else None
        emit_table(watch, entries, self._before, self._options, has_exited=has_ended(watch, entries), cause=cause)
        self._before = entries

    def _move(self, place: Place) -> Watch | None:
        """Open the table of a place, and return it; None if the process has ended."""
        old, new = (find_mm(machine, place.pid) for machine in (self._live.shown, self._live.now))
        if new is None:
            return None
        self.close()
        # After an execve, all of the new address space has come.
        same = old if old is not None and old.number == new.number else None
        is_first = old is None or not place.cause
        self._before = None if is_first else [Entry(*row) for row in shadow_entries(same, *place.span)]
        try:
            self._watch = self._stack.enter_context(Watch(self._machine, place.pid, place.span))
        except Failure as failure:
            # It may have ended since the last event that was read.
            if failure.status != Status.NO_PROCESS:
                raise
        return self._watch

    def _words(self, place: Place, parents: dict[int, int], moved: bool) -> str:
        machine = self._live.now
        mm = find_mm(machine, place.pid)
        inside = [] if mm is None else [vma for vma in mm.vmas.values() if vma.start < place.span.end]
        names = (vma_name(machine, mm, vma) for vma in sorted(inside) if mm and vma.end > place.span.start)
        name = next((f"{name} of " for name in names if name), "")
        parent = parents.get(place.pid)
        child = f", child of {parent}" if parent else ""
        how = "The window moves to" if moved else "The window stays:"
        return f"{how} {name}process {place.pid}{child} ({place.cause})."

    def _tell(self, words: str) -> None:
        emit([words], to_stderr=self._options.as_json)

    def close(self) -> None:
        """Close the table, if one is open."""
        self._watch = None
        self._stack.close()


def follow_process(process: Process, pid: int, span: Span | None, options: Options) -> None:
    """Print the window of process `pid`, which begins at `span`, until a signal or the end of all that is followed.

    Raises Failure, and KerneldGone when the connection ends.
    """
    # The events begin before the first print, so that it leaves nothing out.
    live = open_live_machine(process, pid)
    try:
        places = Places(live.now, live.shown, pid, span)
        with stop_signals() as signals:
            window = MovingWindow(process, live, options)
            with contextlib.closing(window):
                has_ended_all = follow_window(window, live, places, signals, process.fileno(), options)
            if not options.once:
                ended = [f"Process {pid} has exited."] if has_ended_all else []
                with contextlib.suppress(Failure):
                    emit([*ended, "The table is closed."], to_stderr=options.as_json)
    finally:
        live.close()


def follow_window(
    window: MovingWindow, live: LiveMachine, places: Places, signals: StopSignals, connection: int, options: Options
) -> bool:
    """Print at each interval, in the places that have changed, until a signal or the end of all that is followed.

    Return whether all have ended. Raises KerneldGone when the connection ends.
    """
    due = time.monotonic()
    gaps = 0
    while True:
        places.take(live.read())
        parents = dict(places.parents)
        shown, left = places.next(MOST_PLACES)
        for place in shown:
            window.show(place, parents)
        if left:
            note(f"{left} other places have changed: a shorter --interval shows more of them")
        if live.gaps != gaps:
            note("events were lost: some changes have no mark")
            gaps = live.gaps
        live.mark_shown()
        if options.once or not places.parents:
            return not places.parents
        due = max(due + options.interval, time.monotonic())
        if wait_reading(live, places.take, due, signals, connection) is Woken.STOP:
            return False
