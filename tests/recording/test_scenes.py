"""Each event that only a record gets fires where it should, and the model is the machine before and after.

SCENES has a scene for each of them; one that is added without a scene fails here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.recording.physical import Use, uses
from shared.trace import events as ev
from shared.trace import state_events as st
from shared.trace.event import Event
from shared.trace.record import Record, decode
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.shadowpt import USER_SHADOW_PT
from shared.uapi.syscalls import Access, Nr
from tests.support.fake_shadowpt import HostMemory
from tests.support.model_check import check, entries_known
from tests.support.programs import OTHER, RW, SHARED, SHARED_ANON, USER, Program, page
from tests.support.recorded import Recorded, recorded
from tests.support.traced import TracedWorld
from tests.trace.test_events import fork_of

PAGES = 1200
"""More than the stage has frames, and fewer than frames and swap."""


class Stage:
    """A recorded world with a program on it."""

    def __init__(self, world: TracedWorld, record: Recorded) -> None:
        self.world = world
        self.record = record
        self.program = world.attach()
        self.told: set[Event] = set()

    def during(self, act: Callable[[], object]) -> list[Record]:
        """Return what happens while `act` runs; the model must be the machine before and after."""
        self.look()
        act()
        return self.look()

    def look(self) -> list[Record]:
        self.world.tracing.flush()
        data = self.record.trace.reader.take()
        self.record.chunks += self.record.recorder.take(data)
        check(self.record.recorder.machine, self.world.kernel)
        records = [one for one in decode(data) if isinstance(one, Record)]
        self.told |= {one.event for one in records}
        return records

    def populate(self, pages: int = 64) -> None:
        self.program.mmap(pages, at=page(0))
        self.program.touch(0, pages)

    def advise(self, pages: int, advice: Madv, first: int = 0) -> None:
        assert self.program.call(Nr.MADVISE, page(first), pages * PAGE_SIZE, advice) == 0


@pytest.fixture
def stage() -> Iterator[Stage]:
    world = TracedWorld(4 << 20, swap_bytes=4 << 20)
    with recorded(world) as record:
        yield Stage(world, record)
    world.close()


def memory_comes_and_goes(stage: Stage) -> None:
    (made, *_rest) = [one for one in stage.during(stage.populate) if one.event is st.TABLE_ALLOC]
    assert (made.fields["mm"], made.owner) == (stage.program.mm.number, stage.program.pid)
    records = stage.during(lambda: stage.program.call(Nr.MUNMAP, page(0), 64 * PAGE_SIZE))
    gone = [one for one in records if one.event is st.TABLE_FREE]
    assert made.fields in [one.fields for one in gone]
    batched = [one for one in records if one.event is st.MM_PAGE_FREE_BATCHED]
    assert sum(one.fields["nr_pages"] for one in batched) >= 64


def single_frames(stage: Stage) -> None:
    """More frames are freed one by one than the per-cpu list keeps."""
    stage.populate(600)

    def free_one_by_one() -> None:
        for number in range(600):
            stage.advise(1, Madv.DONTNEED, number)

    drained = [one for one in stage.during(free_one_by_one) if one.event is st.MM_PAGE_PCPU_DRAIN]
    assert {one.nr for one in drained} == {Nr.MADVISE}


def marks(stage: Stage) -> None:
    stage.populate(4)
    stage.advise(4, Madv.COLD)
    (loaded,) = [one for one in stage.during(lambda: stage.program.load(page(1))) if one.event is st.ACCESSED_DIRTY]
    assert (loaded.fields["vaddr"], loaded.fields["new"] ^ loaded.fields["old"]) == (page(1), 0x20)
    stage.advise(4, Madv.COLD)
    touched = stage.during(lambda: stage.program.touch(0, 4, Access.READ))
    assert sum(one.fields["nr_pages"] for one in touched if one.event is st.ACCESSED_DIRTY) == 4


def a_file(stage: Stage, path: Path) -> None:
    path.write_bytes(b"x" * 8 * PAGE_SIZE)
    fd = os.open(path, os.O_RDWR)
    records = stage.during(lambda: stage.program.mmap(8, RW, SHARED, at=page(0), fd=fd))
    os.close(fd)
    (mapped,) = [one for one in records if one.event is st.VMA_FILE]
    assert (mapped.fields["name"], mapped.fields["ino"]) == (str(path), path.stat().st_ino)
    records = stage.during(lambda: stage.program.touch(0, 8))
    added = [one for one in records if one.event is st.ADD_TO_PAGE_CACHE]
    assert {one.fields["mapping"] for one in added} == {mapped.fields["mapping"]}
    assert sum(one.fields["nr_pages"] for one in added) == 8
    assert stage.record.recorder.machine.files[mapped.fields["mapping"]].name == str(path)
    records = stage.during(lambda: stage.program.call(Nr.MUNMAP, page(0), 8 * PAGE_SIZE))
    gone = [one for one in records if one.event is st.DELETE_FROM_PAGE_CACHE]
    assert sum(one.fields["nr_pages"] for one in gone) == 8


def the_heap(stage: Stage) -> None:
    brk = stage.program.mm.brk
    (moved,) = [one for one in stage.during(lambda: stage.program.call(Nr.BRK, brk + 100)) if one.event is st.MM_BRK]
    assert moved.fields == {"mm": stage.program.mm.number, "brk": brk + 100}
    assert not [one for one in stage.during(lambda: stage.program.call(Nr.BRK, 0)) if one.event is st.MM_BRK]


def a_process(stage: Stage) -> None:
    others: list[Program] = []
    records = stage.during(lambda: others.append(stage.world.attach()))
    (layout,) = [one for one in records if one.event is st.MM_LAYOUT]
    assert (layout.fields["pid"], layout.fields["start_brk"]) == (others[0].pid, others[0].mm.start_brk)
    stage.during(lambda: others[0].call(Nr.EXIT_GROUP, 3))
    assert stage.record.recorder.machine.tasks[others[0].pid].exit_signal == 0


def memory_is_short(stage: Stage) -> None:
    program = stage.program
    program.mmap(PAGES, at=page(0))
    firsts = range(0, PAGES, 50)
    stage.during(lambda: [program.answer(Nr.TOUCH, page(n), 50 * PAGE_SIZE, 1) for n in firsts])
    absent = program.in_memory(0, PAGES).index(0)
    stage.during(lambda: program.load(page(absent)))
    stage.during(lambda: program.store(page(absent), b"x"))
    stage.during(lambda: program.call(Nr.MUNMAP, page(0), PAGES * PAGE_SIZE))


def shared_memory_is_short(stage: Stage) -> None:
    stage.program.mmap(16, RW, SHARED_ANON, at=page(0))
    stage.program.touch(0, 16)
    stage.during(lambda: stage.advise(16, Madv.PAGEOUT))
    stage.during(lambda: stage.program.load(page(3)))
    stage.during(lambda: stage.program.call(Nr.MUNMAP, page(0), 16 * PAGE_SIZE))


SCENES: dict[Event, Callable[[Stage], None]] = {
    st.MM_PAGE_PCPU_DRAIN: single_frames,
    st.MM_PAGE_ALLOC_ZONE_LOCKED: a_process,
    st.MM_PAGE_FREE_BATCHED: memory_comes_and_goes,
    st.MM_LAYOUT: a_process,
    st.MM_BRK: the_heap,
    st.TABLE_ALLOC: memory_comes_and_goes,
    st.TABLE_FREE: memory_comes_and_goes,
    st.ACCESSED_DIRTY: marks,
    st.SHMEM_SWAP: shared_memory_is_short,
    st.ADD_TO_SWAP_CACHE: memory_is_short,
    st.DELETE_FROM_SWAP_CACHE: memory_is_short,
}


@pytest.mark.parametrize("scene", dict.fromkeys(SCENES.values()), ids=lambda scene: scene.__name__)
def test_scene(stage: Stage, scene: Callable[[Stage], None]) -> None:
    scene(stage)
    assert {event for event, its_scene in SCENES.items() if its_scene is scene} <= stage.told


def test_a_file_has_its_name_and_its_pages(stage: Stage, tmp_path: Path) -> None:
    a_file(stage, tmp_path / "data")
    assert {st.VMA_FILE, st.ADD_TO_PAGE_CACHE, st.DELETE_FROM_PAGE_CACHE} <= stage.told


def test_a_snapshot_tells_what_was_there_before(tmp_path: Path) -> None:
    """Files, swapped pages, page tables, a process that has ended and one that has not."""
    world = TracedWorld(4 << 20, swap_bytes=4 << 20)
    program = world.attach()
    path = tmp_path / "data"
    path.write_bytes(b"x" * 8 * PAGE_SIZE)
    with open(path, "r+b") as file:
        program.mmap(8, RW, SHARED, at=page(PAGES + 50), fd=file.fileno())
    program.load(page(PAGES + 51))
    program.mmap(PAGES, at=page(0))
    for first in range(0, PAGES, 50):
        program.answer(Nr.TOUCH, page(first), 50 * PAGE_SIZE, 1)
    program.mmap(16, RW, SHARED_ANON, at=page(PAGES))
    program.touch(PAGES, 16)
    program.call(Nr.MADVISE, page(PAGES), 8 * PAGE_SIZE, Madv.PAGEOUT)
    world.attach().call(Nr.EXIT_GROUP, 0)
    with recorded(world) as record:
        machine = record.read()
        check(machine, world.kernel)
        tables = {pfn for mm in world.kernel.table.address_spaces() for pfn in mm.page_table.tables()}
        assert {pfn for pfn, use in enumerate(uses(machine)) if use is Use.TABLE} == tables, "the roots too"
        assert record.recorder.events == 0
        (key,) = record.chunks
        (begin, *_between, end) = [one for one in decode(key.payload) if isinstance(one, Record)]
        assert (begin.event, end.event) == (st.SNAPSHOT_BEGIN, st.SNAPSHOT_END)
        assert st.SNAPSHOT_TASK in {one.event for one in _between}
    world.close()


def test_fork_and_execve() -> None:
    world = TracedWorld(16 << 20)
    with recorded(world) as record:
        parent = world.attach(pid=os.getpid())
        parent.mmap(8, at=page(0))
        parent.touch(0, 8)
        token = parent.call(Nr.CLONE)
        check(record.read(), world.kernel)
        assert token
        child = fork_of(world, parent)
        machine = record.read()
        check(machine, world.kernel)
        assert machine.tasks[child.pid].ppid == parent.pid
        child.store(page(1), b"x")
        check(record.read(), world.kernel)
        with open("/bin/true", "rb") as file:
            child.call(Nr.EXECVE, 0, 0, 0, data=b"true\0\0", fds=[file.fileno()])
        machine = record.read()
        check(machine, world.kernel)
        assert machine.tasks[child.pid].program == os.path.realpath("/bin/true")[:63]
        names = {machine.files[vma.mapping].name for vma in machine.mms[child.mm.number].vmas.values() if vma.mapping}
        assert os.path.realpath("/bin/true") in names
    world.close()


def test_the_shadow_page_table_is_in_the_record() -> None:
    """Also in one that begins when the table is open already."""
    world = TracedWorld()
    target, opener = world.attach(), world.attach(0, pid=os.getpid())
    target.mmap(8, at=page(0))
    memory = HostMemory(12)
    with recorded(world) as record:
        packed = USER_SHADOW_PT.pack(page(0), page(8), memory.address)
        fds = opener.answer(Nr.SHADOWPT_OPEN, target.pid, 0, 0, data=packed).fds
        opener.call(Nr.SHADOWPT_START)
        target.store(page(3), b"x")
        machine = record.read()
        check(machine, world.kernel)
        assert machine.shadow is not None
        assert machine.shadow.is_tracking
        with recorded(world) as other:
            check(other.read(), world.kernel)
        opener.call(Nr.SHADOWPT_STOP)
        target.call(Nr.MUNMAP, page(0), PMD_SIZE)
        check(record.read(), world.kernel)
        opener.call(Nr.SHADOWPT_CLOSE)
        machine = record.read()
        check(machine, world.kernel)
        assert machine.shadow is None
    for fd in fds:
        os.close(fd)
    world.close()


def test_who_may_not_see_everything_has_a_whole_record_of_the_rest() -> None:
    """Their own processes, without frame numbers and without physical memory; with --pid, that process."""
    world = TracedWorld()
    own, others = world.attach(USER), world.attach(OTHER)
    for program in (own, others):
        program.mmap(8, at=page(0))
        program.touch(0, 4)
    for opener, pids in ((world.attach(USER), ()), (world.tracer, (own.pid,))):
        with recorded(world, opener=opener, pids=pids, data_pages=1024) as record:
            machine = record.read()
            assert machine.is_whole
            own.touch(4, 4)
            others.touch(4, 4)
            machine = record.read()
            assert others.pid not in machine.tasks
            assert others.mm.number not in machine.mms
            assert machine.nr_frames == 0
            known = machine.mms[own.mm.number]
            assert {vma.start for vma in known.vmas.values()} == {vma.start for vma in own.mm.vmas}
            pfns = {entry >> 12 & 0xFF_FFFF_FFFF for entry in entries_known(known).values()}
            assert len(entries_known(known)) == 8
            assert (pfns == {0}) == (opener is not world.tracer)
            own.call(Nr.MADVISE, page(4), 4 * PAGE_SIZE, Madv.DONTNEED)
    world.close()


def test_every_event_has_a_scene() -> None:
    elsewhere = {
        st.VMA_FILE, st.ADD_TO_PAGE_CACHE, st.DELETE_FROM_PAGE_CACHE, st.SNAPSHOT_BEGIN, st.SNAPSHOT_END,
        st.SNAPSHOT_TASK,
    }  # fmt: skip
    assert set(SCENES) | elsewhere == set(st.STATE_EVENTS)


def test_a_trace_for_people_gets_none_of_these_events() -> None:
    assert not set(st.STATE_EVENTS) & set(ev.matching("*"))


def test_a_process_that_was_there_before_ends_first() -> None:
    """The first table of which the record tells is the root of an address space that nobody has any more."""
    world = TracedWorld(8 << 20)
    program = world.attach(USER)
    with recorded(world) as record:
        program.call(Nr.EXIT_GROUP, 0)
        check(record.read(), world.kernel)
    world.close()
