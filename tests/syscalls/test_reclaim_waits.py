"""Reclaim where all of RAM is in use: who allocates waits for a bounded number of pages, and the rest is for others."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from signal import SIGKILL

import numpy as np
import pytest

from kerneld.hw.paging import PF_WRITE
from kerneld.mm.fault.populate import populate_in_pieces
from kerneld.mm.frames.lru import SWAP_CLUSTER_MAX
from kerneld.mm.reclaim import vmscan
from kerneld.mm.space import dying, pace
from kerneld.mm.space.wait import Wait
from kerneld.syscalls.answer import Call, Work
from kerneld.syscalls.dispatch import run
from kerneld.syscalls.kernel import Kernel, KernelConfig, Sender
from kerneld.syscalls.table import RESTART
from kerneld.task.cpu import touch_in_pieces
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import ABI_VERSION, Access, Nr
from tests.support.programs import ANON, BASE, FIXED, READ, ROOT, RW, SHARED, Program, World

RAM_BYTES = 32 << 20
RAM_PAGES = RAM_BYTES // PAGE_SIZE
MOST_SCANNED = 256


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that are over at once, and a bound that this small machine can reach."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    monkeypatch.setattr(vmscan, "_MOST_SCANNED", MOST_SCANNED)


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


def stuck_call(program: Program, call: str) -> tuple[int, tuple[int, ...], int]:
    """Return the number, the arguments and the result of a call that needs frames."""
    at = program.call(Nr.MMAP, 0, 8 * PAGE_SIZE, RW, ANON)
    length = 8 * PAGE_SIZE
    known: dict[str, tuple[int, tuple[int, ...], int]] = {
        "store": (Nr.STORE, (at, 1), 1),
        "touch": (Nr.TOUCH, (at, length, Access.WRITE), 8),
        "mlock": (Nr.MLOCK, (at, length), 0),
        "MAP_POPULATE": (Nr.MMAP, (at, length, RW, ANON | FIXED | Map.POPULATE.value), at),
        "POPULATE_WRITE": (Nr.MADVISE, (at, length, Madv.POPULATE_WRITE.value), 0),
        "fork": (Nr.CLONE, (0,), 0),
        "get_mempolicy": (Nr.GET_MEMPOLICY, (0, 0, 0, at, 3), 0),
        "/proc/PID/mem": (Nr.MEM_RW, (program.pid, at, at + 4 * PAGE_SIZE, PAGE_SIZE, 0), PAGE_SIZE),
    }
    return known[call]


@pytest.mark.parametrize(
    "call", ["store", "touch", "mlock", "MAP_POPULATE", "POPULATE_WRITE", "fork", "/proc/PID/mem", "get_mempolicy"]
)
def test_a_reclaim_without_progress_lets_others_act(
    program: Program, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One attempt a turn. The call ends as it does with memory."""
    kernel = program.kernel
    nr, args, result = stuck_call(program, call)
    words = [*args, *[0] * (6 - len(args))]
    request = Call(kernel, program.thread, (*words,), b"x", [])  # type: ignore[arg-type]
    stuck = Stuck(kernel, monkeypatch)
    outcome = run(request, nr)
    for turn in range(1, 6):
        assert isinstance(outcome, Work)
        assert stuck.attempts == turn
        request.work = outcome
        outcome = run(request, RESTART)
    stuck.end()
    while isinstance(outcome, Work):
        request.work = outcome
        outcome = run(request, RESTART)
    ret = outcome if isinstance(outcome, int) else outcome.ret
    assert ret == result or (call == "fork" and ret > 0)
    if call != "fork":
        assert call in ("/proc/PID/mem", "get_mempolicy") or program.load(args[0]) in (b"x", b"\0")
    assert not kernel.frames.vmstat["oom_kill"]


def test_at_last_the_killer_comes(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = program.kernel
    nr, args, _ = stuck_call(program, "store")
    stuck = Stuck(kernel, monkeypatch)
    answer = program.answer(nr, *args, data=b"x")
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
    program: Program, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = program.kernel
    dead = Program(kernel, kernel.attach(Sender(program.pid + 1, ROOT, ROOT), ABI_VERSION, 0, 0))
    for place in range(16):
        at = dead.mmap(1, at=BASE + 2 * place * PMD_SIZE)
        dead.store(at, b"x")
    monkeypatch.setattr(kernel.dying, "slice_seconds", 0.0)
    monkeypatch.setattr(dying, "_AWAITED_SECONDS", 0.0)
    monkeypatch.setattr(kernel.frames, "watermark_min", kernel.frames.free_pages + 6)
    kernel.process_died(dead.process)
    nr, args, result = stuck_call(program, call)
    request = Call(kernel, program.thread, (*args, *[0] * (6 - len(args))), b"x", [])  # type: ignore[arg-type]
    outcome, turns = run(request, nr), 0
    while isinstance(outcome, Work):
        assert kernel.dying.queue
        request.work, turns = outcome, turns + 1
        outcome = run(request, RESTART)
    assert outcome == result or call == "fork"
    monkeypatch.undo()
    kernel.dying.finish()
    assert turns > 2
    assert not kernel.frames.vmstat["allocstall_movable"]


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
