"""Reclaim where all of RAM is in use: who allocates waits for a bounded number of pages, and the rest is for others."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from signal import SIGKILL
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from kerneld.hw.paging import PF_WRITE
from kerneld.mm.fault.populate import populate_in_pieces
from kerneld.mm.frames.lru import SWAP_CLUSTER_MAX
from kerneld.mm.reclaim import scan_control, vmscan
from kerneld.mm.space import dying, pace
from kerneld.mm.space.wait import Wait
from kerneld.server.batch import Batch
from kerneld.syscalls.answer import Call
from kerneld.syscalls.kernel import Kernel, KernelConfig, Sender
from kerneld.task.cpu import touch_in_pieces
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import ABI_VERSION, Access, Nr
from shared.uapi.userfaultfd import API, COPY, REGISTER, UFFD_API, RegisterMode, Uffdio
from shared.wire import Request, unpack_replies
from tests.support.pieces import Pieces
from tests.support.programs import ANON, BASE, FIXED, READ, ROOT, RW, SHARED, Program, World, iovecs

RAM_BYTES = 32 << 20
RAM_PAGES = RAM_BYTES // PAGE_SIZE
MOST_SCANNED = 256


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that are over at once, and a bound that this small machine can reach."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    monkeypatch.setattr(scan_control, "MOST_SCANNED", MOST_SCANNED)


@pytest.fixture(params=["file", "swap"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    """A program that uses nearly all of RAM, and has used each page just now."""
    swap_bytes = RAM_BYTES if request.param == "swap" else 0
    world = World(KernelConfig(ram_bytes=RAM_BYTES, superuser_uid=ROOT, swap_bytes=swap_bytes))
    world.kernel.vmscan.in_pieces = True
    program = world.attach(ROOT)
    if request.param == "file":
        path = tmp_path / "file"
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(2 * RAM_BYTES)
            vaddr = program.call(Nr.MMAP, 0, 2 * RAM_BYTES, READ, SHARED, 0, 0, fds=[file.fileno()])
    else:
        vaddr = program.call(Nr.MMAP, 0, RAM_BYTES * 3 // 2, RW, ANON)
    access = Access.READ if request.param == "file" else Access.WRITE
    frames = world.kernel.frames
    step = 16 * PAGE_SIZE
    while frames.free_pages > frames.watermark_low + 32:
        assert program.answer(Nr.TOUCH, vaddr, step, access).ret == 16
        vaddr += step
    yield program
    world.close()


@pytest.fixture
def idle() -> Iterator[Program]:
    """A program of a machine with much free memory: `Stuck` makes it short."""
    world = World(KernelConfig(ram_bytes=RAM_BYTES, superuser_uid=ROOT, swap_bytes=RAM_BYTES))
    world.kernel.vmscan.in_pieces = True
    yield world.attach(ROOT)
    world.close()


def scanned(kernel: Kernel) -> int:
    return kernel.frames.vmstat["pgscan_direct"] + kernel.frames.vmstat["pgrefill"]


def test_an_allocation_waits_for_so_many_pages(program: Program) -> None:
    kernel = program.kernel
    before = scanned(kernel)
    assert kernel.vmscan.try_to_free_pages(1) >= SWAP_CLUSTER_MAX
    assert scanned(kernel) - before <= 2 * (MOST_SCANNED + SWAP_CLUSTER_MAX) + 2 * 512


@pytest.mark.parametrize("how", ["populate", "touch"])
def test_a_piece_of_a_long_call_waits_for_one_reclaim(
    program: Program, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page table and its pages, or a page and the next, may need memory each."""
    monkeypatch.setattr(pace, "_LATE_SECONDS", 0.0)
    length = 3 * PMD_SIZE
    more = program.call(Nr.MMAP, 0, length, RW, ANON)
    process = program.thread.process
    steps: Generator[Wait | None, None, int]
    if how == "populate":
        steps = populate_in_pieces(process.live_mm, more, more + length, ignore_errors=False)
    else:
        steps = touch_in_pieces(program.thread, program.kernel.ram, more, length, PF_WRITE)
    stalls = [program.kernel.frames.vmstat["allocstall_movable"]]
    for _ in steps:
        stalls.append(program.kernel.frames.vmstat["allocstall_movable"])
        if stalls[-1] >= stalls[0] + 3:
            break
    assert max(np.diff(stalls)) == 1


class Stuck:
    """A reclaim that frees nothing for a while, though it could free a lot."""

    def __init__(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attempts = 0
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(kernel.vmscan, "try_to_free_pages", self._try)
        monkeypatch.setattr(kernel.vmscan, "reclaimable_pages", lambda: RAM_PAGES)
        monkeypatch.setattr(kernel.frames, "watermark_min", kernel.frames.free_pages + 8)

    def _try(self, _count: int) -> int:
        self.attempts += 1
        return 0

    def end(self) -> None:
        self._monkeypatch.undo()


class Needy(NamedTuple):
    """A call that needs frames, and what it returns."""

    nr: int
    args: tuple[int, ...]
    result: int
    data: bytes = b"x"
    fds: tuple[int, ...] = ()
    given: tuple[int, int, bytes] = (0, 0, b"")
    """Where there is memory with frames then, how many they are, and the first byte."""


def needy(program: Program, call: str) -> Needy:
    at = program.call(Nr.MMAP, 0, 8 * PAGE_SIZE, RW, ANON)
    length = 8 * PAGE_SIZE
    every = (at, 8, b"\0")
    known = {
        "store": Needy(Nr.STORE, (at, 1), 1, given=(at, 1, b"x")),
        "touch": Needy(Nr.TOUCH, (at, length, Access.WRITE), 8, given=every),
        "mlock": Needy(Nr.MLOCK, (at, length), 0, given=every),
        "MAP_POPULATE": Needy(Nr.MMAP, (at, length, RW, ANON | FIXED | Map.POPULATE.value), at, given=every),
        "POPULATE_WRITE": Needy(Nr.MADVISE, (at, length, Madv.POPULATE_WRITE.value), 0, given=every),
        "fork": Needy(Nr.CLONE, (0,), 0),
        "get_mempolicy": Needy(Nr.GET_MEMPOLICY, (0, 0, 0, at, 3), 0),
        "/proc/PID/mem": Needy(Nr.MEM_RW, (program.pid, at, at + length // 2, PAGE_SIZE, 0), PAGE_SIZE),
        "read of mem": Needy(Nr.PROCREAD, (at, PAGE_SIZE), PAGE_SIZE, f"{program.pid}/mem".encode()),
        "process_vm_readv": Needy(
            Nr.PROCESS_VM_READV,
            (program.pid, 1, 1, 1, 1, 0),
            PAGE_SIZE,
            iovecs((at, PAGE_SIZE), (at + length // 2, PAGE_SIZE)),
            given=(at, 1, b"\0"),
        ),
    }
    return known[call] if call in known else needy_of_file(program, call, at, length)


def needy_of_file(program: Program, call: str, at: int, length: int) -> Needy:
    """Return a call that needs a descriptor too."""
    if call == "execve":
        return Needy(Nr.EXECVE, (1, 1, 1), 0, b"true\0", (os.open("/bin/true", os.O_RDONLY),))
    if call == "UFFDIO_COPY":
        (fd,) = program.answer(Nr.USERFAULTFD, os.O_NONBLOCK).fds
        for command, record in (
            (Uffdio.API, API.pack(UFFD_API, 0, 0)),
            (Uffdio.REGISTER, REGISTER.pack(at, length, RegisterMode.MISSING, 0)),
        ):
            assert program.call(Nr.IOCTL, fd, command, 0, data=record, fds=[fd]) == 0
        source = program.call(Nr.MMAP, 0, PAGE_SIZE, RW, ANON)
        program.store(source, b"x")
        record = COPY.pack(at, source, PAGE_SIZE, 0, 0)
        return Needy(Nr.IOCTL, (fd, Uffdio.COPY, 0), 0, record, (fd,), given=(at, 1, b"x"))
    fd = os.memfd_create("needy")
    os.ftruncate(fd, length)
    os.pwrite(fd, b"file", 0)
    if call == "mmap of a file":
        return Needy(
            Nr.MMAP, (at, length, RW, SHARED | FIXED | Map.POPULATE.value, fd), at, b"", (fd,), (at, 8, b"file")
        )
    assert call == "mmap of a file, in pieces"
    wide = program.call(Nr.MMAP, 0, 3 * PMD_SIZE, RW, ANON)
    return Needy(
        Nr.MMAP, (wide, 3 * PMD_SIZE, RW, SHARED | FIXED | Map.POPULATE.value, fd), wide, b"", (fd,), (wide, 8, b"file")
    )


CALLS = (
    "store", "touch", "mlock", "MAP_POPULATE", "POPULATE_WRITE", "fork", "/proc/PID/mem", "get_mempolicy",
    "read of mem", "process_vm_readv", "execve", "UFFDIO_COPY", "mmap of a file", "mmap of a file, in pieces",
)  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_reclaim_without_progress_lets_others_act(idle: Program, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt a turn, whatever others do meanwhile. The call ends as it does with memory."""
    kernel, pieces = idle.kernel, Pieces()
    other = Program(kernel, kernel.attach(Sender(idle.pid + 1, ROOT, ROOT), ABI_VERSION, 0, 0))
    fd = os.memfd_create("other's")
    needed = needy(idle, call)
    nr, args, result, data, fds, _ = needed
    stuck = Stuck(kernel, monkeypatch)
    answer = pieces.begin(idle, nr, *args, data=data, fds=fds)
    for _ in range(10):
        assert answer is None
        attempts = stuck.attempts
        assert other.mmap(1, READ, SHARED, fd=fd) > 0
        answer = pieces.go_on(idle)
        assert stuck.attempts <= attempts + 1
    assert stuck.attempts >= 5
    os.close(fd)
    stuck.end()
    while answer is None:
        answer = pieces.go_on(idle)
    assert answer.ret > 0 if call == "fork" else answer.ret == result
    for each in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(each)
    at, nr_frames, first_byte = needed.given
    assert (frames_of(idle, at), idle.load(at, len(first_byte))) == (nr_frames, first_byte)
    assert len(kernel.table.copies_of(idle.process)) == (call == "fork")
    assert not kernel.frames.vmstat["oom_kill"]


def frames_of(program: Program, vaddr: int) -> int:
    """Return how many pages from an address on have a frame, the zero page not counted."""
    walk = program.mm.page_table.walk
    return sum(len(walk.mapped(leaf)[1]) for leaf in walk.leaves(vaddr, vaddr + 8 * PAGE_SIZE))


@pytest.mark.parametrize("call", ["store", "MAP_POPULATE", "mmap of a file"])
def test_after_an_attempt_others_come_first(idle: Program, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the slice of the request is: an attempt may take most of a turn."""
    nr, args, result, data, fds, _ = needy(idle, call)
    session = SimpleNamespace(connection=SimpleNamespace(reply_limit=1 << 16, has_unread=False))
    request = Request(nr, (*args, *[0] * (6 - len(args))), data)  # type: ignore[arg-type]
    batch = Batch(session, Call(idle.kernel, idle.thread, (0,) * 6, b"", [*fds]), [request])  # type: ignore[arg-type]
    stuck = Stuck(idle.kernel, monkeypatch)
    for attempts in range(1, 5):
        assert batch.run(60.0) is None
        assert stuck.attempts == attempts
        assert batch.gives_way
    stuck.end()
    while (outcome := batch.run(60.0)) is None:
        pass
    assert [reply.ret for reply in unpack_replies(outcome.answer)] == [result]
    batch.close()


def test_an_execve_of_long_strings_reclaims_once_in_a_turn(program: Program) -> None:
    """A frame for each table and those for its pages would be an attempt each."""
    frames, pieces = program.kernel.frames, Pieces()
    strings = (b"x" * 131_000 + b"\0") * 12
    fd = os.open("/bin/true", os.O_RDONLY)
    stalls = [frames.vmstat["allocstall_movable"]]
    answer = pieces.begin(program, Nr.EXECVE, 1, 1, 1, data=strings, fds=[fd])
    stalls.append(frames.vmstat["allocstall_movable"])
    while answer is None:
        answer = pieces.go_on(program)
        stalls.append(frames.vmstat["allocstall_movable"])
    assert answer.ret == 0
    attempts = np.diff(stalls).tolist()
    assert (max(attempts), sum(attempts) >= 3) == (1, True)
    assert program.mm.rss.resident_pages > len(strings) // PAGE_SIZE


def test_room_for_long_strings_is_made_in_parts(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, pieces, asked = program.kernel.frames, Pieces(), list[int]()
    inner = frames.slowpath
    assert inner is not None

    def slowpath(count: int) -> None:
        asked.append(count)
        inner(count)

    monkeypatch.setattr(frames, "slowpath", slowpath)
    strings = (b"x" * 131_000 + b"\0") * 12
    answer = pieces.begin(program, Nr.EXECVE, 1, 1, 1, data=strings, fds=[os.open("/bin/true", os.O_RDONLY)])
    while answer is None:
        answer = pieces.go_on(program)
    assert answer.ret == 0
    assert max(asked) == 128
    assert asked.count(128) >= 12 * 131_000 // PAGE_SIZE // 128


@pytest.mark.parametrize("call", ["touch", "POPULATE_WRITE", "MAP_POPULATE"])
def test_many_frames_and_then_one_are_one_attempt(idle: Program, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page table is there: the call asks for frames for all of it, and else for one after the other."""
    kernel, pieces = idle.kernel, Pieces()
    nr, args, result, *_ = needy(idle, call)
    idle.store(args[0] + 7 * PAGE_SIZE, b"x")
    idle.call(Nr.MADVISE, args[0], 8 * PAGE_SIZE, Madv.DONTNEED.value)
    stuck = Stuck(kernel, monkeypatch)
    assert pieces.begin(idle, nr, *args) is None
    assert stuck.attempts == 1
    stuck.end()
    while (answer := pieces.go_on(idle)) is None:
        pass
    assert answer.ret == result


def test_advice_that_memory_is_too_short_for_fails_as_ever(idle: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """MADV_WILLNEED of swapped pages and a hole: ENOMEM because of the hole, and it is not made again."""
    at = idle.call(Nr.MMAP, 0, 4 * PAGE_SIZE, RW, ANON)
    idle.store(at, b"x")
    idle.call(Nr.MUNMAP, at + PAGE_SIZE, PAGE_SIZE)
    idle.call(Nr.MADVISE, at, PAGE_SIZE, Madv.PAGEOUT.value)
    stuck = Stuck(idle.kernel, monkeypatch)
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 60.0)
    assert idle.call(Nr.MADVISE, at, 4 * PAGE_SIZE, Madv.WILLNEED.value) == -errno.ENOMEM
    assert stuck.attempts == 1


def test_at_last_the_killer_comes(idle: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = idle.kernel
    nr, args, *_ = needy(idle, "store")
    stuck = Stuck(kernel, monkeypatch)
    answer = idle.answer(nr, *args, data=b"x")
    assert (answer.signo, stuck.attempts) == (SIGKILL, vmscan.MAX_RECLAIM_RETRIES + 1)
    assert kernel.frames.vmstat["oom_kill"] == 1


@pytest.mark.parametrize("is_deep", [False, True])
def test_a_new_client_uses_the_reserve(program: Program, is_deep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has made no request that could begin again. Below the reserve all attempts are made in one turn."""
    stuck = Stuck(program.kernel, monkeypatch)
    if is_deep:
        program.kernel.frames.watermark_min *= 2
    program.kernel.attach(Sender(program.pid + 1, ROOT, ROOT), ABI_VERSION, 0, 0)
    assert stuck.attempts == (vmscan.MAX_RECLAIM_RETRIES + 1 if is_deep else 0)


@pytest.mark.parametrize("call", ["store", "fork"])
def test_who_waits_for_the_memory_of_the_dead_waits_a_part_of_a_turn(
    idle: Program, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = idle.kernel
    dead = Program(kernel, kernel.attach(Sender(idle.pid + 1, ROOT, ROOT), ABI_VERSION, 0, 0))
    for place in range(16):
        at = dead.mmap(1, at=BASE + 2 * place * PMD_SIZE)
        dead.store(at, b"x")
    monkeypatch.setattr(kernel.dying, "slice_seconds", 0.0)
    monkeypatch.setattr(dying, "_AWAITED_SECONDS", 0.0)
    monkeypatch.setattr(kernel.frames, "watermark_min", kernel.frames.free_pages + 6)
    kernel.process_died(dead.process)
    nr, args, result, *_ = needy(idle, call)
    pieces, turns = Pieces(), 0
    answer = pieces.begin(idle, nr, *args, data=b"x")
    while answer is None:
        assert kernel.dying.queue
        turns += 1
        answer = pieces.go_on(idle)
    assert answer.ret > 0 if call == "fork" else answer.ret == result
    monkeypatch.undo()
    kernel.dying.finish()
    assert turns > 2
    assert not kernel.frames.vmstat["allocstall_movable"]


@pytest.mark.parametrize("call", ["brk", "a stack that grows", "mmap"])
def test_who_waits_for_the_promises_to_the_dead_gets_them(
    idle: Program, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vm.overcommit_memory is 2, and all is promised to a process that is being taken down."""
    kernel, pieces = idle.kernel, Pieces()
    kernel.sysctl.overcommit_memory = 2
    dead = Program(kernel, kernel.attach(Sender(idle.pid + 1, ROOT, ROOT), ABI_VERSION, 0, 0))
    stack = idle.mmap(1, flags=ANON | Map.GROWSDOWN.value, at=BASE)
    place = 0
    while dead.mmap(64, at=BASE + 2 * place * PMD_SIZE) > 0:
        place += 1
    monkeypatch.setattr(kernel.dying, "slice_seconds", 0.0)
    monkeypatch.setattr(dying, "_AWAITED_SECONDS", 0.0)
    kernel.process_died(dead.process)
    start = idle.call(Nr.BRK, 0)
    nr, args, data, result = {
        "brk": (Nr.BRK, (start + 512 * PAGE_SIZE,), b"", start + 512 * PAGE_SIZE),
        "a stack that grows": (Nr.STORE, (stack - 512 * PAGE_SIZE, 1), b"x", 1),
        "mmap": (Nr.MMAP, (2 * BASE, 512 * PAGE_SIZE, RW, ANON | FIXED), b"", 2 * BASE),
    }[call]
    turns = 0
    answer = pieces.begin(idle, nr, *args, data=data)
    while answer is None:
        assert kernel.dying.queue
        turns += 1
        answer = pieces.go_on(idle)
    assert (answer.ret, answer.signo) == (result, 0)
    assert turns > 1
    monkeypatch.undo()
    kernel.dying.finish()


def test_the_background_pass_waits_a_turn_for_a_direct_reclaim(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not for one after another: what it does in pieces, a direct reclaim does not do."""
    kernel = program.kernel
    kernel.vmscan.wakeup_kswapd()
    kernel.run_kswapd()
    runs: list[None] = []
    monkeypatch.setattr(kernel.vmscan, "kswapd", lambda: runs.append(None))
    after = []
    for reclaims in (False, True, True, True, False):
        if reclaims:
            kernel.vmscan.try_to_free_pages(1)
        kernel.run_kswapd()
        after.append(len(runs))
    assert after == [1, 1, 2, 2, 3]


def test_the_background_pass_is_done_in_pieces(program: Program) -> None:
    kernel = program.kernel
    frames = kernel.frames
    more = program.call(Nr.MMAP, 0, 64 * PAGE_SIZE, RW, ANON)
    assert program.answer(Nr.TOUCH, more, 64 * PAGE_SIZE, Access.WRITE).ret == 64
    pieces, most, other = 0, 0, program
    while kernel.vmscan.is_awake:
        before = sum(frames.vmstat[name] for name in ("pgscan_kswapd", "pgrefill"))
        kernel.run_kswapd()
        assert other.call(Nr.GETPID) == other.pid
        pieces += 1
        most = max(most, sum(frames.vmstat[name] for name in ("pgscan_kswapd", "pgrefill")) - before)
    assert pieces >= 8
    assert most <= 128 + SWAP_CLUSTER_MAX
    assert frames.free_pages >= frames.watermark_high
