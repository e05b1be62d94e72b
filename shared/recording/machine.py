"""The model: the whole machine as the records so far have told it. Pure: bytes in, state out.

Each event that changes something has a handler here (`_HANDLERS`); all others are only shown. The model never asks
whether a record fits: a record with a gap in it (lost records, a cut-off file) is followed as well as can be, and
`is_whole` says that it is exact. Tests compare the model with the machine at every event.

What follows from the rest is not kept but computed when it is asked for (`shared.recording.physical`): who maps a
frame, what a frame is used for, the free blocks by order.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shared.recording.address_space import AddressSpace, Vma
from shared.trace import events as ev
from shared.trace import state_events as st
from shared.trace.event import HEADER
from shared.trace.record import COMM, COMM_RECORD, LOST
from shared.trace.state_events import Level
from shared.uapi.page import PAGE_SHIFT
from shared.uapi.shadowpt import MAX_SPT_RANGE

HEADER_FIELDS = len([code for code in HEADER if code.isalpha()])
FREE, PCP, TAKEN = 0, 1, 2
"""What a frame is for the allocator: free in a block, free on the per-cpu list, taken."""
NO_UID = (1 << 32) - 1
"""Of a process that came after the snapshot: no event tells its user."""
# A damaged record may have any number. No kerneld has numbers beyond these, and they would take all memory.
_MAX_FRAMES = 1 << 26
_MAX_RUN = 1 << 20
_HEAD = struct.Struct("<HH")


class File(NamedTuple):
    """The file of a mapping: its device, its inode, its path."""

    dev: int
    ino: int
    name: str


@dataclass(slots=True)
class Task:
    """One process. It stays after its end: `exit_signal` is None while it lives."""

    pid: int
    ppid: int = 0
    comm: str = ""
    uid: int = NO_UID
    mm: int = 0
    """The number of its address space; 0 after its end."""
    exit_signal: int | None = None
    program: str = ""
    """The file of its last execve."""


@dataclass(slots=True)
class Shadow:
    """The shadow page table of the inspector."""

    opener: int
    target: int
    start: int
    end: int
    is_tracking: bool = False
    flags: array[int] = field(default_factory=lambda: array("Q"))
    pfns: array[int] = field(default_factory=lambda: array("Q"))

    def copy(self) -> Shadow:
        """Return an independent copy."""
        return Shadow(
            self.opener, self.target, self.start, self.end, self.is_tracking, self.flags[:], self.pfns[:]
        )  # fmt: skip


class Machine:
    """The machine at one moment."""

    def __init__(self) -> None:
        self.mms: dict[int, AddressSpace] = {}
        self.tasks: dict[int, Task] = {}
        self.files: dict[int, File] = {}
        """By number of a mapping (`Vma.mapping`)."""
        self.nr_frames = 0
        """0 in a record of some processes, or of a user who may not see frames: then there are no frames at all."""
        self.nr_slots = 0
        self.first_pfn = self.zero_pfn = 0
        self.frames = bytearray()
        """FREE, PCP or TAKEN for each frame."""
        self.frame_flags = array("I")
        """The PG_ flags with which each frame was taken."""
        self.cached: dict[int, tuple[int, int]] = {}
        """By frame of the page cache, its mapping and its index in the file, in pages."""
        self.shmem_slots: dict[tuple[int, int], int] = {}
        """By mapping and index, the swap slot of each page of a file in memory that is swapped out."""
        self.swap_cache: dict[int, int] = {}
        """By frame of the swap cache, its slot."""
        self.shadow: Shadow | None = None
        self.time = 0
        """CLOCK_MONOTONIC of the last event, in nanoseconds."""
        self.lost = 0
        """Records that are missing since the last snapshot. The model is exact while this is 0."""
        self.is_complete = False
        """Whether a whole snapshot has come."""

    @property
    def is_whole(self) -> bool:
        """Whether the model is exact: nothing is missing since the last snapshot."""
        return self.is_complete and not self.lost

    def apply(self, data: bytes | memoryview, at: int = 0, count: int | None = None) -> tuple[int, int]:
        """Do what the records from `at` on say, up to `count` events. Return the place behind the last, and how many.

        A record that tells of a name or of lost records is no event. An unfinished record at the end is left.
        """
        end, done = len(data), 0
        find, unpack_size = _HANDLERS.get, _HEAD.unpack_from
        while at + 8 <= end:
            size, number = unpack_size(data, at)
            if size < 8 or at + size > end:
                break
            if number > COMM:
                if done == count:
                    break
                done += 1
                handler = find(number)
                if handler is not None:
                    act, unpack, length = handler
                    if length == size:
                        values = unpack(data, at)
                        self.time = values[5]
                        act(self, *values[HEADER_FIELDS:])
            elif number == COMM:
                self._name(*COMM_RECORD.unpack_from(data, at)[2:])
            elif number == LOST:
                self.lost += 1
            at += size
        return at, done

    def task(self, pid: int) -> Task:
        """Return the process of a pid; a new one where none has been told of."""
        found = self.tasks.get(pid)
        if found is None:
            found = self.tasks[pid] = Task(pid)
        return found

    def mm(self, number: int) -> AddressSpace:
        """Return the address space of a number; an empty one where none has been told of."""
        found = self.mms.get(number)
        if found is None:
            found = self.mms[number] = AddressSpace(number)
        return found

    def _name(self, pid: int, mm: int, comm: bytes) -> None:
        task = self.task(pid)
        if task.exit_signal is not None:
            task = self.tasks[pid] = Task(pid)  # Another process with this pid.
        task.comm = _text(comm)
        self._give(task, mm)

    def _give(self, task: Task, mm: int) -> None:
        if task.mm != mm:
            old = self.mms.get(task.mm)
            if old is not None and old.pid == task.pid:
                old.pid = 0
            task.mm = mm
        if mm:
            self.mm(mm).pid = task.pid

    # Snapshot

    def _begin(self, nr_frames: int, nr_slots: int, first_pfn: int, zero_pfn: int) -> None:
        self.__init__()  # type: ignore[misc]  # A snapshot makes the machine from nothing.
        nr_frames = nr_frames if nr_frames <= _MAX_FRAMES else 0
        self.nr_frames, self.nr_slots = nr_frames, nr_slots
        self.first_pfn, self.zero_pfn = first_pfn, zero_pfn
        self.frames = bytearray(nr_frames)
        first_pfn = min(first_pfn, nr_frames)
        self.frames[:first_pfn] = bytes([TAKEN]) * first_pfn
        self.frame_flags = array("I", bytes(4 * nr_frames))

    def _end(self, _nr_mms: int) -> None:
        self.is_complete = True

    def _there(self, comm: bytes, pid: int, ppid: int, mm: int, uid: int) -> None:
        task = self.task(pid)
        task.ppid, task.comm, task.uid = ppid, _text(comm), uid
        self._give(task, mm)

    # Processes

    def _newtask(self, comm: bytes, pid: int, mm: int) -> None:
        task = self.tasks.get(pid)
        if task is None or task.exit_signal is not None:
            task = self.tasks[pid] = Task(pid)
        task.comm = _text(comm)
        self._give(task, mm)

    def _fork(self, _comm: bytes, ppid: int, comm: bytes, pid: int, mm: int) -> None:
        self._newtask(comm, pid, mm)
        self.task(pid).ppid = ppid

    def _exec(self, name: bytes, pid: int, _old_pid: int, mm: int) -> None:
        task = self.task(pid)
        task.program = _text(name)
        self._give(task, mm)

    def _exit(self, _comm: bytes, pid: int, signo: int) -> None:
        task = self.task(pid)
        self._give(task, 0)
        task.exit_signal = signo

    def _layout(self, number: int, pid: int, start_brk: int, brk: int, start_stack: int) -> None:
        mm = self.mm(number)
        mm.start_brk, mm.brk, mm.start_stack = start_brk, brk, start_stack
        self._give(self.task(pid), number)

    def _brk(self, number: int, brk: int) -> None:
        self.mm(number).brk = brk

    def _rss(self, number: int, _curr: int, member: int, size: int) -> None:
        if member < 4:
            self.mm(number).rss[member] = size >> PAGE_SHIFT

    # VMAs

    def _vma_insert(self, number: int, start: int, end: int, vm_flags: int, pgoff: int) -> None:
        self.mm(number).vmas[start] = Vma(start, end, vm_flags, pgoff)

    def _vma_remove(self, number: int, start: int, _end: int, _vm_flags: int, _pgoff: int) -> None:
        self.mm(number).vmas.pop(start, None)

    def _vma_change(
        self, number: int, old_start: int, _old_end: int, _old: int, start: int, end: int, vm_flags: int, pgoff: int
    ) -> None:
        vmas = self.mm(number).vmas
        old = vmas.pop(old_start, None)
        vmas[start] = Vma(start, end, vm_flags, pgoff, old.mapping if old is not None else 0)

    def _vma_file(self, number: int, mapping: int, start: int, dev: int, ino: int, name: bytes) -> None:
        self.files[mapping] = File(dev, ino, _text(name))
        if not number:  # In a key frame: the file's last mapping is gone, its pages or its name are still needed.
            return
        vmas = self.mm(number).vmas
        if start in vmas:
            vmas[start] = vmas[start]._replace(mapping=mapping)

    # Page tables

    def _pte(self, number: int, nr_pages: int, vaddr: int, _old: int, new: int) -> None:
        mm = self.mm(number)
        if not new and nr_pages == 512 and mm.huge.pop(vaddr >> 21, 0):
            return
        if nr_pages <= _MAX_RUN:
            mm.set_run(vaddr, nr_pages, new)

    def _table_alloc(self, number: int, level: int, vaddr: int, pfn: int) -> None:
        mm = self.mm(number)
        if level == Level.DEPOSITED:
            mm.deposited.append(pfn)
        else:
            mm.tables[level, vaddr] = pfn

    def _table_free(self, number: int, level: int, vaddr: int, pfn: int) -> None:
        mm = self.mm(number)
        if level == Level.PGD:
            self.mms.pop(number, None)
        elif level != Level.DEPOSITED:
            mm.tables.pop((level, vaddr), None)
            if level == Level.PTE:
                mm.leaves.pop(vaddr >> 21, None)
        elif pfn in mm.deposited:
            mm.deposited.remove(pfn)

    # Frames

    def _page_alloc(self, pfn: int, nr_pages: int, _order: int, flags: int) -> None:
        if pfn + nr_pages <= self.nr_frames:
            if nr_pages == 1:
                self.frames[pfn] = TAKEN
                self.frame_flags[pfn] = flags
            else:
                self.frames[pfn : pfn + nr_pages] = bytes([TAKEN]) * nr_pages
                self.frame_flags[pfn : pfn + nr_pages] = array("I", (flags,)) * nr_pages

    def _page_free(self, pfn: int, nr_pages: int, _order: int) -> None:
        if pfn + nr_pages <= self.nr_frames:
            if nr_pages == 1:
                self.frames[pfn] = PCP  # `_batched` follows where it goes to a block.
                self.frame_flags[pfn] = 0
            else:
                self._to_blocks(pfn, nr_pages, 0)
                self.frame_flags[pfn : pfn + nr_pages] = array("I", bytes(4 * nr_pages))

    def _to_blocks(self, pfn: int, nr_pages: int, _order: int) -> None:
        if pfn + nr_pages <= self.nr_frames:
            self.frames[pfn : pfn + nr_pages] = bytes(nr_pages)

    def _to_pcp(self, pfn: int, nr_pages: int, _order: int) -> None:
        if pfn + nr_pages <= self.nr_frames:
            self.frames[pfn : pfn + nr_pages] = bytes([PCP]) * nr_pages

    def _cache_add(self, pfn: int, nr_pages: int, mapping: int, index: int) -> None:
        for number in range(nr_pages if pfn + nr_pages <= self.nr_frames else 0):
            self.cached[pfn + number] = mapping, index + number

    def _cache_delete(self, pfn: int, nr_pages: int, _mapping: int, _index: int) -> None:
        for number in range(nr_pages if pfn + nr_pages <= self.nr_frames else 0):
            self.cached.pop(pfn + number, None)

    def _shmem_swap(self, mapping: int, index: int, slot: int) -> None:
        if slot:
            self.shmem_slots[mapping, index] = slot
        else:
            self.shmem_slots.pop((mapping, index), None)

    def _swap_add(self, slot: int, pfn: int) -> None:
        self.swap_cache[pfn] = slot

    def _swap_delete(self, _slot: int, pfn: int) -> None:
        self.swap_cache.pop(pfn, None)

    # The shadow page table

    def _spt_open(self, opener: int, target: int, start: int, end: int, ret: int, _why: bytes) -> None:
        if not ret and 0 <= end - start <= MAX_SPT_RANGE:
            nothing = array("Q", bytes(end - start >> PAGE_SHIFT << 3))
            self.shadow = Shadow(opener, target, start, end, False, nothing, nothing[:])

    def _spt_start(self, *_where: int) -> None:
        if self.shadow is not None:
            self.shadow.is_tracking = True

    def _spt_stop(self, *_where: int) -> None:
        if self.shadow is not None:
            self.shadow.is_tracking = False

    def _spt_close(self, *_where: int) -> None:
        self.shadow = None

    def _spte(self, nr_pages: int, vaddr: int, _old_pfn: int, _old: int, pfn: int, flags: int) -> None:
        shadow = self.shadow
        if shadow is not None and shadow.start <= vaddr:
            first = (vaddr - shadow.start) >> PAGE_SHIFT
            if first + nr_pages <= len(shadow.flags):
                shadow.flags[first : first + nr_pages] = array("Q", (flags,)) * nr_pages
                pfns = range(pfn, pfn + nr_pages) if pfn > ev.LAST_CONSTANT_PFN else (pfn,) * nr_pages
                shadow.pfns[first : first + nr_pages] = array("Q", pfns)


def event_places(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield place, size and kind of each event in the records."""
    at, end = 0, len(data)
    while at + 8 <= end:
        size, number = _HEAD.unpack_from(data, at)
        if size < 8 or at + size > end:
            return
        if number > COMM:
            yield at, size, number
        at += size


def skip_events(data: bytes, count: int) -> int:
    """Return where the event number `count`, counted from 0, begins in the records, or the end."""
    at, end = 0, len(data)
    while at + 8 <= end:
        size, number = _HEAD.unpack_from(data, at)
        if size < 8 or (number > COMM and not count):
            break
        count -= number > COMM
        at += size
    return at


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("utf-8", "replace")


_ACTS: dict[Any, Callable[..., None]] = {
    st.SNAPSHOT_BEGIN: Machine._begin, st.SNAPSHOT_END: Machine._end, st.SNAPSHOT_TASK: Machine._there,
    ev.TASK_NEWTASK: Machine._newtask, ev.PROCESS_FORK: Machine._fork, ev.PROCESS_EXEC: Machine._exec,
    ev.PROCESS_EXIT: Machine._exit, st.MM_LAYOUT: Machine._layout, st.MM_BRK: Machine._brk, ev.RSS_STAT: Machine._rss,
    ev.VMA_INSERT: Machine._vma_insert, ev.VMA_REMOVE: Machine._vma_remove, ev.VMA_CHANGE: Machine._vma_change,
    st.VMA_FILE: Machine._vma_file, ev.PTE_SET: Machine._pte, ev.PTE_REPLACE: Machine._pte, ev.PTE_CLEAR: Machine._pte,
    st.ACCESSED_DIRTY: Machine._pte, st.TABLE_ALLOC: Machine._table_alloc, st.TABLE_FREE: Machine._table_free,
    ev.MM_PAGE_ALLOC: Machine._page_alloc, ev.MM_PAGE_FREE: Machine._page_free,
    st.MM_PAGE_FREE_BATCHED: Machine._to_blocks, st.MM_PAGE_PCPU_DRAIN: Machine._to_blocks,
    st.MM_PAGE_ALLOC_ZONE_LOCKED: Machine._to_pcp, st.ADD_TO_PAGE_CACHE: Machine._cache_add,
    st.DELETE_FROM_PAGE_CACHE: Machine._cache_delete, st.SHMEM_SWAP: Machine._shmem_swap,
    st.ADD_TO_SWAP_CACHE: Machine._swap_add, st.DELETE_FROM_SWAP_CACHE: Machine._swap_delete,
    ev.SHADOWPT_OPEN: Machine._spt_open, ev.SHADOWPT_START: Machine._spt_start, ev.SHADOWPT_STOP: Machine._spt_stop,
    ev.SHADOWPT_CLOSE: Machine._spt_close, ev.SPTE_UPDATE: Machine._spte,
}  # fmt: skip
_HANDLERS = {event.number: (act, event.layout.unpack_from, event.layout.size) for event, act in _ACTS.items()}
