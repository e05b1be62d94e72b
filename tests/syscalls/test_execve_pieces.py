"""execve of long strings: they are copied in pieces, and others do everything meanwhile."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Iterator

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls.access import read_remote_vm
from kerneld.mm.space import pace
from kerneld.mm.space.mm import MmStruct
from kerneld.syscalls.kernel import KernelConfig, Sender
from kerneld.task import exec_stack
from shared.client.execve import memory_file
from shared.uapi.syscalls import ABI_VERSION, Exec, Nr
from tests.support.pieces import Pieces
from tests.support.programs import ANON, ROOT, RW, USER, Program, World

CHUNK = 8
"""Pages that are copied at once here."""
STRINGS = [b"%d" % number * 36_000 for number in range(5)]
MANY = [b"%d" % number for number in range(24_000)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that are over at once."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    monkeypatch.setattr(exec_stack, "_CHUNK_PAGES", CHUNK)
    monkeypatch.setattr(exec_stack, "_SEARCHED_BYTES", 1 << 15)


@pytest.fixture
def world() -> Iterator[World]:
    world = World(KernelConfig(ram_bytes=8 << 20, superuser_uid=ROOT, check_invariants=True))
    yield world
    world.close()


class FailingOnce:
    """One allocation fails: that of this number."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.has_failed = False

    def __call__(self, _count: int) -> None:
        self.left -= 1
        if self.left == -1:
            self.has_failed = True
            raise SysError(errno.ENOMEM)


def begin(pieces: Pieces, program: Program, strings: list[bytes], path: str = "/bin/true") -> int | None:
    """Begin an execve; return what it returns if it is over already."""
    packed = b"".join(string + b"\0" for string in [*strings, b"name"])
    fds = [os.open(path, os.O_RDONLY), memory_file(packed)]
    flags = Exec.COUNTED | Exec.STRINGS_FD
    answer = pieces.begin(program, Nr.EXECVE, 0, 0, 0, flags, len(strings), 0, fds=fds)
    return None if answer is None else answer.ret


def finish(pieces: Pieces, program: Program) -> int:
    while True:
        answer = pieces.go_on(program)
        if answer is not None:
            return answer.ret


def arguments(mm: MmStruct) -> list[bytes]:
    return read_remote_vm(mm, mm.arg_start, mm.arg_end - mm.arg_start).split(b"\0")[:-1]


def pointers(mm: MmStruct) -> list[int]:
    words = memoryview(read_remote_vm(mm, mm.start_stack, 8 * (2 + len(MANY)))).cast("Q")
    return words.tolist()


@pytest.mark.parametrize("strings", [STRINGS, MANY])
def test_a_piece_is_a_chunk_and_the_program_gets_all(world: World, strings: list[bytes]) -> None:
    program, other, pieces = world.attach(), world.attach(), Pieces()
    old = program.mm
    assert begin(pieces, program, strings) is None
    resident = []
    while (answer := pieces.go_on(program)) is None:
        # Another process does something, and the old program is there.
        assert other.call(Nr.GETPID) == other.pid
        assert program.mm is old
        resident += [mm.rss.resident_pages for mm in program.process.new_mms]
    assert answer.ret == 0
    assert max(after - before for before, after in itertools.pairwise(resident)) <= 2 * CHUNK
    assert len(resident) >= 180_000 // 4096 // CHUNK
    assert arguments(program.mm) == strings
    if strings is MANY:
        begins = [program.mm.arg_start]
        for string in strings[:-1]:
            begins.append(begins[-1] + len(string) + 1)
        assert pointers(program.mm) == [len(strings), *begins, 0]
    assert program.process.new_mms == []


def test_short_strings_are_one_piece(world: World) -> None:
    pieces = Pieces()
    assert begin(pieces, world.attach(), [b"a"] * 40) == 0


def test_who_executes_may_die_meanwhile(world: World) -> None:
    program, pieces = world.attach(), Pieces()
    free = world.kernel.frames.free_pages
    for nr_pieces in range(8):
        program = world.attach()
        assert begin(pieces, program, STRINGS) is None
        for _ in range(nr_pieces):
            assert pieces.go_on(program) is None
        assert world.kernel.frames.free_pages < free
        world.kernel.process_died(program.process)
        assert program.process.new_mms == []
        assert pieces.busy == []  # And the rest is given up.
        assert world.kernel.frames.free_pages == free


def test_an_execve_that_is_given_up_leaves_the_old_program(world: World) -> None:
    program, pieces = world.attach(), Pieces()
    free, mm = world.kernel.frames.free_pages, program.mm
    assert begin(pieces, program, STRINGS) is None
    while not program.process.new_mms:
        assert pieces.go_on(program) is None
    pieces.give_up(program)
    assert program.process.new_mms == []
    assert program.mm is mm
    assert world.kernel.frames.free_pages == free
    world.kernel.check()


@contextlib.contextmanager
def another_thread(program: Program) -> Iterator[Program]:
    """Yield a further thread of this process, which `program` is."""
    over = threading.Event()
    real = threading.Thread(target=over.wait)
    real.start()
    try:
        sender = Sender(os.getpid(), USER, USER)
        yield Program(program.kernel, program.kernel.attach(sender, ABI_VERSION, real.native_id or 0, 0))
    finally:
        over.set()
        real.join()


def test_threads_of_one_process_may_execute_at_once(world: World) -> None:
    """The first to be done ends the others, as de_thread() in Linux v6.8 fs/exec.c; they use the old memory before."""
    program, pieces = world.attach(pid=os.getpid()), Pieces()
    with another_thread(program) as sibling, another_thread(program) as third:
        assert begin(pieces, program, MANY) is None
        assert begin(pieces, sibling, STRINGS) is None
        while len(program.process.new_mms) < 2:
            for one in (program, sibling):
                assert pieces.go_on(one) is None
                assert third.call(Nr.MMAP, 0, 4096, RW, ANON) > 0
        assert finish(pieces, sibling) == 0
        assert program.process.threads == [sibling.thread]
        pieces.give_up(program)
        assert program.process.new_mms == []
        world.kernel.check()
        assert arguments(sibling.mm) == STRINGS


def test_memory_is_reclaimed_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied may be swapped out before the program begins."""
    config = KernelConfig(ram_bytes=8 << 20, superuser_uid=ROOT, swap_bytes=8 << 20, check_invariants=True)
    small = World(config)
    program, pieces = small.attach(), Pieces()
    assert begin(pieces, program, MANY) is None
    frames = small.kernel.frames
    while (answer := pieces.go_on(program)) is None:
        small.kernel.vmscan.try_to_free_pages(frames.total_pages)
        small.kernel.check()
    assert answer.ret == 0
    assert frames.vmstat["pswpout"] > 0
    assert arguments(program.mm) == MANY
    small.close()


@pytest.mark.slow
@pytest.mark.parametrize("strings", [STRINGS, MANY])
def test_every_allocation_fails_in_turn(world: World, strings: list[bytes]) -> None:
    """The old program goes on as if nothing had been; or one frame was got where many were not."""
    frames, ends = world.kernel.frames, list[int | None]()
    while not ends or ends[-1] is not None:
        program, pieces = world.attach(), Pieces()
        at = program.mmap(1)
        program.store(at, b"old")
        world.kernel.files.kept.drop_all()
        free, failing = frames.free_pages, FailingOnce(len(ends))
        frames.alloc_hook = failing
        result = begin(pieces, program, strings)
        if result is None:
            result = finish(pieces, program)
        frames.alloc_hook = None
        ends.append(result if failing.has_failed else None)
        assert program.process.new_mms == []
        if result:
            world.kernel.files.kept.drop_all()
            assert frames.free_pages == free
            assert program.load(at, 3) == b"old"
        else:
            assert arguments(program.mm) == strings
        world.kernel.process_died(program.process)
    assert len(ends) > 15
    assert {*ends} == {0, None, -errno.ENOMEM, -errno.E2BIG, -errno.EFAULT}


def test_the_oom_killer_counts_it_for_the_process(world: World) -> None:
    """Source: Linux v6.8 fs/exec.c:acct_arg_size()."""
    program, pieces = world.attach(), Pieces()
    before = [sum(mm.rss.resident_pages for mm in task.copies) for task in world.kernel.oom_tasks.tasks()]
    assert begin(pieces, program, STRINGS) is None
    while not any(mm.rss.resident_pages > CHUNK for mm in program.process.new_mms):
        assert pieces.go_on(program) is None
    after = [sum(mm.rss.resident_pages for mm in task.copies) for task in world.kernel.oom_tasks.tasks()]
    assert (before, after > [CHUNK]) == ([0], True)
    assert finish(pieces, program) == 0
