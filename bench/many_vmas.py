"""Row 9: a pair of mmap and munmap among 60,000 VMAs, beside the same pair among ten."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.machine import CPUS, ONE_CPU, Daemon, placed
from bench.sample import Mark, Row, interleave
from bench.worker import Worker
from shared.client import Process
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr

MANY, FEW = 60_000, 10
ROUNDS, COUNT = 41, 50
PLACE = 0x10_0000_0000
BATCH = 1000


def rows(daemon: Daemon) -> Iterator[Row]:
    """Yield the rows: a place is searched for, or a hole between two VMAs is filled and emptied again."""
    many, few = Worker(daemon.socket_path), Worker(daemon.socket_path)
    many.call(make_vmas, MANY)
    few.call(make_vmas, FEW)
    for cpus, placement in ((ONE_CPU, "one CPU"), (CPUS, "unpinned")):
        with placed(cpus, daemon.pid, many.pid, few.pid):
            for name, where in (("anywhere", False), ("in a hole in the middle", True)):
                row = Row(9, f"mmap + munmap {name}, 60,000 VMAs", "the same, 10 VMAs", placement, "ns", Mark(1.5))
                holes = (hole(MANY), hole(FEW)) if where else (0, 0)
                yield interleave(
                    row,
                    ROUNDS,
                    lambda place=holes[0]: many.call(measure_pair, place),  # type: ignore[misc]
                    lambda place=holes[1]: few.call(measure_pair, place),  # type: ignore[misc]
                )
    many.close()
    few.close()


def hole(vmas: int) -> int:
    """Return the address of the free page in the middle of what `make_vmas` makes."""
    return PLACE + (vmas // 2 * 2 + 1) * PAGE_SIZE


def make_vmas(process: Process, count: int) -> None:
    """Map every other page, so that no two of the `count` mappings merge."""
    flags = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED
    for low in range(0, count, BATCH):
        with process.batch() as batch:
            for number in range(low, min(low + BATCH, count)):
                batch.call(Nr.MMAP, PLACE + number * 2 * PAGE_SIZE, PAGE_SIZE, Prot.READ, flags, -1, 0)


def measure_pair(process: Process, place: int) -> float:
    """Return the nanoseconds of a pair, as the mean of COUNT; `place` is mmap's hint, 0 for none."""
    flags = int(Map.PRIVATE | Map.ANONYMOUS)
    prot, mmap, munmap = int(Prot.READ | Prot.WRITE), int(Nr.MMAP), int(Nr.MUNMAP)
    syscall = process.syscall
    started = time.perf_counter_ns()
    for _ in range(COUNT):
        address = syscall(mmap, place, PAGE_SIZE, prot, flags, -1, 0)
        syscall(munmap, address, PAGE_SIZE)
    return (time.perf_counter_ns() - started) / COUNT
