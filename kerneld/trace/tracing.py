"""The tracing of one kernel: the open traces, the probes that they need, and the writing of records.

Owns the open traces and the registered probes. Records are collected while the outermost of a few functions runs (a
request, the end of a process, …), and written when it ends, also by an exception. So a reader never sees half a
request, and a request pays for only one write.

Invariants: a probe is registered exactly while an open trace wants one of its events; a probe without events, while any
trace is open. A trace is open at most as long as its opening thread lives.
Answers to Linux v6.8 kernel/events/core.c: perf_event_open().
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

import structlog

from kerneld.errors import SysError
from kerneld.task.ptrace import ptrace_may_access
from kerneld.trace.current import NOBODY, Current
from kerneld.trace.fprobe import FPROBES, Fprobe
from kerneld.trace.ftrace import FunctionTracer, check_globs
from kerneld.trace.probe import PROBES, Probe
from kerneld.trace.probes import (  # noqa: F401  (into PROBES)
    fault,
    frames,
    layout,
    moves,
    pagecache,
    pgtable,
    pte,
    reclaim,
    request,
    shadow,
    task,
    vma,
)
from kerneld.trace.probes.rss import note_rss, tell_rss
from kerneld.trace.ring import ReaderGone
from kerneld.trace.rings import Rings
from kerneld.trace.snapshot import Snapshot
from kerneld.trace.trace import Trace
from kerneld.trace.tracepoint import Tracepoint
from shared.trace.attr import TraceAttr, unpack_attr
from shared.trace.events import EVENTS, FTRACE, RSS_STAT, FaultKind, matching
from shared.trace.state_events import SNAPSHOT_BEGIN
from shared.uapi.page import PAGE_SHIFT

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.rss import RssStat
    from kerneld.syscalls.kernel import Kernel
    from kerneld.task.task import Process, Thread
    from kerneld.trace.probes.pgtable import TableLog
    from kerneld.trace.probes.shadow import SpteLog
    from shared.trace.event import Event

MAX_RING_BYTES = 256 << 20
_USER_SHARE = 16
"""A user without privilege may have a ring of 1/16 of the largest size (Linux: kernel.perf_event_mlock_kb)."""

_log = structlog.get_logger("kerneld.trace")


class Tracing:
    """The tracing of one kernel."""

    def __init__(self, kernel: Kernel, max_ring_bytes: int = MAX_RING_BYTES) -> None:
        self.kernel = kernel
        self.current = Current()
        self.points = {event.number: Tracepoint(event, self.current) for event in EVENTS}
        self.fault_kind = FaultKind.SPURIOUS
        """The kind of the current fault so far; `fault_pages` is the number of pages that it has mapped."""
        self.fault_pages = 1
        self.spte_log: SpteLog | None = None
        """The causes for which pages of the shadow table became dirty; made at the first use."""
        self.rss_changed: dict[int, RssStat] = {}
        """By number, the address spaces whose resident pages may have changed since the last record."""
        self.rss_told: dict[int, tuple[int, ...]] = {}
        """By number of an address space, its last recorded counters."""
        self.table_log: TableLog | None = None
        """Tells of tables; made at the first use."""
        self.roots: dict[int, int] = {}
        """By root of a page table, the number of its address space."""
        self.snapshots: list[Snapshot] = []
        """The snapshots that are being told."""
        self.closing_target = 0
        """The target of a shadow table that is being closed."""
        self._ftrace = FunctionTracer(self)
        self._max_ring_bytes = max_ring_bytes
        self._traces: list[Trace] = []
        self._rings = Rings(kernel)
        self._registered: dict[Probe, Fprobe] = {}
        self._owners: dict[int, int] = {}
        """By number of an address space, the pid of its process."""
        self._next_handle = 1
        kernel.tracing = self

    @property
    def is_on(self) -> bool:
        """Whether there is a trace."""
        return bool(self._traces)

    def point(self, event: Event) -> Tracepoint:
        """Return an event's tracepoint."""
        return self.points[event.number]

    def find_pid(self, number: int) -> int:
        """Return the pid of the process of the address space of this number; 0 where it has none yet (fork, execve)."""
        return self._owners.get(number, 0)

    def owner(self, number: int) -> int:
        """Return the owner of the address space of this number: its process, or the parent of a copy that waits; or 0.

        It is 0 only while the served process is making the address space.
        """
        pid = self._owners.get(number, 0)
        if not pid:
            parent = self.kernel.table.find_parent(number)
            pid = parent.pid if parent is not None else 0
        return pid

    @property
    def processes(self) -> dict[int, Process]:
        """The kernel's processes."""
        return self.kernel.processes

    @property
    def shadow_target(self) -> int:
        """The pid of the shadow table's target; 0 without a table."""
        _state, _opener, target = self.kernel.shadowpt.describe_session()
        return target or self.closing_target

    # Opening and closing

    def open(self, thread: Thread, data: bytes) -> Generator[None, None, tuple[int, tuple[int, int]]]:
        """Open a trace for a thread, from a packed TraceAttr. Return its handle and the reader's two descriptors.

        The checks of the request and the snapshot run in pieces. The trace has all events after the last piece, and
        those after the snapshot's first piece. The caller closes the descriptors. Raises SysError(EINVAL) for unknown
        events or functions, or an invalid size of the ring; ENOSPC for a ring that is too large; ESRCH for an unknown
        process; EPERM for a process of another user, or for the functions of all processes; EMFILE for too many rings
        that may still be read; ENOMEM if the host has no memory for the ring.
        """
        try:
            attr = unpack_attr(data)
        except (ValueError, UnicodeDecodeError):
            raise SysError(errno.EINVAL) from None
        events = yield from self._check(thread, attr)
        self._rings.check_room(thread.process)
        ring = self._rings.make(thread.process, attr.data_pages)
        trace = Trace(self._next_handle, thread, events, attr.pids, ring)
        self._next_handle += 1
        try:
            yield from self._attach(trace)
            self._ftrace.open(trace, attr.functions, attr.graph_functions)
        except BaseException:
            if trace in self._traces:
                self._end(trace)
            self._rings.give_up(ring)
            raise
        _log.info("trace opened", pid=thread.process.pid, handle=trace.handle, events=len(events))
        return trace.handle, ring.take_fds()

    def _check(self, thread: Thread, attr: TraceAttr) -> Generator[None, None, tuple[Event, ...]]:
        """Return the requested events, each once. Raises as `open` does."""
        found: dict[int, Event] = {}
        pages = attr.data_pages
        for glob in attr.globs:
            named = matching(glob)
            if not named or not pages or pages & pages - 1:
                raise SysError(errno.EINVAL)
            found.update((event.number, event) for event in named)
            yield
        self._check_rights(thread, attr, found)
        if not (yield from check_globs((*attr.functions, *attr.graph_functions))):
            raise SysError(errno.EINVAL)
        # Other clients were served meanwhile and may have changed rights. So the rights are checked last.
        self._check_rights(thread, attr, found)
        return tuple(found.values())

    def _check_rights(self, thread: Thread, attr: TraceAttr, found: dict[int, Event]) -> None:
        limit = self._max_ring_bytes if thread.process.cred.superuser else self._max_ring_bytes // _USER_SHARE
        if attr.data_pages << PAGE_SHIFT > limit:
            raise SysError(errno.ENOSPC)
        for pid in attr.pids:
            process = self.kernel.find_process(pid)
            if process is None:
                raise SysError(errno.ESRCH)
            if not ptrace_may_access(thread.process, process):
                raise SysError(errno.EPERM)
        cred = thread.process.cred
        # Functions show the work for all processes, with its times. Without privilege only a user's own may be traced.
        if not cred.superuser and not attr.pids and not FTRACE.isdisjoint(found):
            raise SysError(errno.EPERM)

    def _attach(self, trace: Trace) -> Iterator[None]:
        """Attach a trace to its events, and tell it what is there, in pieces, if it wants a snapshot.

        If a probe cannot be registered, attach it to no event.
        """
        self._traces.append(trace)
        try:
            self._update_probes()
        except BaseException:
            self._traces.remove(trace)
            self._update_probes()
            raise
        for event in trace.events:
            self.point(event).traces.append(trace)
        snapshot = Snapshot(self, trace) if SNAPSHOT_BEGIN in trace.events else None
        if snapshot is not None:
            snapshot.begin()
        for process in self.kernel.processes.values():
            self.note_process(process, trace)
        if trace in self.point(RSS_STAT).traces:
            for process in self.kernel.processes.values():
                note_rss(self, process)
            tell_rss(self)
        if snapshot is not None:
            self.snapshots.append(snapshot)
            try:
                yield
                yield from snapshot.tell()
            finally:
                self.snapshots.remove(snapshot)
        with contextlib.suppress(ReaderGone):
            trace.flush()

    def _update_probes(self) -> None:
        """Register the probes that the open traces need, and only those."""
        wanted = {event.number for trace in self._traces for event in trace.events}
        if not self._traces:
            self._owners.clear()
            self.roots.clear()
        for one in PROBES:
            is_needed = bool(self._traces) and (not one.events or not one.events.isdisjoint(wanted))
            if is_needed and one not in self._registered:
                self._registered[one] = FPROBES.register(one.function, functools.partial(one.factory, self))
            elif not is_needed and one in self._registered:
                FPROBES.unregister(self._registered.pop(one))

    def close(self, thread: Thread, handle: int) -> None:
        """Close a trace. Raises SysError(EBADF) if the thread's process has no trace with that handle."""
        for trace in self._traces:
            if trace.handle == handle and trace.owner.process is thread.process:
                self._end(trace)
                return
        raise SysError(errno.EBADF)

    def _end(self, trace: Trace) -> None:
        with contextlib.suppress(ReaderGone):
            trace.flush()
        self._traces.remove(trace)
        self._ftrace.close(trace)
        for event in trace.events:
            self.point(event).traces.remove(trace)
        self._update_probes()
        trace.ring.end()
        _log.info("trace closed", pid=trace.owner.process.pid, handle=trace.handle)

    def reap(self) -> None:
        """Close the traces whose thread has ended."""
        for trace in [trace for trace in self._traces if trace.owner not in trace.owner.process.threads]:
            self._end(trace)

    def reader_gone(self, pipe: int) -> None:
        """Handle a pipe without a reader: its trace ends, and the memory of its ring is freed."""
        ring = self._rings.find(pipe)
        if ring is None:
            return
        for trace in [trace for trace in self._traces if trace.ring is ring]:
            self._end(trace)
        self._rings.free(ring)

    def shutdown(self) -> None:
        """Close every trace."""
        for trace in list(self._traces):
            self._end(trace)
        self._rings.shutdown()

    # What probes call

    def flush(self) -> None:
        """Write the collected records. Close traces without a reader, and traces whose thread has ended."""
        self._ftrace.pause()
        try:
            for trace in list(self._traces):
                try:
                    trace.flush()
                except ReaderGone:
                    self._end(trace)
            self.reap()
        finally:
            self._ftrace.go_on()

    def note_process(self, process: Process, trace: Trace | None = None) -> None:
        """Tell one trace, or all traces, of a new process, or of its new name, memory or credentials."""
        if process.mm is None:
            return
        for dying in self.kernel.dying.mms:
            if self._owners.get(dying.number) == process.pid:
                self._owners[dying.number] = NOBODY
        for mm in (process.mm, *process.new_mms):
            self._owners[mm.number] = process.pid
        for one in self._traces if trace is None else (trace,):
            one.note_process(process, process.mm.number)

    def forget_pids(self, pids: Iterable[int]) -> None:
        """Forget the pids of ended processes: traces without privilege must not see later processes with these pids."""
        for pid in pids:
            for trace in self._traces:
                if trace.hides and trace.pids is not None:
                    trace.pids.discard(pid)

    def note_mm(self, mm: MmStruct, pid: int) -> None:
        """Note that an address space belongs to a process."""
        self._owners[mm.number] = pid

    def mm_left(self, mm: MmStruct) -> None:
        """Note that a process has left an address space.

        It may be gone, belong to another process, or still be freed.
        """
        if not mm.users and not mm.page_table.table_pages:
            self.forget_mm(mm)

    def forget_mm(self, mm: MmStruct) -> None:
        """Forget a freed address space."""
        self._owners.pop(mm.number, None)
