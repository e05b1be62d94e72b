"""Writes a trace as a Perfetto file. The file on disk is valid at any time.

A file is one message `Trace`. Two such messages behind each other are one message again. So each part is written as a
whole message, and the file needs no end. Slices are ended before each write: no request lasts beyond a write. Owns the
file and the counters of resident pages. `slices` decides when a slice begins and ends.
Answers to Perfetto's protos/perfetto/trace/track_event/track_event.proto.
"""

from __future__ import annotations

import time
from typing import Any, BinaryIO

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    BUILTIN_CLOCK_BOOTTIME,
    BUILTIN_CLOCK_MONOTONIC,
    BUILTIN_CLOCK_REALTIME,
    Trace,
    TracePacket,
    TrackEvent,
)

from kerneld.commands.trace.calls.arguments import call_text
from kerneld.commands.trace.perfetto.slices import SLICE_EVENTS, Slices, Who
from kerneld.commands.trace.perfetto.tracks import Tracks
from shared.trace.event import Field, Show
from shared.trace.events import PROCESS_EXIT, RSS_STAT, SYS_ENTER, RssMember
from shared.trace.record import Comm, Lost, Record
from shared.trace.text import cause_text, field_text
from shared.uapi.page import PAGE_SHIFT

_SEQUENCE = 1
_ADDRESSES = frozenset({Show.HEX, Show.ENTRY, Show.PFN})
_CLOCKS = (
    (BUILTIN_CLOCK_REALTIME, time.CLOCK_REALTIME),
    (BUILTIN_CLOCK_BOOTTIME, time.CLOCK_BOOTTIME),
    (BUILTIN_CLOCK_MONOTONIC, time.CLOCK_MONOTONIC),
)


class PerfettoWriter:
    """One file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._trace = Trace()
        self._tracks = Tracks()
        self._slices = Slices(self)
        self._last_time = time.monotonic_ns()
        self._resident: dict[int, tuple[int, dict[int, int]]] = {}
        """By process, the number of its address space, and the counters of that address space in bytes."""
        self._changed: dict[int, int] = {}
        """Processes with changed counters, and the time. A record has one counter; the track shows the sum."""
        self._write_clocks()

    def _write_clocks(self) -> None:
        """Write the time of the records' clock beside the times of the usual clocks."""
        packet = self._trace.packet.add()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.sequence_flags = TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        packet.clock_snapshot.primary_trace_clock = BUILTIN_CLOCK_MONOTONIC
        for number, clock in _CLOCKS:
            packet.clock_snapshot.clocks.add(clock_id=number, timestamp=time.clock_gettime_ns(clock))

    # A trace as it comes: see `kerneld.commands.trace.writers.Writer`.

    def name(self, comm: Comm) -> None:
        """Note the name that a process has from here on."""
        self._tracks.name(comm)

    def lost(self, lost: Lost) -> None:
        """End all slices: they may have ended in the gap."""
        self._slices.close()
        event = self._event((0, 0), self._last_time, TrackEvent.TYPE_INSTANT)
        event.categories.append("lost")
        event.name = f"{lost.records} events lost"

    def event(self, record: Record) -> None:
        """Write the begin or end of a slice, the value of a counter, or an instant of a thread."""
        self._last_time = record.time
        if record.event is not RSS_STAT:
            self._put_counters()
        self._slices.follow(record)
        if record.event is RSS_STAT:
            self._count(record)
        elif record.event.number not in SLICE_EVENTS:
            self._instant(record)
            if record.event is PROCESS_EXIT:
                self._resident.pop(record.fields["pid"], None)
                self._put_counter(record.fields["pid"], record.time, 0)

    def flush(self) -> None:
        """End all slices, and write."""
        self._slices.close()
        self._put_counters()
        if self._trace.packet:
            self._file.write(self._trace.SerializeToString())
            self._trace.Clear()
        self._file.flush()

    def close(self) -> None:
        """Write the rest."""
        self.flush()

    # The sink of `Slices`.

    def begin(self, who: Who, time: int, category: str, name: str, record: Record) -> None:
        """Begin a slice. A slice that an event begins has the fields of the event."""
        event = self._event(who, time, TrackEvent.TYPE_SLICE_BEGIN)
        event.categories.append(category)
        event.name = name
        if record.event.number in SLICE_EVENTS:
            _annotate_fields(event, record)
            if record.event is SYS_ENTER:
                call = call_text(record.fields["id"], [record.fields[f"arg{n}"] for n in range(6)])
                event.debug_annotations.add(name="call", string_value=call)
        elif category == "fault":
            event.debug_annotations.add(name="address", pointer_value=record.address)

    def end(self, who: Who, time: int, last: tuple[Record, ...]) -> None:
        """End a slice, with the fields of its result."""
        event = self._event(who, time, TrackEvent.TYPE_SLICE_END)
        for record in last:
            _annotate_fields(event, record)

    def _instant(self, record: Record) -> None:
        event = self._event((record.pid, record.tid), record.time, TrackEvent.TYPE_INSTANT)
        event.categories.append(record.event.system)
        event.name = record.event.name.partition(":")[2]
        _annotate_fields(event, record)
        if record.owner not in (0, record.pid):
            event.debug_annotations.add(name="owner", uint_value=record.owner)
        cause = cause_text(record)
        if cause:
            event.debug_annotations.add(name="cause", string_value=cause)

    def _count(self, record: Record) -> None:
        mm, counters = self._resident.get(record.owner, (0, {}))
        if mm != record.fields["mm_id"]:
            mm, counters = record.fields["mm_id"], {}
            self._resident[record.owner] = (mm, counters)
        if record.fields["member"] != RssMember.MM_SWAPENTS:
            counters[record.fields["member"]] = record.fields["size"]
            self._changed[record.owner] = record.time

    def _put_counters(self) -> None:
        for pid, at in self._changed.items():
            self._put_counter(pid, at, sum(self._resident[pid][1].values()) >> PAGE_SHIFT)
        self._changed.clear()

    def _put_counter(self, pid: int, time: int, value: int) -> None:
        track = self._tracks.resident(pid)
        self._on_track(track, time, TrackEvent.TYPE_COUNTER).counter_value = value

    def _event(self, who: Who, time: int, kind: int) -> TrackEvent:
        return self._on_track(self._tracks.of(who), time, kind)

    def _on_track(self, track: int, time: int, kind: int) -> TrackEvent:
        for described in self._tracks.take_fresh():
            packet = self._trace.packet.add()
            packet.trusted_packet_sequence_id = _SEQUENCE
            packet.track_descriptor.CopyFrom(described)
        packet = self._trace.packet.add()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.timestamp = time
        packet.timestamp_clock_id = BUILTIN_CLOCK_MONOTONIC
        packet.track_event.type = kind
        packet.track_event.track_uuid = track
        return packet.track_event


def _annotate_fields(event: TrackEvent, record: Record) -> None:
    for field in record.event.fields:
        _annotate(event, field, record.fields[field.name])


def _annotate(event: TrackEvent, field: Field, value: Any) -> None:
    note = event.debug_annotations.add(name=field.name)
    if field.names is not None or field.show is Show.TEXT:
        note.string_value = field_text(field, value)
    elif field.show in _ADDRESSES:
        note.pointer_value = value
    elif value < 0:
        note.int_value = value
    else:
        note.uint_value = value
