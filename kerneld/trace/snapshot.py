"""The snapshot at the beginning of a trace that records the machine: the events that would make it from an empty one.

Only this trace gets them, at one moment, in the request that opens it. A trace that may not see everything gets what
its events would show: without frame numbers, there is nothing to say about frames, page cache and swap.

Answers to perf record, which tells of the processes and mappings that are there before it tells what happens
(tools/perf/util/synthetic-events.c).
"""

from __future__ import annotations

import os
from time import monotonic_ns
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import FIRST_PFN, PG_SWAPCACHE, ZERO_PFN
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.pagewalk import Leaf
from kerneld.task.real_process import find_ppid
from kerneld.trace.probes.frames import _emit_runs
from kerneld.trace.probes.layout import file_name
from kerneld.trace.probes.pagecache import tell_cached
from kerneld.trace.probes.pgtable import tables_of
from kerneld.trace.probes.pte import EntryLog
from kerneld.trace.probes.shadow import tell_entries
from kerneld.trace.probes.task import comm_bytes
from kerneld.trace.tracepoint import Tracepoint
from shared.trace import events as ev
from shared.trace import state_events as st
from shared.uapi.page import PMD_SIZE, TASK_SIZE

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.trace.trace import Trace
    from kerneld.trace.tracing import Tracing
    from shared.trace.event import Event


class Snapshot:
    """Tells one trace what is there."""

    def __init__(self, tracing: Tracing, trace: Trace) -> None:
        self._tracing = tracing
        self._kernel = tracing.kernel
        self._trace = trace
        self._points: dict[Event, Tracepoint] = {}
        self._has_frames = trace.pids is None

    def _point(self, event: Event) -> Tracepoint:
        """Return a tracepoint of this event whose only reader is the trace; without a reader if it wants no such."""
        found = self._points.get(event)
        if found is None:
            found = self._points[event] = Tracepoint(event, self._tracing.current)
            found.traces = [self._trace] if event in self._trace.events else []
        return found

    def begin(self) -> None:
        """Tell that everything known before is void."""
        frames = self._kernel.frames
        sizes = (len(frames.refcount), len(frames.swap.count)) if self._has_frames else (0, 0)
        self._mark(st.SNAPSHOT_BEGIN, *sizes, FIRST_PFN, ZERO_PFN)

    def _mark(self, event: Event, *values: int) -> None:
        """Tell the reader itself something: this is about nobody's memory, and hidden from nobody."""
        if event in self._trace.events:
            self._trace.add(
                event.layout.pack(event.layout.size, event.number, 0, 0, 0, monotonic_ns(), 0, 0, 0, *values)
            )

    def tell(self) -> None:
        """Tell everything: processes, address spaces, frames, page cache, swap, the shadow table."""
        kernel, tracing = self._kernel, self._tracing
        for process in kernel.processes.values():
            mm = process.live_mm
            ppid = find_ppid(process.pid) or 0
            self._point(st.SNAPSHOT_TASK).emit(
                process.pid, comm_bytes(process.comm), process.pid, ppid if ppid in kernel.processes else 0, mm.number,
                process.cred.uid,
            )  # fmt: skip
            layout = (mm.number, process.pid, mm.start_brk, mm.brk, mm.start_stack)
            self._point(st.MM_LAYOUT).emit(process.pid, *layout)
        mms = list(dict.fromkeys([*kernel.table.address_spaces(), *kernel.dying.mms]))
        for mm in mms:
            self._tell_mm(mm, tracing.owner(mm.number))
        if self._has_frames:
            self._tell_frames()
            self._tell_files()
        self._tell_shadow()
        self._mark(st.SNAPSHOT_END, len(mms))

    def _tell_mm(self, mm: MmStruct, owner: int) -> None:
        vmas = list(mm.vmas)
        rows = [(vma.start, vma.end, vma.vm_flags, vma.pgoff) for vma in vmas]
        columns = np.array(rows, dtype=np.uint64).reshape(-1, 4).T
        self._point(ev.VMA_INSERT).emit_many(owner, len(vmas), mm.number, *columns)
        names: dict[int, bytes] = {}
        for vma in vmas:
            file = vma.file
            if file is not None:
                name = names.get(id(file))
                if name is None:
                    name = names[id(file)] = file_name(self._tracing, file)
                where = (mm.number, file.mapping.number, vma.start, file.dev, file.ino)
                self._point(st.VMA_FILE).emit(owner, *where, name)
        tables = list(tables_of(mm)) if mm.page_table.table_pages else []
        if tables:
            levels, vaddrs, pfns = (np.array(column, dtype=np.uint64) for column in zip(*tables, strict=True))
            self._point(st.TABLE_ALLOC).emit_many(owner, len(tables), mm.number, levels, vaddrs, pfns)
            self._tell_entries(mm)

    def _tell_entries(self, mm: MmStruct) -> None:
        log = EntryLog(self._tracing)
        log.redirect(self._point(ev.PTE_SET))
        for run in mm.page_table.walk.runs(0, TASK_SIZE):
            if isinstance(run, Leaf) and run.huge:
                log.one(mm.pages, run.start & -PMD_SIZE, 0, mm.page_table._words[run.low], HPAGE_PMD_NR)
            else:
                entries = mm.page_table.walk.read(run)
                log.run(mm.pages, run, np.zeros(len(entries), dtype=np.uint64), entries)

    def _tell_frames(self) -> None:
        frames = self._kernel.frames
        taken = np.flatnonzero(~frames.buddy.is_free())
        taken = taken[taken >= FIRST_PFN]
        if len(taken):
            flags = frames.flags[taken]
            firsts = np.concatenate(([0], np.flatnonzero((np.diff(taken) != 1) | (flags[1:] != flags[:-1])) + 1))
            counts = np.diff(np.append(firsts, len(taken)))
            self._point(ev.MM_PAGE_ALLOC).emit_many(0, len(firsts), taken[firsts], counts, 0, flags[firsts])
        _emit_runs(self._point(st.MM_PAGE_ALLOC_ZONE_LOCKED), np.array(sorted(frames.buddy.pcp), dtype=np.int64))
        cached = np.flatnonzero(frames.has(slice(None), PG_SWAPCACHE))
        if len(cached):
            slots = frames.swap_slot[cached]
            self._point(st.ADD_TO_SWAP_CACHE).emit_many(0, len(cached), slots, cached)

    def _tell_files(self) -> None:
        for mapping in list(self._kernel.frames._mappings.values()):
            if isinstance(mapping, AddressSpace):
                pages = sorted(mapping.pages.items())
                indexes, pfns = _column(pages, 0), _column(pages, 1)
                tell_cached(self._point(st.ADD_TO_PAGE_CACHE), mapping.number, indexes, pfns)
                for index, slot in mapping.swapped.items():
                    self._point(st.SHMEM_SWAP).emit(0, mapping.number, index, slot)

    def _tell_shadow(self) -> None:
        session = self._kernel.shadowpt._session
        if session is None:
            return
        target = session.target.pid
        where = (session.opener.pid, target, session.start, session.end)
        self._point(ev.SHADOWPT_OPEN).emit(target, *where, 0, os.fsencode(session.caveat))
        if session.mm is not None or self._kernel.shadowpt.followed_host is not None:
            self._point(ev.SHADOWPT_START).emit(target, *where)
        table = session.table
        point = self._point(ev.SPTE_UPDATE)
        nothing = np.zeros(table.nr_pages, dtype=np.uint64)
        for nr_pages, vaddr, old, new in tell_entries(session.start, 0, nothing, nothing, table._flags, table._pfns):
            point.emit(target, nr_pages, vaddr, *old, *new)


def _column(rows: list[tuple[int, int]], number: int) -> npt.NDArray[np.int64]:
    return np.array([row[number] for row in rows], dtype=np.int64)
