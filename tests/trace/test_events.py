"""Every event fires where it should, with fields that are true. Faults, and what they do, are in test_faults.py.

SCENES has a scene for each event; one that is added without a scene fails here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from signal import SIGKILL
from typing import Any

import pytest

from kerneld.mm.vm_flags import VM_LOCKED
from shared.trace import events as ev
from shared.trace.event import Event
from shared.trace.events import Cause
from shared.trace.record import Record
from shared.trace.state_events import STATE_EVENTS
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.shadowpt import USER_SHADOW_PT
from shared.uapi.syscalls import Access, Nr
from tests.support.fake_shadowpt import HostMemory
from tests.support.programs import ROOT, Program, page
from tests.support.traced import Trace, TracedWorld

TESTED_ELSEWHERE = {ev.MM_FAULT, ev.PAGE_FAULT_USER, ev.EXPAND_STACK, ev.SIGNAL_GENERATE, ev.SIGNAL_DELIVER}


PAGES = 1200
"""More than the stage has frames, and fewer than frames and swap."""


class Stage:
    """A traced world with a program on it."""

    def __init__(self, world: TracedWorld, trace: Trace) -> None:
        self.world = world
        self.trace = trace
        self.program = world.attach()

    def during(self, act: Callable[[], Any], event: Event) -> list[Record]:
        return self.trace.during(act, event)

    def one(self, act: Callable[[], Any], event: Event) -> Record:
        (found,) = self.during(act, event)
        return found

    @property
    def mm(self) -> int:
        return self.program.mm.number


@pytest.fixture
def stage() -> Iterator[Stage]:
    world = TracedWorld(4 << 20, swap_bytes=4 << 20)
    with world.trace() as trace:
        yield Stage(world, trace)
    world.close()


def calls(stage: Stage) -> None:
    records = stage.trace.during(lambda: stage.program.answer(Nr.MUNMAP, 1, 2, 3))
    enter, leave = (record for record in records if record.event.system == "raw_syscalls")
    assert (enter.event, leave.event) == (ev.SYS_ENTER, ev.SYS_EXIT)
    assert enter.fields == {"id": 11, "arg0": 1, "arg1": 2, "arg2": 3, "arg3": 0, "arg4": 0, "arg5": 0, "data_bytes": 0}
    assert leave.fields == {"id": 11, "ret": -22, "signo": 0}
    assert (enter.pid, enter.tid, enter.causes, enter.nr) == (
        stage.program.pid,
        stage.program.pid,
        (Cause.SYSCALL,),
        11,
    )
    assert enter.time <= leave.time


def an_access_is_no_call(stage: Stage) -> None:
    stage.program.mmap(1, at=page(0))
    records = stage.trace.during(lambda: stage.program.store(page(0), b"x"))
    assert not [record for record in records if record.event.system == "raw_syscalls"]


def inserted(stage: Stage) -> None:
    record = stage.one(lambda: stage.program.mmap(3, at=page(0)), ev.VMA_INSERT)
    vma = stage.program.mm.vmas.find(page(0))
    assert vma is not None
    assert record.fields == {
        "mm": stage.mm, "start": page(0), "end": page(3), "vm_flags": vma.vm_flags, "pgoff": vma.pgoff,
    }  # fmt: skip
    assert (record.owner, record.nr) == (stage.program.pid, Nr.MMAP)


def removed(stage: Stage) -> None:
    stage.program.mmap(3, at=page(0))
    record = stage.one(lambda: stage.program.call(Nr.MUNMAP, page(0), 3 * PAGE_SIZE), ev.VMA_REMOVE)
    assert (record.fields["start"], record.fields["end"], record.nr) == (page(0), page(3), Nr.MUNMAP)


def changed(stage: Stage) -> None:
    stage.program.mmap(3, at=page(0))
    record = stage.one(lambda: stage.program.call(Nr.MLOCK, page(0), 3 * PAGE_SIZE), ev.VMA_CHANGE)
    assert (record.fields["old_start"], record.fields["start"], record.fields["end"]) == (page(0), page(0), page(3))
    assert record.fields["vm_flags"] ^ record.fields["old_flags"] == VM_LOCKED


def split(stage: Stage) -> None:
    stage.program.mmap(3, at=page(0))
    records = stage.during(lambda: stage.program.call(Nr.MUNMAP, page(1), PAGE_SIZE), ev.VMA_SPLIT)
    assert [record.fields["at"] for record in records] == [page(2)]
    assert (records[0].fields["start"], records[0].fields["end"]) == (page(0), page(3))


def merged(stage: Stage) -> None:
    stage.program.mmap(2, at=page(0))
    record = stage.one(lambda: stage.program.mmap(1, at=page(2)), ev.VMA_MERGE)
    assert record.fields == {
        "mm": stage.mm, "start": page(2), "end": page(3), "vma_start": page(0), "vma_end": page(3),
    }  # fmt: skip


def unmapped_area(stage: Stage) -> None:
    found: list[int] = []
    record = stage.one(lambda: found.append(stage.program.mmap(3)), ev.VM_UNMAPPED_AREA)
    assert (record.fields["addr"], record.fields["length"]) == (found[0], 3 * PAGE_SIZE)
    assert not stage.during(lambda: stage.program.mmap(1, at=page(0)), ev.VM_UNMAPPED_AREA)


def entries_set(stage: Stage) -> None:
    stage.program.mmap(64, at=page(0))
    records = stage.during(lambda: stage.program.touch(0, 64), ev.PTE_SET)
    assert sum(record.fields["nr_pages"] for record in records) == 64
    assert len(records) < 16
    assert {record.fields["old"] for record in records} == {0}


def entries_replaced(stage: Stage) -> None:
    stage.program.mmap(64, at=page(0))
    stage.program.touch(0, 64, Access.READ)
    record = stage.one(lambda: stage.program.call(Nr.MPROTECT, page(0), 64 * PAGE_SIZE, 0), ev.PTE_REPLACE)
    assert (record.fields["nr_pages"], record.fields["vaddr"], record.nr) == (64, page(0), Nr.MPROTECT)


def entries_cleared(stage: Stage) -> None:
    stage.program.mmap(64, at=page(0))
    stage.program.touch(0, 64, Access.READ)
    dontneed = (page(8), 8 * PAGE_SIZE, Madv.DONTNEED)
    record = stage.one(lambda: stage.program.call(Nr.MADVISE, *dontneed), ev.PTE_CLEAR)
    assert (record.fields["nr_pages"], record.fields["vaddr"], record.fields["new"]) == (8, page(8), 0)


def frames(stage: Stage) -> None:
    free = stage.world.kernel.frames.free_pages
    stage.program.mmap(64, at=page(0))
    taken = stage.during(lambda: stage.program.touch(0, 64), ev.MM_PAGE_ALLOC)
    assert sum(record.fields["nr_pages"] for record in taken) == free - stage.world.kernel.frames.free_pages
    back = stage.during(lambda: stage.program.call(Nr.MUNMAP, page(0), 64 * PAGE_SIZE), ev.MM_PAGE_FREE)
    assert sum(record.fields["nr_pages"] for record in back) == sum(record.fields["nr_pages"] for record in taken)
    assert {record.nr for record in back} == {Nr.MUNMAP}


def a_process_attaches(stage: Stage) -> None:
    record = stage.one(lambda: stage.world.attach(pid=os.getpid()), ev.TASK_NEWTASK)
    newest = list(stage.world.kernel.processes.values())[-1]
    assert record.fields == {"comm": newest.comm, "pid": newest.pid, "mm": newest.live_mm.number}
    assert stage.trace.comms[newest.pid] == newest.comm != ""
    assert (record.pid, record.causes) == (newest.pid, (Cause.ATTACH,))


def exits(stage: Stage) -> None:
    pid = stage.program.pid
    record = stage.one(lambda: stage.program.call(Nr.EXIT_GROUP, 3), ev.PROCESS_EXIT)
    assert (record.fields["pid"], record.fields["signo"]) == (pid, 0)
    other = stage.world.attach()
    records = stage.trace.during(lambda: stage.world.kernel.process_died(other.process))
    assert {record.causes[0] for record in records} == {Cause.EXIT}
    assert {record.pid for record in records} == {other.pid}
    assert ev.VMA_REMOVE in {record.event for record in records}


def reclaim(stage: Stage) -> list[Record]:
    program = stage.program
    program.mmap(PAGES, at=page(0))
    firsts = range(0, PAGES, 50)
    return stage.trace.during(lambda: [program.answer(Nr.TOUCH, page(n), 50 * PAGE_SIZE, 1) for n in firsts])


def reclaims(stage: Stage) -> None:
    records = reclaim(stage)
    by_event = {event: [record for record in records if record.event is event] for event in ev.EVENTS}
    begins, ends = by_event[ev.DIRECT_RECLAIM_BEGIN], by_event[ev.DIRECT_RECLAIM_END]
    wakes, sleeps = by_event[ev.KSWAPD_WAKE], by_event[ev.KSWAPD_SLEEP]
    assert len(begins) == len(ends)
    assert len(wakes) == len(sleeps) > 0
    vmstat = stage.world.kernel.frames.vmstat
    freed = sum(record.fields["nr_reclaimed"] for record in by_event[ev.SHRINK_INACTIVE])
    assert freed == vmstat["pgsteal_kswapd"] + vmstat["pgsteal_direct"] > 0
    assert sum(record.fields["nr_reclaimed"] for record in (*ends, *sleeps)) == freed
    assert sum(record.fields["nr_pages"] for record in by_event[ev.SWAP_OUT]) == vmstat["pswpout"] > 0
    gone = [record for record in by_event[ev.PTE_REPLACE] if not record.fields["new"] & 0x101]
    assert gone
    assert {record.causes[-1] for record in gone} <= {Cause.KSWAPD, Cause.RECLAIM}


def swaps_in(stage: Stage) -> None:
    reclaim(stage)
    absent = stage.program.in_memory(0, PAGES).index(0)
    before = stage.world.kernel.frames.vmstat["pswpin"]
    record = stage.one(lambda: stage.program.load(page(absent)), ev.SWAP_IN)
    assert stage.world.kernel.frames.vmstat["pswpin"] == before + 1
    assert record.causes[-1] is Cause.FAULT


def runs_out(stage: Stage) -> None:
    reclaim(stage)
    greedy = stage.world.attach()
    greedy.mmap(PAGES, at=page(0))
    pid = greedy.pid
    records = stage.trace.during(lambda: greedy.answer(Nr.TOUCH, page(0), PAGES * PAGE_SIZE, Access.WRITE))
    (victim,) = [record for record in records if record.event is ev.MARK_VICTIM]
    chosen = victim.fields["pid"]
    assert chosen in (pid, stage.program.pid)
    assert victim.fields["total_vm"] == (PAGES + 33) * 4
    assert victim.causes[-1] is Cause.OOM
    (end,) = [record for record in records if record.event is ev.PROCESS_EXIT]
    assert (end.fields["pid"], end.fields["signo"]) == (chosen, SIGKILL)


SCENES: dict[Event, Callable[[Stage], None]] = {
    ev.SYS_ENTER: calls,
    ev.SYS_EXIT: an_access_is_no_call,
    ev.VMA_INSERT: inserted,
    ev.VMA_REMOVE: removed,
    ev.VMA_CHANGE: changed,
    ev.VMA_SPLIT: split,
    ev.VMA_MERGE: merged,
    ev.VM_UNMAPPED_AREA: unmapped_area,
    ev.PTE_SET: entries_set,
    ev.PTE_REPLACE: entries_replaced,
    ev.PTE_CLEAR: entries_cleared,
    ev.MM_PAGE_ALLOC: frames,
    ev.MM_PAGE_FREE: frames,
    ev.TASK_NEWTASK: a_process_attaches,
    ev.PROCESS_EXIT: exits,
    ev.DIRECT_RECLAIM_BEGIN: reclaims,
    ev.DIRECT_RECLAIM_END: reclaims,
    ev.KSWAPD_WAKE: reclaims,
    ev.KSWAPD_SLEEP: reclaims,
    ev.SHRINK_INACTIVE: reclaims,
    ev.SWAP_OUT: reclaims,
    ev.SWAP_IN: swaps_in,
    ev.MARK_VICTIM: runs_out,
}


@pytest.mark.parametrize("scene", dict.fromkeys(SCENES.values()), ids=lambda scene: scene.__name__)
def test_scene(stage: Stage, scene: Callable[[Stage], None]) -> None:
    scene(stage)
    stage.trace.records()
    assert {event for event, its_scene in SCENES.items() if its_scene is scene} <= stage.trace.told


def fork_of(world: TracedWorld, parent: Program) -> Program:
    """Fork a program whose process is this real one; the child is a real child of it."""
    token = parent.call(Nr.CLONE)
    pid = os.fork()
    if pid == 0:
        os.execvp("sleep", ["sleep", "60"])
    try:
        return world.attach(pid=pid, token=token)
    finally:
        os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)


def test_fork_tells_parent_child_and_memory() -> None:
    world = TracedWorld()
    parent = world.attach(pid=os.getpid())
    parent.mmap(8, at=page(0))
    parent.touch(0, 8)
    with world.trace() as trace:
        children: list[Program] = []
        records = trace.during(lambda: children.append(fork_of(world, parent)))
        child = children[0]
        (fork,) = [record for record in records if record.event is ev.PROCESS_FORK]
        assert (fork.fields["parent_pid"], fork.fields["child_pid"]) == (parent.pid, child.pid)
        assert fork.fields["mm"] == child.mm.number
        copies = [record for record in records if record.event is ev.PTE_SET and record.fields["mm"] == child.mm.number]
        assert sum(record.fields["nr_pages"] for record in copies) == 8
        assert {(record.pid, record.nr, record.owner) for record in copies} == {(parent.pid, Nr.CLONE, parent.pid)}
        assert [record for record in records if record.event is ev.TASK_NEWTASK]
    world.close()


def test_exec_tells_the_file_and_the_new_memory() -> None:
    world = TracedWorld(16 << 20)
    program = world.attach(ROOT)
    before = program.mm.number
    with world.trace() as trace, open("/bin/true", "rb") as file:
        path = os.path.realpath("/bin/true")
        record = trace.during(
            lambda: program.call(Nr.EXECVE, 0, 0, 0, data=b"true\0\0", fds=[file.fileno()]), ev.PROCESS_EXEC
        )[0]
        assert record.fields["filename"] == path[:63]
        assert (record.fields["pid"], record.fields["mm"]) == (program.pid, program.mm.number)
        assert record.fields["mm"] != before
        assert trace.comms[program.pid] == program.process.comm == os.path.basename(path)
    world.close()


def test_the_shadow_table_tells_its_session_and_each_change_with_its_cause() -> None:
    world = TracedWorld()
    target = world.attach()
    target.mmap(8, at=page(0))
    opener = world.attach(ROOT, pid=os.getpid())
    memory = HostMemory(12)
    with world.trace("shadowpt:*") as trace:
        packed = USER_SHADOW_PT.pack(page(0), page(8), memory.address)
        fds = opener.answer(Nr.SHADOWPT_OPEN, target.pid, 0, 0, data=packed).fds
        opener.call(Nr.SHADOWPT_START)
        session = {"opener": opener.pid, "target": target.pid, "start": page(0), "end": page(8)}
        records = trace.records()
        assert [record.fields for record in records if record.event in (ev.SHADOWPT_OPEN, ev.SHADOWPT_START)] == [
            session | {"ret": 0, "why": ""},
            session,
        ]
        (filled,) = [record for record in records if record.event is ev.SPTE_UPDATE]
        assert (filled.fields["nr_pages"], filled.fields["new_flags"], filled.nr) == (8, 3, Nr.SHADOWPT_START)
        (stored,) = trace.during(lambda: target.store(page(3), b"x"))
        pfn = int(target.mm.page_table.walk.entries(page(3), page(4))[0]) >> 12 & 0xFFFFFFFFFF
        assert stored.fields == {
            "nr_pages": 1, "vaddr": page(3), "old_pfn": 0, "old_flags": 3, "new_pfn": pfn, "new_flags": 7,
        }  # fmt: skip
        assert (stored.causes, stored.address, stored.owner) == ((Cause.ACCESS, Cause.FAULT), page(3), target.pid)
        (gone,) = trace.during(lambda: target.call(Nr.MUNMAP, page(0), PMD_SIZE), ev.SPTE_UPDATE)[1:2]
        assert (gone.causes, gone.nr) == ((Cause.SYSCALL,), Nr.MUNMAP)
        assert [r.event for r in trace.during(lambda: opener.call(Nr.SHADOWPT_STOP))] == [ev.SHADOWPT_STOP]
        closing = trace.during(lambda: opener.call(Nr.SHADOWPT_CLOSE))
        assert closing[-1].event is ev.SHADOWPT_CLOSE
        assert closing[-1].fields == session
    for fd in fds:
        os.close(fd)
    world.close()


def test_every_event_has_a_scene() -> None:
    elsewhere = {event for event in ev.EVENTS if event.system in ("shadowpt", "ftrace", "machine")} | {ev.RSS_STAT}
    elsewhere |= set(STATE_EVENTS)  # tests/recording/test_scenes.py
    assert set(SCENES) | TESTED_ELSEWHERE | elsewhere | {ev.PROCESS_FORK, ev.PROCESS_EXEC} == set(ev.EVENTS)
