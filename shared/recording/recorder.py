"""Makes the chunks of a record from the bytes of a ring: splits off the snapshot, counts events, adds key frames.

It follows the events with a model of its own. So a key frame costs the recorded kernel nothing, and a reader finds one
in front of every moment. Pure.
"""

from __future__ import annotations

import struct

from shared.recording.chunks import EVENTS, KEY, Chunk, make_chunk
from shared.recording.dump import key_frame
from shared.recording.machine import Machine
from shared.trace.event import HEADER
from shared.trace.record import COMM
from shared.trace.state_events import SNAPSHOT_END

KEY_EVENTS = 16384
"""A key frame comes after so many events, unless the last one was twice as large as the events since."""
_HEAD = struct.Struct("<HH")
_TIME = struct.Struct(HEADER)


class Recorder:
    """One record that is being made."""

    def __init__(self, key_events: int = KEY_EVENTS, *, deflate: bool = True) -> None:
        self.machine = Machine()
        self.events = 0
        """How many events there are so far."""
        self.gaps = 0
        """How often records were lost."""
        self._key_events = key_events
        self._deflate = deflate
        self._since_key = 0
        self._bytes_since_key = 0
        self._key_bytes = 0
        self._snapshot: bytes | None = b""
        """The beginning of a snapshot that is coming; None between snapshots."""

    @property
    def has_gap(self) -> bool:
        """Whether records are missing since the last snapshot: the caller should ask for another."""
        return self._snapshot is None and self.machine.lost > 0

    def expect_snapshot(self) -> None:
        """Note that the next bytes are those of a new trace, which begins with a snapshot."""
        self._snapshot = b""
        self.gaps += 1

    def take(self, data: bytes) -> list[Chunk]:
        """Return the chunks for the next bytes of a ring."""
        chunks: list[Chunk] = []
        if self._snapshot is not None:
            self._snapshot += data
            end = _end_of_snapshot(self._snapshot)
            if not end:
                return chunks
            snapshot, data = self._snapshot[:end], self._snapshot[end:]
            self._snapshot = None
            self.machine.apply(snapshot)
            chunks.append(self._key(snapshot))
        at = 0
        while at < len(data):
            start = at
            at, count = self.machine.apply(data, at, self._key_events - self._since_key % self._key_events)
            if at == start:
                break
            chunks.append(
                make_chunk(EVENTS, data[start:at], self.events, _first_time(data, start), count, deflate=self._deflate)
            )
            self.events += count
            self._since_key += count
            self._bytes_since_key += at - start
            if self._since_key >= self._key_events and 2 * self._bytes_since_key >= self._key_bytes:
                chunks.append(self._key(key_frame(self.machine)))
        return chunks

    def key_frame(self) -> Chunk:
        """Return a key frame of this moment."""
        return make_chunk(KEY, key_frame(self.machine), self.events, self.machine.time, deflate=self._deflate)

    def _key(self, records: bytes) -> Chunk:
        self._since_key = self._bytes_since_key = 0
        self._key_bytes = len(records)
        return make_chunk(KEY, records, self.events, self.machine.time, deflate=self._deflate)


def _end_of_snapshot(data: bytes) -> int:
    """Return where the snapshot ends; 0 while it is not whole."""
    at = 0
    while at + 8 <= len(data):
        size, number = _HEAD.unpack_from(data, at)
        at += int(size)
        if number == SNAPSHOT_END.number:
            return at
    return 0


def _first_time(data: bytes, at: int) -> int:
    """Return the time of the first event from `at` on; 0 if there is none."""
    while at + 8 <= len(data):
        size, number = _HEAD.unpack_from(data, at)
        if number > COMM:
            return int(_TIME.unpack_from(data, at)[5])
        at += size
    return 0
