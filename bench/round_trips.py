"""Rows 1 to 4: one request, one fault, and faults in batches, beside a bare socket and the host's own faults."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from bench.echo import Echo
from bench.machine import CPUS, ONE_CPU, Daemon, Host, placed
from bench.sample import Mark, Row, interleave
from shared.client import Process
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr

BATCH_PAGES = 128
ROUNDS = 101
COUNT = 100
RW = Prot.READ | Prot.WRITE
ANONYMOUS = Map.PRIVATE | Map.ANONYMOUS


def rows(daemon: Daemon, host: Host) -> Iterator[Row]:
    """Yield the rows, each measured when its turn comes."""
    echo = Echo()
    process = daemon.attach()
    bare = "echo of the same records"
    try:
        if len(CPUS) > 1:
            yield from _on_two(process, echo)
        for cpus, placement in ((ONE_CPU, "one CPU"), (CPUS, "unpinned")):
            with placed(cpus, daemon.pid, echo.pid, host.pid):
                pinned = cpus == ONE_CPU
                getpid = Row(1, "getpid", bare, placement, "ns", Mark(1.25)) if pinned else Row(
                    2, "getpid", bare, placement, "ns", None
                )  # fmt: skip
                yield interleave(getpid, ROUNDS, lambda: measure_getpid(process), lambda: echo.measure(COUNT))
                fault = Row(3, "store to a fresh page", bare, placement, "ns", Mark(1.6) if pinned else None)
                yield interleave(fault, ROUNDS, lambda: measure_faults(process), lambda: echo.measure(COUNT))
                batch = Row(
                    4, "store to a fresh page, batches of 128", "host, C", placement, "ns/page",
                    Mark(4.0) if pinned else None,
                )  # fmt: skip
                yield interleave(
                    batch,
                    ROUNDS,
                    lambda: measure_batches(process),
                    lambda: host.measure("fault", 32 * BATCH_PAGES) / (32 * BATCH_PAGES),
                )
    finally:
        process.close()
        echo.close()


def _on_two(process: Process, echo: Echo) -> Iterator[Row]:
    """Yield rows 2 and 3 where both ends have a processor of their own. kerneld goes where it finds one."""
    bare = "echo of the same records"
    os.sched_setaffinity(0, CPUS[:1])
    os.sched_setaffinity(echo.pid, CPUS[1:2])
    try:
        getpid = Row(2, "getpid", bare, "two CPUs", "ns", Mark(0.35))
        yield interleave(getpid, ROUNDS, lambda: measure_getpid(process), lambda: echo.measure(COUNT))
        fault = Row(3, "store to a fresh page", bare, "two CPUs", "ns", Mark(0.6))
        yield interleave(fault, ROUNDS, lambda: measure_faults(process), lambda: echo.measure(COUNT))
    finally:
        os.sched_setaffinity(0, CPUS)
        os.sched_setaffinity(echo.pid, CPUS)


def measure_getpid(process: Process, count: int = COUNT) -> float:
    """Return the nanoseconds of one getpid, as the mean of `count`."""
    syscall, nr = process.syscall, int(Nr.GETPID)
    started = time.perf_counter_ns()
    for _ in range(count):
        syscall(nr)
    return (time.perf_counter_ns() - started) / count


def measure_faults(process: Process, count: int = COUNT) -> float:
    """Return the nanoseconds of one store of eight bytes to a fresh page, one a datagram."""
    address = process.mmap(0, count * PAGE_SIZE, RW, ANONYMOUS)
    process.madvise(address, count * PAGE_SIZE, Madv.NOHUGEPAGE)
    store = process.mem.store_u64
    started = time.perf_counter_ns()
    for page in range(address, address + count * PAGE_SIZE, PAGE_SIZE):
        store(page, 1)
    elapsed = time.perf_counter_ns() - started
    process.munmap(address, count * PAGE_SIZE)
    return elapsed / count


def measure_batches(process: Process, batches: int = 8) -> float:
    """Return the nanoseconds of one store of eight bytes to a fresh page, 128 a datagram; each packed anew."""
    length = batches * BATCH_PAGES * PAGE_SIZE
    address = process.mmap(0, length, RW, ANONYMOUS)
    process.madvise(address, length, Madv.NOHUGEPAGE)
    data = bytes(8)
    started = time.perf_counter_ns()
    for low in range(address, address + length, BATCH_PAGES * PAGE_SIZE):
        with process.batch() as batch:
            for page in range(low, low + BATCH_PAGES * PAGE_SIZE, PAGE_SIZE):
                batch.store(page, data)
    elapsed = time.perf_counter_ns() - started
    process.munmap(address, length)
    return elapsed / (batches * BATCH_PAGES)
