"""The records in a ring. Each record of any kind begins with its size and its number.

Two numbers are not events. LOST has the number of records that did not fit after the record before. COMM names a
process; with it a reader does not need /proc, which may have changed since. Answers to Linux v6.8
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
"""size, LOST, 0, number of lost records."""
COMM_RECORD = struct.Struct("<HHII16s")
"""size, COMM, pid, the number of its address space, its name; padded to 32 bytes."""
SIZE = struct.Struct("<H")
COMM_BYTES = 32
_HEAD = struct.Struct(HEADER)
_CAUSE_BITS = 4


class Record(NamedTuple):
    """One event."""

    event: Event
    time: int
    """CLOCK_MONOTONIC in nanoseconds."""
    pid: int
    """The process that the kernel was serving, or that ended. 0: no process, or one that the reader may not see."""
    tid: int
    owner: int
    """The process that owns the memory of the event; 0 if the event is not about memory of a process."""
    causes: tuple[Cause, ...]
    """The causes, the outermost first."""
    nr: int
    """The number of the call or access that the kernel was serving."""
    address: int
    """The address of the innermost fault; 0 outside a fault."""
    fields: dict[str, Any]


class Lost(NamedTuple):
    """The number of records that did not fit between the record before and the record after."""

    records: int


class Comm(NamedTuple):
    """The name that a process has from here on."""

    pid: int
    mm: int
    comm: str


Entry = Record | Lost | Comm


def pack_lost(count: int) -> bytes:
    """Return the record of `count` lost records."""
    return LOST_RECORD.pack(LOST_RECORD.size, LOST, 0, count)


def pack_comm(pid: int, mm: int, comm: bytes) -> bytes:
    """Return the record that names a process."""
    return COMM_RECORD.pack(COMM_BYTES, COMM, pid, mm, comm).ljust(COMM_BYTES, b"\0")


def unpack_causes(causes: int) -> tuple[Cause, ...]:
    """Return the causes, the outermost first."""
    found: list[Cause] = []
    while causes:
        found.append(Cause(causes & (1 << _CAUSE_BITS) - 1))
        causes >>= _CAUSE_BITS
    return tuple(reversed(found))


def push_cause(causes: int, cause: Cause) -> int:
    """Return `causes` with one more cause inside. Of more than eight, the outermost is dropped."""
    return (causes << _CAUSE_BITS | cause) & 0xFFFF_FFFF


def decode(data: bytes) -> Iterator[Entry]:
    """Yield the records in the bytes of a ring. Raises ValueError for malformed bytes."""
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
