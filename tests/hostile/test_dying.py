"""Processes that end with much memory: others are served while it is taken down, and whoever needs it gets it."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.mm.files import filemap
from kerneld.mm.limits import OVERCOMMIT_NEVER, Sysctl
from kerneld.mm.space import dying, pace
from kerneld.syscalls.kernel import Kernel, KernelConfig
from kerneld.trace.tracing import Tracing
from shared.trace.events import PTE_CLEAR
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.support.programs import ANON, BASE, FIXED, READ, ROOT, RW, SHARED, USER, Program, World
from tests.support.traced import Trace

RAM_BYTES = 16 << 20
PAGES = 96
NORESERVE = ANON | Map.NORESERVE.value


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece is over at once."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)


@pytest.fixture
def world() -> Iterator[World]:
    """A machine whose turns take down one piece; at its end all frames must be free."""
    world = World(KernelConfig(ram_bytes=RAM_BYTES, superuser_uid=ROOT, check_invariants=True))
    world.kernel.dying.slice_seconds = 0.0
    yield world
    close(world)


def close(world: World) -> None:
    for process in list(world.kernel.processes.values()):
        world.kernel.process_died(process)
    turns(world.kernel)
    world.close()


def turns(kernel: Kernel) -> int:
    """Let the loop have its turns until nothing is left; returns how many that took."""
    number = 0
    while kernel.dying.queue:
        kernel.reap_memory()
        number += 1
    return number


def with_many_vmas(world: World, uid: int = USER, pages: int = PAGES) -> Program:
    """Return a program that has a VMA, and a frame, for every other page."""
    program = world.attach(uid)
    program.mmap(pages, at=BASE)
    program.touch(0, pages, Access.WRITE)
    for number in range(0, pages, 2):
        program.call(Nr.MPROTECT, BASE + number * PAGE_SIZE, PAGE_SIZE, READ)
    return program


def with_written_file(world: World, fd: int) -> Program:
    """Return such a program that has also stored something in a file of one page."""
    os.ftruncate(fd, PAGE_SIZE)
    program = with_many_vmas(world)
    program.store(program.call(Nr.MMAP, 0, PAGE_SIZE, RW, SHARED, 0, 0, fds=[fd]), b"written")
    return program


def end(world: World, program: Program) -> None:
    world.kernel.process_died(program.process)
    world.kernel.take_ended()


def test_others_are_served_between_two_pieces(world: World) -> None:
    dead, other = with_many_vmas(world), world.attach(USER)
    end(world, dead)
    assert dead.process.mm is None
    served = 0
    while world.kernel.dying.queue:
        served += other.call(Nr.GETPID) == other.pid
        other.touch(0, 1, Access.WRITE) if served > 1 else other.mmap(1, at=BASE)
        world.kernel.reap_memory()
    assert served >= PAGES // 2


def test_many_that_end_in_one_turn_have_one_slice(world: World) -> None:
    dead = [with_many_vmas(world, pages=16) for _ in range(4)]
    world.kernel.dying.slice_seconds = 1e-9
    for program in dead:
        end(world, program)
    assert len(world.kernel.dying.queue) >= 3
    assert turns(world.kernel) >= 3 * 8


def test_a_long_turn_is_one_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Much time goes by on a busy machine while hundreds end; that is no other turn."""
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(dying, "monotonic", lambda: next(clock))
    dead = [with_many_vmas(world, pages=16) for _ in range(4)]
    mms = [program.mm for program in dead]
    left = []
    for program in dead:
        end(world, program)
        left.append(sum(len(mm.vmas) for mm in mms))
    assert left == left[:1] * 4


def test_with_an_event_loop_the_first_slice_waits_for_the_answer(world: World) -> None:
    """So does that of the memory from before an execve. Everything is consistent until then."""
    world.kernel.dying.is_answer_first = True
    dead = with_many_vmas(world, pages=16)
    mm = dead.process.live_mm
    nr_vmas = len(mm.vmas)
    end(world, dead)
    assert (len(mm.vmas), mm.is_dying, world.kernel.dying.is_fresh) == (nr_vmas, True, True)
    world.kernel.check()
    world.kernel.begin_reaping()
    assert len(mm.vmas) < nr_vmas
    assert not world.kernel.dying.is_fresh


def test_what_a_process_wrote_to_a_file_is_there_before_the_answer(world: World) -> None:
    """Its parent may read the file as soon as it has ended."""
    world.kernel.dying.is_answer_first = True
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE_SIZE)
        writer = world.attach(USER)
        assert writer.call(Nr.MMAP, BASE, PAGE_SIZE, RW, SHARED | Map.FIXED.value, 0, 0, fds=[file.fileno()]) == BASE
        assert writer.call(Nr.STORE, BASE, 7, data=b"written") == 7
        assert writer.call(Nr.EXIT_GROUP) == 0
        assert os.pread(file.fileno(), 7, 0) == b"written"


def test_an_end_with_many_vmas_but_no_shared_file_waits_for_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dying, "_MANY_VMAS", 4)
    world.kernel.dying.is_answer_first = True
    dead = with_many_vmas(world, pages=16)
    mm = dead.mm
    before = mm.map_count, mm.rss.resident_pages
    end(world, dead)
    assert (mm.map_count, mm.rss.resident_pages) == before
    assert world.kernel.dying.is_fresh


@pytest.mark.parametrize("many", [4, 1024])
def test_only_the_files_are_written_before_the_answer(world: World, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """The rest of the address space is as it was."""
    monkeypatch.setattr(dying, "_MANY_VMAS", many)
    monkeypatch.setattr(dying, "_LOOKED_THROUGH", 4)
    world.kernel.dying.is_answer_first = True
    with tempfile.TemporaryFile() as file:
        writer = with_written_file(world, file.fileno())
        mm = writer.mm
        nr_vmas = mm.map_count
        assert writer.call(Nr.EXIT_GROUP) == 0
        assert os.pread(file.fileno(), 7, 0) == b"written"
    assert (mm.map_count, mm.shared_vm) == (nr_vmas - 1, 0)


def test_those_of_shared_files_are_looked_for_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dying, "_LOOKED_THROUGH", 4)
    program = with_many_vmas(world)
    program.mmap(1, RW, SHARED | Map.ANONYMOUS.value)
    nr_vmas, before = program.mm.map_count, 0
    end(world, program)
    (mm,) = world.kernel.dying.mms
    while mm.map_count == nr_vmas:
        world.kernel.reap_memory()
        before += 1
    assert before >= nr_vmas // 4


def test_older_ends_do_not_keep_it_from_the_file(world: World) -> None:
    """They have had the slice of this turn, and are not over."""
    world.kernel.dying.slice_seconds = 1e-9
    for _ in range(2):
        end(world, with_many_vmas(world, pages=16))
    test_what_a_process_wrote_to_a_file_is_there_before_the_answer(world)
    assert len(world.kernel.dying.queue) == 3  # Its other memory has not gone.


def test_a_wide_range_of_zero_pages(world: World) -> None:
    dead = world.attach(USER)
    pages = 1 << 16
    dead.mmap(pages, READ, NORESERVE, at=BASE)
    dead.touch(0, pages, Access.READ)
    end(world, dead)
    assert turns(world.kernel) >= 2


def test_the_same_pid_comes_again_meanwhile(world: World) -> None:
    dead = with_many_vmas(world)
    pid = dead.pid
    end(world, dead)
    new = world.attach(USER, pid=pid)
    assert new.call(Nr.MINCORE, BASE, PAGE_SIZE, 0) == -errno.ENOMEM
    new.mmap(PAGES, at=BASE)
    assert new.load(BASE) == b"\0"
    assert world.kernel.dying.queue


@pytest.mark.parametrize("name", [b"meminfo", b"kpagecount"])
def test_who_looks_at_all_of_memory_finds_it_gone(world: World, name: bytes) -> None:
    reader = world.attach(ROOT)

    def look() -> bytes:
        return reader.answer(Nr.PROCREAD, 0, 1 << 16, data=name).data

    before = look()
    end(world, with_many_vmas(world))
    assert world.kernel.dying.queue
    assert look() == before


def test_who_needs_memory_gets_it(world: World) -> None:
    dead, other = with_many_vmas(world), world.attach(USER)
    dead.mmap(3000, at=BASE + 2 * PAGES * PAGE_SIZE)
    dead.touch(2 * PAGES, 3000, Access.WRITE)
    end(world, dead)
    other.mmap(3000, at=BASE)
    other.touch(0, 3000, Access.WRITE)
    assert other.process.live_mm.rss.resident_pages >= 3000
    assert world.kernel.frames.vmstat["oom_kill"] == 0


def test_of_many_mappings_the_wide_ones_give_their_memory_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for memory waits for these alone, and not for thousands of small ones."""
    monkeypatch.setattr(dying, "_MANY_VMAS", 8)
    dead = with_many_vmas(world)
    dead.mmap(2 * PMD_SIZE // PAGE_SIZE, at=BASE + (1 << 30))
    for number in range(200):
        assert dead.call(Nr.STORE, BASE + (1 << 30) + number * 5 * PAGE_SIZE, 1, data=b"x") == 1
    mm, frames = dead.process.live_mm, world.kernel.frames
    nr_vmas, enough = len(mm.vmas), frames.free_pages + 150
    end(world, dead)
    world.kernel.dying.finish(lambda: frames.free_pages >= enough)
    assert frames.free_pages >= enough
    assert len(mm.vmas) >= nr_vmas - 2


def test_who_needs_a_promise_gets_it() -> None:
    sysctl = Sysctl(overcommit_memory=OVERCOMMIT_NEVER, overcommit_ratio=100)
    config = KernelConfig(ram_bytes=RAM_BYTES, superuser_uid=ROOT, check_invariants=True, sysctl=sysctl)
    world = World(config)
    world.kernel.dying.slice_seconds = 0.0
    dead, other = world.attach(ROOT), world.attach(ROOT)
    most = 2500
    for number in range(20):
        dead.mmap(1, at=BASE + number * 2 * PAGE_SIZE)
    dead.mmap(most, at=BASE + most * PAGE_SIZE)
    assert other.answer(Nr.MMAP, 0, most * PAGE_SIZE, RW, ANON).ret == -errno.ENOMEM
    end(world, dead)
    assert world.kernel.dying.queue
    assert other.mmap(most) > 0
    close(world)


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_a_new_client_does_not_wait_for_the_promises_to_the_dead(kind: str) -> None:
    """It makes no request that could begin again, so it would wait for all of them in one turn."""
    sysctl = Sysctl(overcommit_memory=OVERCOMMIT_NEVER, overcommit_ratio=100)
    world = World(KernelConfig(ram_bytes=RAM_BYTES, superuser_uid=ROOT, check_invariants=True, sysctl=sysctl))
    kernel = world.kernel
    kernel.dying.slice_seconds = 0.0
    large, small = world.attach(ROOT), world.attach(ROOT)
    flags = ANON if kind == "private" else SHARED | Map.ANONYMOUS.value
    for program, pages in ((large, 32), (small, 4)):
        # A large process leaves a share for others.
        at = BASE
        while program.answer(Nr.MMAP, at, pages * PAGE_SIZE, RW, flags | FIXED).ret == at:
            at += 64 * PAGE_SIZE
    with pytest.raises(SysError):
        world.attach(ROOT)
    end(world, small)
    end(world, large)
    left = sum(mm.map_count for mm in kernel.dying.mms)
    assert left > 50
    new = world.attach(ROOT)
    assert sum(mm.map_count for mm in kernel.dying.mms) == left
    assert new.call(Nr.GETPID) == new.pid
    close(world)


def test_what_was_written_to_a_file_is_there(world: World, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(32 * PAGE_SIZE))
    writer = world.attach(ROOT)
    with path.open("r+b") as file:
        for number in range(32):
            writer.call(
                Nr.MMAP, BASE + 2 * number * PAGE_SIZE, PAGE_SIZE, RW, SHARED | Map.FIXED.value, 0,
                number * PAGE_SIZE, fds=[file.fileno()],
            )  # fmt: skip
            writer.store(BASE + 2 * number * PAGE_SIZE, b"x")
    end(world, writer)
    assert turns(world.kernel) >= 16
    assert path.read_bytes()[::PAGE_SIZE] == (b"x" * 32)


def test_a_machine_that_ends_meanwhile_has_written_to_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kerneld.syscalls.kernel._SHUTDOWN_SECONDS", 0.0)
    world = World(KernelConfig(ram_bytes=RAM_BYTES, superuser_uid=ROOT))
    world.kernel.dying.slice_seconds = 0.0
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * PAGE_SIZE))
    writer = with_many_vmas(world, ROOT)
    with path.open("r+b") as file:
        vaddr = writer.call(Nr.MMAP, 0, 4 * PAGE_SIZE, RW, SHARED, 0, 0, fds=[file.fileno()])
    assert vaddr > BASE
    assert writer.call(Nr.STORE, vaddr, 5, data=b"hello") == 5
    world.kernel.shutdown()
    assert path.read_bytes()[:5] == b"hello"


def test_what_is_left_is_traced_as_the_dead_ones_until_its_pid_comes_again(world: World) -> None:
    Tracing(world.kernel)
    root, user = world.attach(ROOT), world.attach(USER)
    traces = [Trace(root, "pte:clear"), Trace(user, "pte:clear")]
    dead = with_many_vmas(world, uid=USER + 1)
    pid = dead.pid
    end(world, dead)
    world.kernel.reap_memory()
    assert {record.pid for record in traces[0].records(PTE_CLEAR)} == {pid}
    new = world.attach(USER, pid=pid)
    new.mmap(1, at=BASE)
    turns(world.kernel)
    told = traces[0].records(PTE_CLEAR)
    assert told
    assert {(record.pid, record.owner == pid) for record in told} == {(0, False)}
    assert traces[1].records(PTE_CLEAR) == []
    for trace in traces:
        trace.close()


SHARED_PAGES = 3000


def with_shared_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return a program that has written to much shared anonymous memory; what is cached of it goes in many pieces."""
    monkeypatch.setattr(filemap, "EVICTED_AT_ONCE", 64)
    program = world.attach(USER)
    program.mmap(SHARED_PAGES, flags=SHARED | Map.ANONYMOUS.value, at=BASE)
    program.touch(0, SHARED_PAGES, Access.WRITE)
    return program


@pytest.mark.parametrize("way", ["munmap", "exit"])
def test_shared_memory_goes_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    owner, other = with_shared_memory(world, monkeypatch), world.attach(USER)
    free = world.kernel.frames.free_pages
    if way == "munmap":
        assert owner.call(Nr.MUNMAP, BASE, SHARED_PAGES * PAGE_SIZE) == 0
    else:
        end(world, owner)
    served = 0
    while world.kernel.dying.queue:
        served += other.call(Nr.GETPID) == other.pid
        world.kernel.reap_memory()
    assert served >= SHARED_PAGES // 64
    assert world.kernel.frames.free_pages >= free + SHARED_PAGES


def test_who_needs_the_memory_of_a_shared_mapping_gets_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, other = with_shared_memory(world, monkeypatch), world.attach(USER)
    assert owner.call(Nr.MUNMAP, BASE, SHARED_PAGES * PAGE_SIZE) == 0
    assert world.kernel.dying.queue
    other.mmap(SHARED_PAGES, at=BASE)
    other.touch(0, SHARED_PAGES, Access.WRITE)
    assert other.process.live_mm.rss.resident_pages >= SHARED_PAGES
    assert world.kernel.frames.vmstat["oom_kill"] == 0


def test_who_looks_at_all_of_memory_finds_a_shared_mapping_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = world.attach(ROOT)

    def look() -> bytes:
        return reader.answer(Nr.PROCREAD, 0, 1 << 16, data=b"kpagecount").data

    before = look()
    end(world, with_shared_memory(world, monkeypatch))
    assert world.kernel.dying.queue
    assert look() == before


def test_a_busy_machine_does_not_take_the_time_for_writing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece has milliseconds by the clock here, and little of the processor."""
    clock = itertools.count(0.0, 0.001)
    monkeypatch.setattr(dying, "monotonic", lambda: next(clock))
    monkeypatch.setattr(dying, "_LOOKED_THROUGH", 4)
    world.kernel.dying.is_answer_first = True
    with tempfile.TemporaryFile() as file:
        writer = with_written_file(world, file.fileno())
        mm = writer.mm
        assert writer.call(Nr.EXIT_GROUP) == 0
        assert os.pread(file.fileno(), 7, 0) == b"written"
    assert mm.shared_vm == 0


def test_hundreds_of_ends_share_the_time_for_writing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.004)
    monkeypatch.setattr(dying, "thread_time", lambda: next(clock))
    world.kernel.dying.is_answer_first = True
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE_SIZE)
        writers = [world.attach(USER) for _ in range(8)]
        for writer in writers:
            at = writer.call(Nr.MMAP, BASE, PAGE_SIZE, RW, SHARED | Map.FIXED.value, 0, 0, fds=[file.fileno()])
            assert at == BASE
        mms = [writer.mm for writer in writers]
        for writer in writers:
            end(world, writer)
    left = [mm for mm in mms if mm.shared_vm]
    assert 0 < len(left) < 8
