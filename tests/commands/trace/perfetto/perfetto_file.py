"""A Perfetto file as its own library reads it, and the rules that a file the UI opens has to keep."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    BUILTIN_CLOCK_MONOTONIC,
    Trace,
    TracePacket,
    TrackEvent,
)


@dataclass
class Slice:
    """One slice, with what is nested in it."""

    name: str
    category: str
    begin: int
    end: int
    args: dict[str, Any]
    children: list[Slice] = field(default_factory=list)


class PerfettoFile:
    """What a file says, checked while it is read."""

    def __init__(self, data: bytes) -> None:
        trace = Trace()
        assert trace.ParseFromString(data) == len(data)
        self.processes: dict[int, str] = {}
        self.threads: dict[int, tuple[int, int]] = {}
        """pid and tid by track."""
        self.counters: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Times and values of resident pages by pid."""
        self.slices: dict[int, list[Slice]] = defaultdict(list)
        """The outermost slices of each thread, by tid; 0 is the kernel's own track."""
        self.instants: dict[int, list[Slice]] = defaultdict(list)
        self._tracks: dict[int, Any] = {}
        self._open: dict[int, list[Slice]] = defaultdict(list)
        self._last: dict[int, int] = defaultdict(int)
        first, *packets = trace.packet
        self._check_first(first)
        for packet in packets:
            assert packet.trusted_packet_sequence_id == first.trusted_packet_sequence_id
            if packet.HasField("track_descriptor"):
                self._describe(packet.track_descriptor)
            else:
                self._take(packet)
        assert not any(self._open.values())

    def _check_first(self, packet: TracePacket) -> None:
        assert packet.sequence_flags & TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        assert packet.clock_snapshot.primary_trace_clock == BUILTIN_CLOCK_MONOTONIC
        assert BUILTIN_CLOCK_MONOTONIC in {clock.clock_id for clock in packet.clock_snapshot.clocks}

    def _describe(self, track: Any) -> None:
        if track.parent_uuid:
            assert self._tracks[track.parent_uuid].HasField("process")
        self._tracks[track.uuid] = track
        if track.HasField("process"):
            self.processes[track.process.pid] = track.process.process_name
        elif track.HasField("thread"):
            assert self._tracks[track.parent_uuid].process.pid == track.thread.pid
            self.threads[track.uuid] = (track.thread.pid, track.thread.tid)
        elif track.HasField("counter"):
            assert (track.name, track.counter.unit_name) == ("resident pages", "pages")
        else:
            assert (track.name, track.parent_uuid) == ("kernel", 0)

    def _take(self, packet: TracePacket) -> None:
        event = packet.track_event
        uuid = event.track_uuid
        track = self._tracks[uuid]
        assert packet.timestamp_clock_id == BUILTIN_CLOCK_MONOTONIC
        assert packet.timestamp >= self._last[uuid]
        self._last[uuid] = packet.timestamp
        if event.type == TrackEvent.TYPE_COUNTER:
            assert track.HasField("counter")
            self.counters[self._tracks[track.parent_uuid].process.pid].append((packet.timestamp, event.counter_value))
            return
        assert not track.HasField("counter")
        tid = self.threads.get(uuid, (0, 0))[1]
        args = {note.name: getattr(note, note.WhichOneof("value")) for note in event.debug_annotations}
        opened = self._open[uuid]
        if event.type == TrackEvent.TYPE_SLICE_END:
            ended = opened.pop()
            ended.end = packet.timestamp
            ended.args |= args
            return
        (category,) = event.categories
        made = Slice(event.name, category, packet.timestamp, packet.timestamp, args)
        if event.type == TrackEvent.TYPE_INSTANT:
            self.instants[tid].append(made)
        else:
            assert event.type == TrackEvent.TYPE_SLICE_BEGIN
            (opened[-1].children if opened else self.slices[tid]).append(made)
            opened.append(made)
