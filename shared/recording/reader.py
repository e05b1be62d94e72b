"""Reads a record: how many events it has, the machine before any of them, the events themselves.

The file is mapped, and its chunks' heads are read once. A chunk is read when a moment in it is wanted. A file that is
cut off, or damaged, is read as far as it goes. Knows no screen.
"""

from __future__ import annotations

import bisect
import mmap
import os
from collections import OrderedDict
from collections.abc import Container, Iterator
from typing import Any

from shared.recording.chunks import KEY, Chunk, NoRecord, Place, find_chunks, unpack_head
from shared.recording.machine import Machine, event_places, skip_events
from shared.trace.record import Record, decode

_KEPT_PAYLOADS = 8


class Recording:
    """A record, from a file or from bytes."""

    def __init__(self, data: Any) -> None:
        """`data`: the whole record, as bytes or as a mapped file. Raises NoRecord."""
        head, at = unpack_head(data[: min(len(data), (1 << 20) + 16)])
        self._begin(head, data)
        end = at
        for place in find_chunks(data, at):
            self._note(place)
            end = place.end
        self.is_cut = self._drop_the_cut(end)
        if not self._keys:
            raise NoRecord("the record is cut off before its first key frame")

    def _begin(self, head: dict[str, Any], data: Any) -> None:
        self.head = head
        self._data = data
        self._keys: list[Place] = []
        self._events: list[Place] = []
        self._firsts: list[int] = []
        self._key_firsts: list[int] = []
        self._payloads: OrderedDict[int, bytes] = OrderedDict()
        self.is_cut = False
        """Whether the file ends in the middle of a chunk, or has something else than chunks behind them."""

    @classmethod
    def growing(cls, head: dict[str, Any]) -> Recording:
        """Return a record that is being made: `add` brings its chunks. The first is a key frame."""
        made = cls.__new__(cls)
        made._begin(head, b"")
        return made

    def add(self, chunk: Chunk) -> None:
        """Add a chunk that has come."""
        number = len(self._keys) + len(self._events)
        self._note(Place(chunk, number, number, False))

    def _note(self, place: Place) -> None:
        is_key = place.chunk.kind == KEY
        (self._keys if is_key else self._events).append(place)
        (self._key_firsts if is_key else self._firsts).append(place.chunk.first)

    @property
    def has_begun(self) -> bool:
        """Whether there is a key frame, and so a machine to show."""
        return bool(self._keys)

    @property
    def nr_events(self) -> int:
        """How many events there are, counted from the first that ever was."""
        if self._events:
            return self._events[-1].chunk.first + self._events[-1].chunk.events
        return self._key_firsts[-1] if self._keys else 0

    @property
    def first_event(self) -> int:
        """The number of the first event that is there."""
        return self._key_firsts[0] if self._keys else 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Recording:
        """Map a file. Raises OSError, NoRecord."""
        with open(path, "rb") as file:
            try:
                return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except ValueError as error:
                if isinstance(error, NoRecord):
                    raise
                raise NoRecord("the file is empty") from None

    def _drop_the_cut(self, end: int) -> bool:
        """Make a last chunk that is cut off say what it has. A key frame that is cut off is no key frame."""
        cut = end < len(self._data)
        if self._keys and self._keys[-1].is_cut:
            self._keys.pop()
            self._key_firsts.pop()
            return True
        if self._events and self._events[-1].is_cut:
            place = self._events[-1]
            count = sum(isinstance(one, Record) for one in _decode(self._payload(place)))
            self._events[-1] = place._replace(chunk=place.chunk._replace(events=count))
            return True
        return cut

    @property
    def start_time(self) -> int:
        """CLOCK_MONOTONIC of the first key frame, in nanoseconds."""
        return self._keys[0].chunk.time

    def machine(self, number: int) -> Machine:
        """Return the machine before the event of this number; `nr_events` stands for the end."""
        number = max(self.first_event, min(number, self.nr_events))
        key = self._keys[max(0, bisect.bisect_right(self._key_firsts, number) - 1)]
        made = Machine()
        made.apply(self._payload(key))
        self.advance(made, key.chunk.first, number)
        return made

    def advance(self, machine: Machine, at: int, number: int) -> None:
        """Take a machine from before event `at` to before event `number`, which is later or the same."""
        index = max(0, bisect.bisect_right(self._firsts, at) - 1)
        for place in self._events[index:]:
            first, count = place.chunk.first, place.chunk.events
            if first >= number:
                return
            payload = self._payload(place)
            machine.apply(payload, skip_events(payload, at - first), min(number, first + count) - at)
            at = first + count

    def records(
        self, first: int = 0, last: int | None = None, wanted: Container[int] | None = None
    ) -> Iterator[tuple[int, Record]]:
        """Yield the events from `first` up to `last`, each with its number.

        `wanted` has the numbers of the kinds of events that are wanted; None: all.
        """
        last = self.nr_events if last is None else min(last, self.nr_events)
        index = max(0, bisect.bisect_right(self._firsts, first) - 1)
        for place in self._events[index:]:
            number = place.chunk.first
            if number >= last:
                return
            payload = self._payload(place)
            for at, size, kind in event_places(payload):
                if first <= number < last and (wanted is None or kind in wanted):
                    record = next(_decode(payload[at : at + size]), None)
                    if isinstance(record, Record):
                        yield number, record
                number += 1

    def record(self, number: int) -> Record | None:
        """Return the event of this number, or None."""
        return next((record for _number, record in self.records(number, number + 1)), None)

    def number_at(self, time: int) -> int:
        """Return the number of the first event at or after a time (CLOCK_MONOTONIC, nanoseconds)."""
        index = bisect.bisect_right([place.chunk.time for place in self._events], time) - 1
        if index < 0:
            return 0
        first = self._events[index].chunk.first
        return next((number for number, record in self.records(first) if record.time >= time), self.nr_events)

    def places(self) -> list[Place]:
        """Return where each chunk is, in the order of the file."""
        return sorted([*self._keys, *self._events], key=lambda place: place.start)

    def chunks(self) -> Iterator[Chunk]:
        """Yield every chunk in the order of the file, with its bytes."""
        for place in self.places():
            yield place.chunk._replace(stored=self._stored(place))

    def _stored(self, place: Place) -> bytes:
        return place.chunk.stored or bytes(self._data[place.start : place.end])

    def _payload(self, place: Place) -> bytes:
        found = self._payloads.get(place.start)
        if found is None:
            found = place.chunk._replace(stored=self._stored(place)).payload
            self._payloads[place.start] = found
            if len(self._payloads) > _KEPT_PAYLOADS:
                self._payloads.popitem(last=False)
        return found


def _decode(payload: bytes) -> Iterator[Any]:
    """Yield the records of a payload, up to the first that is none."""
    try:
        yield from decode(payload)
    except ValueError:
        return
