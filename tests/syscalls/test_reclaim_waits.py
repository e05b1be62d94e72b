"""Reclaim where all of RAM is in use: who allocates waits for a bounded number of pages, and the rest is for others."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

from kerneld.hw.paging import PF_WRITE
from kerneld.mm.fault.populate import populate_in_pieces
from kerneld.mm.frames.lru import SWAP_CLUSTER_MAX
from kerneld.mm.reclaim import vmscan
from kerneld.mm.space import pace
from kerneld.syscalls.kernel import Kernel, KernelConfig
from kerneld.task.cpu import touch_in_pieces
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.support.programs import ANON, READ, ROOT, RW, SHARED, Program, World

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
    steps: Generator[None, None, int]
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
