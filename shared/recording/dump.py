"""The records that make a machine of the model from nothing: a key frame. `Machine.apply` reads them. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from shared.recording.address_space import AddressSpace
from shared.recording.machine import FREE, PCP, TAKEN, Machine, Shadow, Task
from shared.trace import events as ev
from shared.trace import state_events as st
from shared.trace.event import Event
from shared.trace.state_events import Level
from shared.uapi.page import PAGE_SHIFT


def key_frame(machine: Machine) -> bytes:
    """Return the records that make this machine."""
    packer = _Packer(machine.time)
    packer.add(st.SNAPSHOT_BEGIN, machine.nr_frames, machine.nr_slots, machine.first_pfn, machine.zero_pfn)
    for task in machine.tasks.values():
        _add_task(packer, task)
    for number, file in machine.files.items():
        # The VMA is one that no address space has: the name alone is told.
        packer.add(st.VMA_FILE, 0, number, 0, file.dev, file.ino, file.name.encode("utf-8", "replace"))
    for mm in machine.mms.values():
        _add_mm(packer, machine, mm)
    _add_frames(packer, machine)
    for (mapping, index), slot in machine.shmem_slots.items():
        packer.add(st.SHMEM_SWAP, mapping, index, slot)
    for pfn, slot in machine.swap_cache.items():
        packer.add(st.ADD_TO_SWAP_CACHE, slot, pfn)
    if machine.shadow is not None:
        _add_shadow(packer, machine.shadow)
    if machine.is_complete:
        packer.add(st.SNAPSHOT_END, len(machine.mms))
    return b"".join(packer.records)


class _Packer:
    """Packs records of one moment, without a process or a cause."""

    def __init__(self, time: int) -> None:
        self.records: list[bytes] = []
        self._time = time

    def add(self, event: Event, *fields: Any) -> None:
        self.records.append(event.layout.pack(event.layout.size, event.number, 0, 0, 0, self._time, 0, 0, 0, *fields))


def _add_task(packer: _Packer, task: Task) -> None:
    comm = task.comm.encode("utf-8", "replace")[:15]
    if task.exit_signal is None:
        packer.add(st.SNAPSHOT_TASK, comm, task.pid, task.ppid, task.mm, task.uid)
    else:
        packer.add(st.SNAPSHOT_TASK, comm, task.pid, task.ppid, 0, task.uid)
        packer.add(ev.PROCESS_EXIT, comm, task.pid, task.exit_signal)
    if task.program:
        program = task.program.encode("utf-8", "replace")[:63]
        packer.add(ev.PROCESS_EXEC, program, task.pid, task.pid, task.mm)


def _add_mm(packer: _Packer, machine: Machine, mm: AddressSpace) -> None:
    if mm.pid:
        packer.add(st.MM_LAYOUT, mm.number, mm.pid, mm.start_brk, mm.brk, mm.start_stack)
    packer.add(st.TABLE_ALLOC, mm.number, Level.PGD, 0, mm.tables.get((Level.PGD, 0), 0))
    for start, vma in sorted(mm.vmas.items()):
        packer.add(ev.VMA_INSERT, mm.number, vma.start, vma.end, vma.vm_flags, vma.pgoff)
        file = machine.files.get(vma.mapping)
        if file is not None:
            name = file.name.encode("utf-8", "replace")
            packer.add(st.VMA_FILE, mm.number, vma.mapping, start, file.dev, file.ino, name)
    for (level, vaddr), pfn in mm.tables.items():
        if level != Level.PGD:
            packer.add(st.TABLE_ALLOC, mm.number, level, vaddr, pfn)
    for pfn in mm.deposited:
        packer.add(st.TABLE_ALLOC, mm.number, Level.DEPOSITED, 0, pfn)
    for run in mm.runs():
        packer.add(ev.PTE_SET, mm.number, run.nr_pages, run.vaddr, 0, run.entry)
    for member, pages in enumerate(mm.rss):
        if pages:
            packer.add(ev.RSS_STAT, mm.number, 0, member, pages << PAGE_SHIFT)


def _add_frames(packer: _Packer, machine: Machine) -> None:
    frames, flags = machine.frames, machine.frame_flags
    at = machine.first_pfn
    for state, group in groupby(frames[at:]):
        count = sum(1 for _ in group)
        if state == PCP:
            packer.add(st.MM_PAGE_ALLOC_ZONE_LOCKED, at, count, 0)
        elif state == TAKEN:
            for first, length, flag in _equal(flags, at, at + count):
                packer.add(ev.MM_PAGE_ALLOC, first, length, 0, flag)
        else:
            assert state == FREE
        at += count
    for first, count, mapping, index in _cached_runs(machine.cached):
        packer.add(st.ADD_TO_PAGE_CACHE, first, count, mapping, index)


def _equal(flags: array[int], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    for flag, group in groupby(flags[start:end]):
        count = sum(1 for _ in group)
        yield start, count, flag
        start += count


def _cached_runs(cached: dict[int, tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    run: list[int] = []
    for pfn, (mapping, index) in sorted(cached.items()):
        if run and [pfn, mapping, index] == [run[0] + run[1], run[2], run[3] + run[1]]:
            run[1] += 1
            continue
        if run:
            yield run[0], run[1], run[2], run[3]
        run = [pfn, 1, mapping, index]
    if run:
        yield run[0], run[1], run[2], run[3]


def _add_shadow(packer: _Packer, shadow: Shadow) -> None:
    where = (shadow.opener, shadow.target, shadow.start, shadow.end)
    packer.add(ev.SHADOWPT_OPEN, *where, 0, b"")
    if shadow.is_tracking:
        packer.add(ev.SHADOWPT_START, *where)
    at, pages = 0, len(shadow.flags)
    while at < pages:
        flags, pfn, end = shadow.flags[at], shadow.pfns[at], at + 1
        while end < pages and shadow.flags[end] == flags and shadow.pfns[end] == (pfn + end - at if pfn > 1 else pfn):
            end += 1
        if flags or pfn:
            packer.add(ev.SPTE_UPDATE, end - at, shadow.start + (at << PAGE_SHIFT), 0, 0, pfn, flags)
        at = end
