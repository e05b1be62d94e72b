"""The tracing of one kernel: who has a trace open, which probes that takes, and when records are written.

Owns the open traces and the registered probes. Records are gathered while the outermost of a few functions runs (a
request, the end of a process, …) and written when it ends, however it ends: a reader never sees half a request, and a
request pays for one write.

Invariants: a probe is registered exactly while an open trace wants one of its events, or any is open where it is for
all; a trace is open at most as long as the thread that opened it.
Answers to Linux v6.8 kernel/events/core.c: perf_event_open().
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

import structlog

from kerneld.errors import SysError
from kerneld.task.ptrace import ptrace_may_access
from kerneld.trace.current import NOBODY, Current
from kerneld.trace.fprobe import FPROBES, Fprobe
from kerneld.trace.ftrace import FunctionTracer, check_globs
from kerneld.trace.probe import PROBES, Probe
from kerneld.trace.probes import fault, frames, pte, reclaim, request, shadow, task, vma  # noqa: F401  (into PROBES)
from kerneld.trace.probes.rss import note_rss, tell_rss
from kerneld.trace.ring import ReaderGone
from kerneld.trace.rings import Rings
from kerneld.trace.trace import Trace
from kerneld.trace.tracepoint import Tracepoint
from shared.trace.attr import TraceAttr, unpack_attr
from shared.trace.events import EVENTS, FTRACE, RSS_STAT, FaultKind, matching
from shared.uapi.page import PAGE_SHIFT

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.syscalls.kernel import Kernel
    from kerneld.task.task import Process, Thread
    from kerneld.trace.probes.shadow import SpteLog
    from shared.trace.event import Event

MAX_RING_BYTES = 256 << 20
_USER_SHARE = 16
"""Who is not the superuser may have a ring of a sixteenth of the largest (Linux: kernel.perf_event_mlock_kb)."""

_log = structlog.get_logger("kerneld.trace")


class Tracing:
    """What is traced of one kernel."""

    def __init__(self, kernel: Kernel, max_ring_bytes: int = MAX_RING_BYTES) -> None:
        self.kernel = kernel
        self.current = Current()
        self.points = {event.number: Tracepoint(event, self.current) for event in EVENTS}
        self.fault_kind = FaultKind.SPURIOUS
        """What the fault under way has turned out to be so far, and how many pages it has mapped."""
        self.fault_pages = 1
        self.spte_log: SpteLog | None = None
        """Why the shadow table's pages have become dirty; made when first needed."""
        self.rss_changed: dict[int, MmStruct] = {}
        """Address spaces, by number, whose resident pages may have changed since they were last told."""
        self.rss_told: dict[int, tuple[int, ...]] = {}
        """What was last told of each address space."""
        self.closing_target = 0
        """The target of a shadow table that is being closed."""
        self._ftrace = FunctionTracer(self)
        self._max_ring_bytes = max_ring_bytes
        self._traces: list[Trace] = []
        self._rings = Rings(kernel)
        self._registered: dict[Probe, Fprobe] = {}
        self._owners: dict[int, int] = {}
        """The pid of the process that each address space is of, by its number."""
        self._next_handle = 1
        kernel.tracing = self

    def point(self, event: Event) -> Tracepoint:
        """Return an event's tracepoint."""
        return self.points[event.number]

    def find_pid(self, mm: MmStruct) -> int:
        """Return the pid of an address space's process; 0 for one that has none yet (fork, execve)."""
        return self._owners.get(mm.number, 0)

    def owner(self, mm: MmStruct) -> int:
        """Return whose memory an address space is: its process's, or that one's whose copy waits for a child; or 0.

        It is 0 only while the address space is made, by whoever is served.
        """
        pid = self._owners.get(mm.number, 0)
        if not pid:
            parent = self.kernel.table.find_parent(mm)
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
        """Open a trace for a thread, as a packed TraceAttr says; return its handle and the reader's two descriptors.

        It comes in pieces as long as it looks at what is asked for; what happens is traced from the last one on. The
        caller closes the descriptors. Raises SysError(EINVAL) for no such events or functions or a ring of no such
        size, ENOSPC for one that is too large, ESRCH for no such process, EPERM for another user's or for everybody's
        functions, EMFILE with too many rings that may still be read, ENOMEM where the host has no memory for the ring.
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
            self._attach(trace)
        except BaseException:
            self._rings.free(ring)
            raise
        self._ftrace.open(trace, attr.functions, attr.graph_functions)
        _log.info("trace opened", pid=thread.process.pid, handle=trace.handle, events=len(events))
        return trace.handle, ring.take_fds()

    def _check(self, thread: Thread, attr: TraceAttr) -> Generator[None, None, tuple[Event, ...]]:
        """Return the events that are asked for, each once. Raises as `open` does."""
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
        # Others have been served meanwhile: who may see whom is asked last.
        self._check_rights(thread, attr, found)
        return tuple(found.values())

    def _check_rights(self, thread: Thread, attr: TraceAttr, found: dict[int, Event]) -> None:
        limit = self._max_ring_bytes if thread.process.cred.superuser else self._max_ring_bytes // _USER_SHARE
        if attr.data_pages << PAGE_SHIFT > limit:
            raise SysError(errno.ENOSPC)
        for pid in attr.pids:
            process = self.kernel.processes.get(pid)
            if process is None:
                raise SysError(errno.ESRCH)
            if not ptrace_may_access(thread.process, process):
                raise SysError(errno.EPERM)
        cred = thread.process.cred
        # Functions tell what everybody does, and how long it takes: without the superuser's rights only of one's own.
        if not cred.superuser and not attr.pids and not FTRACE.isdisjoint(found):
            raise SysError(errno.EPERM)

    def _attach(self, trace: Trace) -> None:
        """Have a trace told of its events, or of none where a probe cannot be registered."""
        self._traces.append(trace)
        try:
            self._update_probes()
        except BaseException:
            self._traces.remove(trace)
            self._update_probes()
            raise
        for event in trace.events:
            self.point(event).traces.append(trace)
        for process in self.kernel.processes.values():
            self.note_process(process, trace)
        if trace in self.point(RSS_STAT).traces:
            for process in self.kernel.processes.values():
                note_rss(self, process)
            tell_rss(self)
        with contextlib.suppress(ReaderGone):
            trace.flush()

    def _update_probes(self) -> None:
        """Register the probes that the open traces need, and only those."""
        wanted = {event.number for trace in self._traces for event in trace.events}
        if not self._traces:
            self._owners.clear()
        for one in PROBES:
            is_needed = bool(self._traces) and (not one.events or not one.events.isdisjoint(wanted))
            if is_needed and one not in self._registered:
                self._registered[one] = FPROBES.register(one.function, functools.partial(one.factory, self))
            elif not is_needed and one in self._registered:
                FPROBES.unregister(self._registered.pop(one))

    def close(self, thread: Thread, handle: int) -> None:
        """Close a trace. Raises SysError(EBADF) where the thread's process has none with that handle."""
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
        """Nobody holds the other end of a ring's pipe any more: its trace ends, and its memory is given back."""
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
        """Write what was gathered; a trace that nobody reads any more, or whose thread has gone, is closed."""
        for trace in list(self._traces):
            try:
                trace.flush()
            except ReaderGone:
                self._end(trace)
        self.reap()

    def note_process(self, process: Process, trace: Trace | None = None) -> None:
        """A process is there, or has another name, memory or credentials: tell one trace, or all."""
        if process.mm is None:
            return
        for dying in self.kernel.dying.mms:
            if self._owners.get(dying.number) == process.pid:
                self._owners[dying.number] = NOBODY
        self._owners[process.mm.number] = process.pid
        for one in self._traces if trace is None else (trace,):
            one.note_process(process, process.mm.number)

    def forget_pids(self, pids: Iterable[int]) -> None:
        """Processes have ended: who may not see everything does not see the next ones that have their pids."""
        for pid in pids:
            for trace in self._traces:
                if trace.hides and trace.pids is not None:
                    trace.pids.discard(pid)

    def note_mm(self, mm: MmStruct, pid: int) -> None:
        """An address space is a process's from now on."""
        self._owners[mm.number] = pid

    def mm_left(self, mm: MmStruct) -> None:
        """A process works with an address space no more: it has gone, or is somebody else's, or is still taken down."""
        if not mm.users and not mm.page_table.table_pages:
            self.forget_mm(mm)

    def forget_mm(self, mm: MmStruct) -> None:
        """An address space has gone."""
        self._owners.pop(mm.number, None)
