"""Records as they stand in a ring: whatever its kind, each starts with its size and its number.

Two numbers are no event's: LOST, which says how many records did not fit since the last that did, and COMM, which
names a process, so that a reader needs no /proc of a machine that has gone on since. Answers to Linux v6.8
include/uapi/linux/perf_event.h: PERF_RECORD_LOST, PERF_RECORD_COMM, PERF_RECORD_SAMPLE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from shared.trace.event import HEADER, HEADER_BYTES, Event
from shared.trace.events import BY_NUMBER, Cause

LOST, COMM = 1, 2
LOST_RECORD = struct.Struct("<HHIQ")
"""size, LOST, 0, how many."""
COMM_RECORD = struct.Struct("<HHII16s")
"""size, COMM, pid, the number of its address space, its name; padded to 32 bytes."""
SIZE = struct.Struct("<H")
COMM_BYTES = 32
_HEAD = struct.Struct(HEADER)
_CAUSE_BITS = 4


class Record(NamedTuple):
    """One event as it happened."""

    event: Event
    time: int
    """CLOCK_MONOTONIC in nanoseconds."""
    pid: int
    """The process that was being served, or that ended; 0 for nobody, or for one that the reader may not see."""
    tid: int
    owner: int
    """The process whose memory it is about; 0 where it is about none."""
    causes: tuple[Cause, ...]
    """What was under way, the outermost first."""
    nr: int
    """The call or access that was being served."""
    address: int
    """The innermost fault's address, 0 outside of one."""
    fields: dict[str, Any]


class Lost(NamedTuple):
    """Records that did not fit, between the record before and the one behind."""

    records: int


class Comm(NamedTuple):
    """A process's name, from here on."""

    pid: int
    mm: int
    comm: str


Entry = Record | Lost | Comm


def pack_lost(count: int) -> bytes:
    """Return the record that says how many were lost."""
    return LOST_RECORD.pack(LOST_RECORD.size, LOST, 0, count)


def pack_comm(pid: int, mm: int, comm: bytes) -> bytes:
    """Return the record that names a process."""
    return COMM_RECORD.pack(COMM_BYTES, COMM, pid, mm, comm).ljust(COMM_BYTES, b"\0")


def unpack_causes(causes: int) -> tuple[Cause, ...]:
    """Return what was under way, the outermost first."""
    found: list[Cause] = []
    while causes:
        found.append(Cause(causes & (1 << _CAUSE_BITS) - 1))
        causes >>= _CAUSE_BITS
    return tuple(reversed(found))


def push_cause(causes: int, cause: Cause) -> int:
    """Return `causes` with one more under way; of more than eight the outermost is forgotten."""
    return (causes << _CAUSE_BITS | cause) & 0xFFFF_FFFF


def decode(data: bytes) -> Iterator[Entry]:
    """Yield the records of whole bytes of a ring. Raises ValueError for what are none."""
    at, end = 0, len(data)
    while at < end:
        size, number = struct.unpack_from("<HH", data, at) if end - at >= LOST_RECORD.size else (0, 0)
        if size < LOST_RECORD.size or size > end - at:
            raise ValueError(f"a record of {size} bytes where {end - at} are left")
        yield _decode_one(number, data[at : at + size])
        at += size


def _decode_one(number: int, data: bytes) -> Entry:
    if number == LOST:
        return Lost(LOST_RECORD.unpack(data)[3])
    if number == COMM:
        _size, _number, pid, mm, comm = COMM_RECORD.unpack_from(data)
        return Comm(pid, mm, comm.partition(b"\0")[0].decode("utf-8", "replace"))
    event = BY_NUMBER.get(number)
    if event is None or len(data) != event.layout.size:
        raise ValueError(f"a record of an unknown event, number {number}")
    _size, _number, pid, tid, causes, time, nr, owner, address = _HEAD.unpack_from(data[:HEADER_BYTES])
    return Record(event, time, pid, tid, owner, unpack_causes(causes), nr, address, event.unpack(data))
