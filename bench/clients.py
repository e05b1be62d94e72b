"""Row 13: many clients at once, and whether all are served alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import mean

from bench.machine import CPUS, ONE_CPU, Daemon, placed
from bench.sample import Mark, Row
from bench.worker import Worker
from shared.client import Process
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE

CLIENTS = 64
SECONDS = 1.0
ROUNDS = 3
PAGES = 512


def rows(daemon: Daemon) -> Iterator[Row]:
    """Yield two rows a placement: faults a second in all, and the slowest client beside the mean."""
    workers = [Worker(daemon.socket_path) for _ in range(CLIENTS)]
    try:
        for cpus, placement in ((ONE_CPU, "one CPU"), (CPUS, "unpinned")):
            with placed(cpus, daemon.pid, *(worker.pid for worker in workers)):
                total = Row(13, "faults a second of 64 clients", "of one client", placement, "1/s", Mark(0.8, True))
                fair = Row(13, "the slowest of 64 clients", "their mean", placement, "1/s", Mark(0.5, True))
                for _ in range(ROUNDS):
                    (alone,) = measure(workers[:1])
                    rates = measure(workers)
                    total.ours.append(sum(rates))
                    total.theirs.append(alone)
                    fair.ours.append(min(rates))
                    fair.theirs.append(mean(rates))
                yield total
                yield fair
    finally:
        for worker in workers:
            worker.close()


def measure(workers: list[Worker]) -> list[float]:
    """Have all of them fault for the same second; return the faults a second of each."""
    begin = time.monotonic() + 0.2
    for worker in workers:
        worker.send(fault_until, begin, begin + SECONDS)
    return [worker.receive() / SECONDS for worker in workers]


def fault_until(process: Process, begin: float, end: float) -> int:
    """Store to fresh pages, one a datagram, from `begin` to `end` (monotonic seconds); return how many."""
    length = PAGES * PAGE_SIZE
    address = process.mmap(0, length, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
    time.sleep(max(0.0, begin - time.monotonic()))
    store, clock = process.mem.store_u64, time.monotonic
    faults = 0
    while clock() < end:
        page = address + faults % PAGES * PAGE_SIZE
        if page == address:
            process.munmap(address, length)
            process.mmap(address, length, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
        store(page, 1)
        faults += 1
    process.munmap(address, length)
    return faults
