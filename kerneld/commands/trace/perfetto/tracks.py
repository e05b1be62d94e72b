"""The tracks of a file: one a process, in it one a thread and a counter of resident pages; one of the kernel itself.

Owns the set of described tracks and the names of processes. A track is described before anything is on it, and
again when its process has another name. Answers to Perfetto's protos/perfetto/trace/track_event/track_descriptor.proto.
"""

from __future__ import annotations

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import CounterDescriptor, TrackDescriptor

from kerneld.commands.trace.perfetto.slices import Who
from shared.trace.record import Comm

KERNEL = 1
"""The track of the kernel's own work: reclaim behind a request, looks at real processes."""
_PROCESS, _THREAD, _RESIDENT = 1 << 40, 2 << 40, 3 << 40
"""The upper bits of the number of a track. The lower bits are a pid or a tid."""


class Tracks:
    """The tracks that have been described."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._described: set[int] = set()
        self._fresh: list[TrackDescriptor] = []

    def take_fresh(self) -> list[TrackDescriptor]:
        """Return the descriptions that the file does not have yet."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def name(self, comm: Comm) -> None:
        """Note the name that a process has from here on."""
        if self._names.get(comm.pid) != comm.comm:
            self._names[comm.pid] = comm.comm
            self._described -= {_PROCESS | comm.pid, _THREAD | comm.pid}
            self._process(comm.pid)

    def of(self, who: Who) -> int:
        """Return the number of the track of a thread, or of the kernel."""
        pid, tid = who
        if not pid:
            if KERNEL not in self._described:
                self._describe(TrackDescriptor(uuid=KERNEL, name="kernel"))
            return KERNEL
        uuid = _THREAD | tid
        if uuid not in self._described:
            track = TrackDescriptor(uuid=uuid, parent_uuid=self._process(pid))
            track.thread.pid, track.thread.tid = pid, tid
            if pid == tid and pid in self._names:
                track.thread.thread_name = self._names[pid]
            self._describe(track)
        return uuid

    def resident(self, pid: int) -> int:
        """Return the number of a process's counter of resident pages."""
        uuid = _RESIDENT | pid
        if uuid not in self._described:
            track = TrackDescriptor(uuid=uuid, parent_uuid=self._process(pid), name="resident pages")
            track.counter.unit = CounterDescriptor.UNIT_COUNT
            track.counter.unit_name = "pages"
            self._describe(track)
        return uuid

    def _process(self, pid: int) -> int:
        uuid = _PROCESS | pid
        if uuid not in self._described:
            track = TrackDescriptor(uuid=uuid)
            track.process.pid = pid
            if pid in self._names:
                track.process.process_name = self._names[pid]
            self._describe(track)
        return uuid

    def _describe(self, track: TrackDescriptor) -> None:
        self._described.add(track.uuid)
        self._fresh.append(track)
