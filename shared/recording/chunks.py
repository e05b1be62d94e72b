"""The file format of a record, and what a page in a browser is sent: a head, then chunks. docs/view.md describes it.

    file   = magic, version, size of the head, head (JSON), chunk, chunk, …
    chunk  = kind, flags, stored bytes, whole bytes, events, first event, time; then the stored bytes

A chunk holds whole records, as a ring of `shared.trace` has them. EVENTS has what happened; KEY, a key frame, has the
records that make the machine from nothing, as it is before the event `first`. All numbers are little-endian. Pure.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

MAGIC = b"kdrecord"
VERSION = 1
_FILE = struct.Struct("<8sII")
_CHUNK = struct.Struct("<4sIIIIIQQ")
EVENTS, KEY = b"EVNT", b"KEYF"
DEFLATED = 1
"""A flag: the bytes are compressed (zlib)."""
MAX_HEAD_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 30
_LEVEL = 1


class NoRecord(ValueError):
    """The bytes are no record, or one of another version."""


class Chunk(NamedTuple):
    """One chunk. `first` is the number of the first event in it, counted from 0, or of the event after a key frame."""

    kind: bytes
    flags: int
    whole_bytes: int
    events: int
    """The number of events in it; 0 for a key frame."""
    first: int
    time: int
    """CLOCK_MONOTONIC of its first event, in nanoseconds."""
    stored: bytes

    @property
    def payload(self) -> bytes:
        """The records. A chunk that was cut off, or is damaged, has as many as can be read."""
        if not self.flags & DEFLATED:
            return self.stored
        try:
            return zlib.decompressobj().decompress(self.stored, min(self.whole_bytes, MAX_CHUNK_BYTES))
        except zlib.error:
            return _as_far_as_it_goes(self.stored, self.whole_bytes)

    def pack(self) -> bytes:
        """Return the chunk as it is in a file, and as a message to a page."""
        head = _CHUNK.pack(
            self.kind, self.flags, len(self.stored), self.whole_bytes, self.events, 0, self.first, self.time
        )
        return head + self.stored


def _as_far_as_it_goes(stored: bytes, limit: int) -> bytes:
    inflate, found = zlib.decompressobj(), b""
    for at in range(0, len(stored), 256):
        try:
            found += inflate.decompress(stored[at : at + 256], max(1, limit - len(found)))
        except zlib.error:
            break
    return found


def make_chunk(kind: bytes, payload: bytes, first: int, time: int, events: int = 0, *, deflate: bool = True) -> Chunk:
    """Return the chunk of these records."""
    stored = zlib.compress(payload, _LEVEL) if deflate else payload
    return Chunk(kind, DEFLATED if deflate else 0, len(payload), events, first, time, stored)


def pack_head(head: dict[str, Any]) -> bytes:
    """Return the beginning of a file: magic, version, head."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return _FILE.pack(MAGIC, VERSION, len(text)) + text


def unpack_head(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the head of a file and where its chunks begin. Raises NoRecord."""
    if len(data) < _FILE.size or not data.startswith(MAGIC):
        raise NoRecord("this is no record of kerneld")
    _magic, version, size = _FILE.unpack_from(data)
    if version != VERSION:
        raise NoRecord(f"this record has version {version} of the format; this program reads version {VERSION}")
    if size > MAX_HEAD_BYTES or len(data) < _FILE.size + size:
        raise NoRecord("the record is cut off in its head")
    try:
        head = json.loads(data[_FILE.size : _FILE.size + size])
    except ValueError:
        raise NoRecord("the record's head is damaged") from None
    if not isinstance(head, dict) or not isinstance(head.get("events"), list):
        raise NoRecord("the record's head is damaged")
    return head, _FILE.size + size


class Place(NamedTuple):
    """Where a chunk is in a file: its head without its bytes."""

    chunk: Chunk
    """Its `stored` is empty."""
    start: int
    end: int
    """Where its bytes end in the file."""
    is_cut: bool
    """Whether the file ends before they do."""


def find_chunks(data: Any, at: int) -> Iterator[Place]:
    """Yield the chunks from `at` on, up to the first that is none. `data` is bytes, or a mapped file."""
    while at + _CHUNK.size <= len(data):
        kind, flags, stored, whole, events, _none, first, time = _CHUNK.unpack_from(data, at)
        if kind not in (EVENTS, KEY) or stored > MAX_CHUNK_BYTES or whole > MAX_CHUNK_BYTES:
            return
        start = at + _CHUNK.size
        at = start + stored
        yield Place(Chunk(kind, flags, whole, events, first, time, b""), start, min(at, len(data)), at > len(data))
