"""The moment that a view shows: live, or any moment of a record. Owns the machine of the model. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from shared.recording.chunks import KEY, Chunk
from shared.recording.machine import Machine
from shared.recording.reader import Recording
from shared.trace.events import MM_FAULT, SYS_EXIT
from shared.trace.record import Record

_CALLS = frozenset({SYS_EXIT.number, MM_FAULT.number})
_NEAR = 512
"""A step back is made from a machine that was kept at most so many events before."""


class Player:
    """A record, and a moment in it."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.position = 0
        """The machine is the one before the event of this number."""
        self.is_live = True
        self.machine = Machine()
        if recording.has_begun:
            self.seek(recording.nr_events, live=True)

    def feed(self, chunks: Iterable[Chunk]) -> bool:
        """Take the chunks that have come. Return whether the machine that is shown has changed."""
        is_anew = not self.recording.has_begun
        has_come = False
        for chunk in chunks:
            self.recording.add(chunk)
            has_come = True
            is_anew |= chunk.kind == KEY and not self.machine.is_whole
        if not has_come or not self.is_live:
            return False
        if is_anew:
            self.machine = self.recording.machine(self.recording.nr_events)
        else:
            self.recording.advance(self.machine, self.position, self.recording.nr_events)
        self.position = self.recording.nr_events
        return True

    def seek(self, number: int, *, live: bool = False) -> None:
        """Show the machine before the event of this number."""
        number = max(self.recording.first_event, min(number, self.recording.nr_events))
        if self.position <= number < self.position + _NEAR * 16 and self.machine.is_complete:
            self.recording.advance(self.machine, self.position, number)
        else:
            self.machine = self.recording.machine(number)
        self.position = number
        self.is_live = live

    def step(self, events: int) -> None:
        """Go on, or back, by events."""
        self.seek(self.position + events)

    def step_call(self, direction: int) -> None:
        """Go on, or back, to the end of the next call or fault."""
        if direction > 0:
            found = self.recording.records(self.position, None, _CALLS)
            self.seek(next((number + 1 for number, _record in found), self.recording.nr_events))
            return
        first = max(self.recording.first_event, self.position - 1)
        while first > self.recording.first_event:
            start = max(self.recording.first_event, first - _NEAR)
            ends = [number + 1 for number, _record in self.recording.records(start, first, _CALLS)]
            if ends:
                self.seek(ends[-1])
                return
            first = start
        self.seek(first)

    def go_live(self) -> None:
        """Follow what happens now."""
        self.seek(self.recording.nr_events, live=True)

    def last_event(self) -> Record | None:
        """Return the event that led to this moment; None at the beginning."""
        return self.recording.record(self.position - 1) if self.position > self.recording.first_event else None
