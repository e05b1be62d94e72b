"""A snapshot is told in pieces: whatever happens between two of them, the model is the machine when it is whole."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from kerneld.mm.space import munmap, pace
from kerneld.trace import snapshot, snapshot_frames
from shared.recording.head import GLOBS
from shared.trace.attr import TraceAttr
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.support.effort import examples
from tests.support.model_check import check
from tests.support.pieces import Pieces
from tests.support.programs import ANON, READ, ROOT, RW, SHARED_ANON, USER, Program, page
from tests.support.recorded import Recorded
from tests.support.traced import Trace, TracedWorld
from tests.trace.test_replay import Script

DATA_PAGES = 8192
OPEN = TraceAttr(GLOBS, (), DATA_PAGES).pack()
MOST_BYTES = 128 << 10
"""What a piece may tell at most in the test that divides the pieces by eight. Eight times as much takes the daemon some
milliseconds."""


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is over as soon as it may be, and two tables or four VMAs are many."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    monkeypatch.setattr(pace, "_AT_ONCE", 2 * PMD_SIZE)
    monkeypatch.setattr(pace, "_FEW_VMAS", 4)
    monkeypatch.setattr(munmap, "_FEW", 4)


class Busy:
    """Programs that make random calls, a piece at a time, in a random order; they come, fork and end."""

    def __init__(self, world: TracedWorld, seed: int) -> None:
        self.world = world
        self.pieces = Pieces()
        self._script = Script(seed)
        self._pick = random.Random(seed)
        self.programs: list[Program] = []
        for _ in range(3):
            self.come()

    def come(self) -> None:
        program = self.world.attach(USER)
        program.call(Nr.RT_SIGACTION, 11, 2)  # A bad access is reported to it, not the end of it.
        program.mmap(4 * 512, at=page(0))
        self.programs.append(program)

    def step(self, but: Program | None = None) -> None:
        """Let something happen: a piece of a request, the begin of one, a new process, the end of one."""
        chance = self._pick.random()
        self.programs = [program for program in self.programs if not program.process.ended]
        going = [program for program in self.pieces.busy if program is not but]
        if len(self.programs) < 2 or (chance < 0.03 and len(self.programs) < 5):
            self.come()
        elif chance < 0.05:
            self.world.kernel.process_died(self._pick.choice(self.programs).process)
        elif chance < 0.15:
            self.world.kernel.reap_memory()
        elif going and chance < 0.6:
            self.pieces.go_on(self._pick.choice(going))
        else:
            self._begin(self._pick.choice(self.programs))
        self.world.kernel.take_ended()

    def end(self) -> None:
        """Give up what has begun."""
        for program in self.pieces.busy:
            self.pieces.give_up(program)
        self.world.kernel.dying.slice_seconds = None
        self.world.kernel.dying.finish()

    def _begin(self, program: Program) -> None:
        if program in self.pieces.busy:
            self.pieces.go_on(program)
        elif self._pick.random() < 0.1:
            self.pieces.begin(program, Nr.CLONE)
        elif self._pick.random() < 0.1:
            self._brk(program)
        else:
            self.pieces.begin(program, *self._script.request())

    def _brk(self, program: Program) -> None:
        start = program.mm.start_brk
        self.pieces.begin(program, Nr.BRK, start + self._pick.choice((0, 1, 700, 1500)) * PAGE_SIZE)


@pytest.mark.slow
@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("seed", range(examples(1)))
def test_others_may_do_anything_while_the_snapshot_is_told(seed: int) -> None:
    world = TracedWorld(12 << 20, swap_bytes=16 << 20, thp="always", check_invariants=False)
    world.kernel.dying.slice_seconds = 0.0
    busy = Busy(world, seed)
    for _ in range(3):
        for _ in range(150):
            busy.step()
        answer, between = busy.pieces.begin(world.tracer, Nr.PERF_EVENT_OPEN, 0, data=OPEN), 0
        while answer is None:
            for _ in range(3):
                busy.step(but=world.tracer)
            answer = busy.pieces.go_on(world.tracer)
            between += 1
        assert between > 20
        trace = Trace(world.tracer, answer=answer)
        record = Recorded(world, trace, 500)
        check(record.read(), world.kernel)
        for _ in range(30):
            busy.step()
            check(record.read(), world.kernel)
        trace.close()
    busy.end()
    world.close()


@pytest.mark.usefixtures("short_pieces")
def test_a_heap_that_shrinks_while_a_trace_begins() -> None:
    """The call began before anything was traced."""
    world = TracedWorld()
    program, pieces = world.attach(), Pieces()
    start, length = program.mm.start_brk, 1000 * PAGE_SIZE
    assert program.call(Nr.BRK, start + length) == start + length
    assert program.call(Nr.TOUCH, start, length, Access.READ) == 1000
    assert pieces.begin(program, Nr.BRK, start) is None
    with world.trace(*GLOBS, data_pages=DATA_PAGES) as trace:
        while pieces.busy:
            pieces.go_on(program)
        check(Recorded(world, trace, 500).read(), world.kernel)
    world.close()


def many_vmas(program: Program) -> None:
    count = 2000
    program.mmap(count, at=page(0))
    program.touch(0, count)
    for number in range(0, count, 2):
        program.call(Nr.MPROTECT, page(number), PAGE_SIZE, READ)


def scattered_entries(program: Program) -> None:
    """No two entries, and no two frames, are one run."""
    count = 16 * 512
    program.mmap(count, at=page(0))
    for first in range(1, -1, -1):
        for number in range(first, count, 2):
            program.touch(number, 1)


def a_file_in_memory(program: Program) -> None:
    """No two of its pages are one run."""
    program.mmap(8000, RW, SHARED_ANON, at=page(0))
    for number in range(7999, -1, -1):
        program.touch(number, 1)


def swapped_out(program: Program) -> None:
    a_file_in_memory(program)
    assert program.call(Nr.MADVISE, page(0), 8000 * PAGE_SIZE, Madv.PAGEOUT) == 0


def many_tables(program: Program) -> None:
    program.mmap(5000 * 512, flags=ANON | Map.NORESERVE, at=page(0))
    program.touch(0, 5000 * 512, Access.READ)


def huge_zero_pages(program: Program) -> None:
    length = 6000 * PMD_SIZE
    program.mmap(length // PAGE_SIZE, flags=ANON | Map.NORESERVE, at=page(0))
    assert program.call(Nr.MADVISE, page(0), length, Madv.HUGEPAGE) == 0
    assert program.call(Nr.MADVISE, page(0), length, Madv.POPULATE_READ) == 0


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize(
    "make", [many_vmas, scattered_entries, a_file_in_memory, swapped_out, many_tables, huge_zero_pages]
)
def test_no_piece_tells_much(make: Callable[[Program], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """How long others wait is counted by what is told, which does not depend on how busy the machine is."""
    for name in ("_VMAS_AT_ONCE", "_TABLES_AT_ONCE", "_DEPOSITS_AT_ONCE"):
        monkeypatch.setattr(snapshot, name, getattr(snapshot, name) // 8)
    monkeypatch.setattr(snapshot_frames, "_SLOTS_AT_ONCE", 512)
    monkeypatch.setattr(snapshot_frames, "_FRAMES_AT_ONCE", 1024)
    world = TracedWorld(64 << 20, swap_bytes=64 << 20, check_invariants=False)
    program, pieces = world.attach(), Pieces()
    make(program)
    answer = pieces.begin(world.tracer, Nr.PERF_EVENT_OPEN, 0, data=OPEN)
    told, sizes = 0, []
    while answer is None:
        answer = pieces.go_on(world.tracer)
        for trace in world.tracing._traces:
            sizes.append(trace.ring._head - told)
            told = trace.ring._head
    assert max(sizes) <= MOST_BYTES
    assert sum(sizes) > 2 * MOST_BYTES
    reader = Trace(world.tracer, answer=answer)
    check(Recorded(world, reader, 500).read(), world.kernel)
    reader.close()
    world.close()


@pytest.mark.usefixtures("short_pieces")
def test_who_asks_may_end_before_it_is_told() -> None:
    world = TracedWorld()
    world.attach().mmap(64, at=page(0))
    before = len(os.listdir("/proc/self/fd"))
    opener, pieces = world.attach(ROOT), Pieces()
    assert pieces.begin(opener, Nr.PERF_EVENT_OPEN, 0, data=OPEN) is None
    while not world.tracing.snapshots:
        assert pieces.go_on(opener) is None
    assert pieces.go_on(opener) is None
    world.kernel.process_died(opener.process)
    assert pieces.busy == []
    assert not world.tracing.snapshots
    assert not world.tracing._traces
    assert len(os.listdir("/proc/self/fd")) == before
    world.close()
