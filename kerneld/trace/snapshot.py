"""The snapshot at the beginning of a trace that records the machine: the events that would make it from an empty one.

Only this trace gets them. They are told in pieces, in the request that opens the trace, and other clients are served
between two pieces. So the machine changes while it is told, and the trace has the events of these changes too. Each
piece tells a part as it is at that moment. The records of the trace are in the order of time, so three rules make the
reader's machine exact at the end, whatever happens in between:

1. What the reader has is true at any moment, but some is missing. An event keeps that so, whether or not the reader has
   what the event changes: it says what something is from now on, and never only how it differs.
2. A piece adds what is missing in its part. What is told twice stays what it is.
3. So after its piece a part is whole, and the events keep it whole.

Two things need more than that. The tables that are kept for huge pages have no place that names them, so each is told
once: `shows_deposit` holds the events of those back that a later piece tells. An address space that comes after the
first piece is told by its events alone.

A trace that may not see everything gets what its events would show: without frame numbers, there is nothing to say
about frames, page cache and swap.

Answers to perf record, which tells of the processes and mappings that are there before it tells what happens
(tools/perf/util/synthetic-events.c).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from time import monotonic_ns
from typing import TYPE_CHECKING

import numpy as np

from kerneld.hw.paging import PGD_SHIFT, PUD_SHIFT
from kerneld.mm.frames.frames import FIRST_PFN, ZERO_PFN
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.pagewalk import Leaf
from kerneld.task.real_process import find_ppid
from kerneld.trace.probes.layout import file_name
from kerneld.trace.probes.pgtable import named_tables
from kerneld.trace.probes.pte import EntryLog
from kerneld.trace.probes.shadow import tell_entries
from kerneld.trace.probes.task import comm_bytes
from kerneld.trace.snapshot_frames import tell_files, tell_frames, tell_pcp
from kerneld.trace.tracepoint import Tracepoint
from shared.trace import events as ev
from shared.trace import state_events as st
from shared.trace.state_events import Level
from shared.uapi.page import PMD_SHIFT, PMD_SIZE, TASK_SIZE, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.task.task import Process
    from kerneld.trace.trace import Trace
    from kerneld.trace.tracing import Tracing
    from shared.trace.event import Event

Pieces = Iterator[None]
_VMAS_AT_ONCE = 128
_TABLES_AT_ONCE = 16
_DEPOSITS_AT_ONCE = 4096


class Snapshot:
    """Tells one trace what is there."""

    def __init__(self, tracing: Tracing, trace: Trace) -> None:
        self.trace = trace
        self._tracing = tracing
        self._kernel = tracing.kernel
        self._points: dict[Event, Tracepoint] = {}
        self._has_frames = trace.pids is None
        self._pace = Pace()
        self._told_deposits: dict[int, int] = {}
        """By number of an address space, how many of the tables that it keeps for huge pages are told, from the first
        on; without an entry, all are."""

    def point(self, event: Event) -> Tracepoint:
        """Return a tracepoint of this event whose only reader is the trace; without a reader if it wants no such."""
        found = self._points.get(event)
        if found is None:
            found = self._points[event] = Tracepoint(event, self._tracing.current)
            found.traces = [self.trace] if event in self.trace.events else []
        return found

    def begin(self) -> None:
        """Tell that everything known before is void. The trace gets every event from here on."""
        frames = self._kernel.frames
        sizes = (len(frames.refcount), len(frames.swap.count)) if self._has_frames else (0, 0)
        self._mark(st.SNAPSHOT_BEGIN, *sizes, FIRST_PFN, ZERO_PFN)
        self._told_deposits = dict.fromkeys((mm.number for mm in self._address_spaces()), 0)

    def _address_spaces(self) -> list[MmStruct]:
        return list(dict.fromkeys([*self._kernel.table.address_spaces(), *self._kernel.dying.mms]))

    def _mark(self, event: Event, *values: int) -> None:
        """Tell the reader itself something: this is about nobody's memory, and hidden from nobody."""
        if event in self.trace.events:
            self.trace.add(
                event.layout.pack(event.layout.size, event.number, 0, 0, 0, monotonic_ns(), 0, 0, 0, *values)
            )

    def shows_deposit(self, number: int, position: int, *, is_gone: bool) -> bool:
        """Return whether the trace gets the event of a table that is kept for a huge page, or is so no more.

        `number` is the address space's, `position` the table's place among the kept ones, which is the last one.
        """
        told = self._told_deposits.get(number)
        if told is None:
            return True
        if position >= told:
            return False
        if is_gone:
            self._told_deposits[number] = position
        return True

    def tell(self) -> Pieces:
        """Tell everything: processes, address spaces, frames, page cache, swap, the shadow table."""
        mms = self._address_spaces()
        self._pace.begin()
        for process in list(self._kernel.processes.values()):
            if self._kernel.processes.get(process.pid) is process:
                self._tell_process(process)
            yield from self._breathe()
        for mm in mms:
            yield from self._tell_mm(mm)
        if self._has_frames:
            tell_pcp(self.point, self._kernel.frames)
            yield from tell_frames(self.point, self._kernel.frames, self._breathe)
            yield from tell_files(self.point, self._kernel.frames, self._breathe)
        self._tell_shadow()
        self._mark(st.SNAPSHOT_END, len(self._address_spaces()))

    def _breathe(self) -> Pieces:
        """Let others be served if it is time. Whatever the caller knows of the machine may be wrong then."""
        if self._pace.is_over():
            yield
            self._pace.begin()

    def _tell_process(self, process: Process) -> None:
        mm = process.live_mm
        ppid = find_ppid(process.pid) or 0
        parent = ppid if ppid in self._kernel.processes else 0
        task = (comm_bytes(process.comm), process.pid, parent, mm.number, process.cred.uid)
        self.point(st.SNAPSHOT_TASK).emit(process.pid, *task)
        layout = (mm.number, process.pid, mm.start_brk, mm.brk, mm.start_stack)
        self.point(st.MM_LAYOUT).emit(process.pid, *layout)

    def _tell_mm(self, mm: MmStruct) -> Pieces:
        """Tell an address space, as far as it lives: it may be taken down meanwhile, and the events tell that."""
        for part in (self._tell_vmas, self._tell_upper_tables, self._tell_leaves, self._tell_deposits):
            pieces = part(mm)
            while mm.page_table.table_pages and next(pieces, pieces) is not pieces:
                yield
        self._told_deposits.pop(mm.number, None)

    def _tell_vmas(self, mm: MmStruct) -> Pieces:
        vaddr: Vaddr = 0
        while vmas := list(islice(mm.vmas.overlapping(vaddr, TASK_SIZE), _VMAS_AT_ONCE)):
            owner = self._tracing.owner(mm.number)
            rows = [(vma.start, vma.end, vma.vm_flags, vma.pgoff) for vma in vmas]
            columns = np.array(rows, dtype=np.uint64).reshape(-1, 4).T
            self.point(ev.VMA_INSERT).emit_many(owner, len(vmas), mm.number, *columns)
            names: dict[int, bytes] = {}
            for vma in vmas:
                file = vma.file
                if file is not None:
                    name = names.get(id(file))
                    if name is None:
                        name = names[id(file)] = file_name(self._tracing, file)
                    where = (mm.number, file.mapping.number, vma.start, file.dev, file.ino)
                    self.point(st.VMA_FILE).emit(owner, *where, name)
            vaddr = vmas[-1].end
            yield from self._breathe()

    def _tell_upper_tables(self, mm: MmStruct) -> Pieces:
        self._tell_tables(mm, [(Level.PGD, 0, mm.page_table.root)])
        for shift in (PGD_SHIFT, PUD_SHIFT):
            for table in mm.page_table.walk.tables(0, TASK_SIZE, shift):
                self._tell_tables(mm, named_tables(mm.page_table, table, shift))
                yield from self._breathe()

    def _tell_tables(self, mm: MmStruct, tables: list[tuple[int, Vaddr, int]]) -> None:
        if tables:
            levels, vaddrs, pfns = (np.array(column, dtype=np.uint64) for column in zip(*tables, strict=True))
            owner = self._tracing.owner(mm.number)
            self.point(st.TABLE_ALLOC).emit_many(owner, len(tables), mm.number, levels, vaddrs, pfns)

    def _tell_leaves(self, mm: MmStruct) -> Pieces:
        """Tell the leaf tables and their entries, some at a time."""
        walk = mm.page_table.walk
        for upper in walk.tables(0, TASK_SIZE, PMD_SHIFT):
            start = upper.start
            while start < upper.end:
                stop = self._pace.far_stop(walk, start, upper.end, _TABLES_AT_ONCE * PMD_SIZE)
                for table in walk.tables(start, stop, PMD_SHIFT):
                    self._tell_tables(mm, named_tables(mm.page_table, table, PMD_SHIFT))
                self._tell_entries(mm, start, stop)
                start = stop
                yield from self._breathe()

    def _tell_entries(self, mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
        log = EntryLog(self._tracing)
        log.redirect(self.point(ev.PTE_SET))
        for run in mm.page_table.walk.runs(start, end):
            if isinstance(run, Leaf) and run.huge:
                log.one(mm.pages, run.start & -PMD_SIZE, 0, mm.page_table._words[run.low], HPAGE_PMD_NR)
            else:
                entries = mm.page_table.walk.read(run)
                log.run(mm.pages, run, np.zeros(len(entries), dtype=np.uint64), entries)

    def _tell_deposits(self, mm: MmStruct) -> Pieces:
        deposited = mm.page_table.deposited
        while (told := self._told_deposits.get(mm.number, 0)) < len(deposited):
            tables = deposited[told : told + _DEPOSITS_AT_ONCE]
            self._tell_tables(mm, [(Level.DEPOSITED, 0, pfn) for pfn in tables])
            self._told_deposits[mm.number] = told + len(tables)
            yield from self._breathe()

    def _tell_shadow(self) -> None:
        session = self._kernel.shadowpt._session
        if session is None:
            return
        target = session.target.pid
        where = (session.opener.pid, target, session.start, session.end)
        self.point(ev.SHADOWPT_OPEN).emit(target, *where, 0, os.fsencode(session.caveat))
        if session.mm is not None or self._kernel.shadowpt.followed_host is not None:
            self.point(ev.SHADOWPT_START).emit(target, *where)
        table = session.table
        point = self.point(ev.SPTE_UPDATE)
        nothing = np.zeros(table.nr_pages, dtype=np.uint64)
        for nr_pages, vaddr, old, new in tell_entries(session.start, 0, nothing, nothing, table._flags, table._pfns):
            point.emit(target, nr_pages, vaddr, *old, *new)
