"""Rows 10 to 12: the shadow table read in the inspector, what keeping it costs, and how soon a change is seen."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.machine import CPUS, ONE_CPU, Daemon, Host, placed
from bench.sample import Mark, Row, interleave
from bench.worker import Worker
from shared.client import Process
from shared.client.realmem import map_anonymous
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE, SHADOW_PTE, table_bytes

PAGES = MAX_SPT_RANGE // PAGE_SIZE
ROUNDS = 11
RW = Prot.READ | Prot.WRITE
ANONYMOUS = Map.PRIVATE | Map.ANONYMOUS


def rows(daemon: Daemon, host: Host) -> Iterator[Row]:
    """Yield the rows. The same target has 8 MiB of simulated and of real memory in the same state."""
    inspector = daemon.attach()
    target = Worker(daemon.socket_path)
    try:
        start, real_start = target.call(make_range)
        _, end = open_table(inspector, target.pid, start)
        for cpus, placement in ((ONE_CPU, "one CPU"), (CPUS, "unpinned")):
            with placed(cpus, daemon.pid, host.pid, target.pid):
                yield from _snapshots(inspector, host, target, real_start, placement)
                yield from _tracking(inspector, target, start, placement)
        inspector.shadowpt_start()
        if len(CPUS) > 1:
            yield from _latency(daemon, inspector, target, start)
        assert end - start == MAX_SPT_RANGE
        inspector.shadowpt_close()
    finally:
        target.close()
        inspector.close()


def make_range(process: Process) -> tuple[int, int]:
    """Map 8 MiB, simulated and real; write three pages of four in both. Return both addresses."""
    start = process.mmap(0, MAX_SPT_RANGE, RW, ANONYMOUS)
    process.madvise(start, MAX_SPT_RANGE, Madv.NOHUGEPAGE)
    real = mmap.mmap(-1, MAX_SPT_RANGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    real.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(PAGES):
        if page % 4:
            real[page * PAGE_SIZE] = 1
            process.mem.store_u8(start + page * PAGE_SIZE, 1)
    _kept.append(real)
    return start, ctypes.addressof(ctypes.c_char.from_buffer(real))


_kept: list[mmap.mmap] = []


def open_table(inspector: Process, pid: int, start: int) -> tuple[int, int]:
    """Open and start the table; return its address and its end."""
    entries = map_anonymous(table_bytes(start, start + MAX_SPT_RANGE))
    _, end = inspector.shadowpt_open(pid, start, start + MAX_SPT_RANGE, entries)
    inspector.shadowpt_start()
    _entries[0] = entries
    return entries, end


_entries = [0]


def _snapshots(inspector: Process, host: Host, target: Worker, start: int, placement: str) -> Iterator[Row]:
    end = start + MAX_SPT_RANGE
    name, pid = "consistent copy of 2,048 entries", target.pid

    def ours(count: int = 300) -> float:
        snapshot = inspector.snapshot
        started = time.perf_counter_ns()
        for _ in range(count):
            snapshot()
        return (time.perf_counter_ns() - started) / count

    yardsticks = (
        ("host, PAGEMAP_SCAN in C", 5.0, lambda: host.measure("scan", pid, start, end, 100) / 100),
        ("host, pagemap in C", 5.0, lambda: host.measure("pagemap", pid, start, end, 100) / 100),
        ("host, maps and pagemap in Python", 5.0, lambda: measure_proc(pid, start, end)),
        ("host, psutil.memory_maps", 300.0, lambda: measure_psutil(pid)),
    )
    for yardstick, bound, theirs in yardsticks:
        row = Row(10, name, yardstick, placement, "ns", Mark(bound, at_least=True), inverse=True)
        yield interleave(row, ROUNDS, ours, theirs)


def measure_proc(pid: int, start: int, end: int) -> float:
    """Return the nanoseconds of reading maps and the entries of pagemap, both unpacked."""
    started = time.perf_counter_ns()
    vmas = []
    for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
        low, high = (int(bound, 16) for bound in line.split(None, 1)[0].split(b"-"))
        if low < end and start < high:
            vmas.append((low, high))
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    packed = os.pread(fd, (end - start) // PAGE_SIZE * 8, start // PAGE_SIZE * 8)
    os.close(fd)
    entries = struct.unpack(f"<{len(packed) // 8}Q", packed)
    elapsed = time.perf_counter_ns() - started
    assert vmas
    assert len(entries) == PAGES
    return float(elapsed)


def measure_psutil(pid: int) -> float:
    """Return the nanoseconds of psutil's view of the same process."""
    process = psutil.Process(pid)
    started = time.perf_counter_ns()
    process.memory_maps(grouped=False)
    return float(time.perf_counter_ns() - started)


def _tracking(inspector: Process, target: Worker, start: int, placement: str) -> Iterator[Row]:
    cases = (
        (f"{PAGES} single faults, tracked", measure_faults, Mark(1.2)),
        ("8 MiB populated in one call, tracked", measure_populate, Mark(1.5)),
    )
    for name, measure, mark in cases:
        row = Row(11, name, "the same, untracked", placement, "ns", mark)

        def tracked(measure=measure) -> float:  # type: ignore[no-untyped-def]
            inspector.shadowpt_start()
            return target.call(measure, start)  # type: ignore[no-any-return]

        def untracked(measure=measure) -> float:  # type: ignore[no-untyped-def]
            inspector.shadowpt_stop()
            return target.call(measure, start)  # type: ignore[no-any-return]

        yield interleave(row, ROUNDS, tracked, untracked)


def measure_faults(process: Process, start: int) -> float:
    """Return the nanoseconds of a store to each of the 2,048 pages, all fresh, one a datagram."""
    process.madvise(start, MAX_SPT_RANGE, Madv.DONTNEED)
    store = process.mem.store_u64
    started = time.perf_counter_ns()
    for page in range(start, start + MAX_SPT_RANGE, PAGE_SIZE):
        store(page, 1)
    return float(time.perf_counter_ns() - started)


def measure_populate(process: Process, start: int) -> float:
    """Return the nanoseconds of populating the fresh range in one call, as the best of nine."""
    best = float("inf")
    for _ in range(9):
        process.madvise(start, MAX_SPT_RANGE, Madv.DONTNEED)
        started = time.perf_counter_ns()
        process.madvise(start, MAX_SPT_RANGE, Madv.POPULATE_WRITE)
        best = min(best, time.perf_counter_ns() - started)
    return best


def _latency(daemon: Daemon, inspector: Process, target: Worker, start: int) -> Iterator[Row]:
    """Time from before the target's store to its frame in the inspector's memory, beside the store's own round trip.

    The inspector watches its memory on a processor of its own; target and daemon share another. A second row has the
    time of the store's reply where target and daemon have a processor each: the change is in the table before.
    """
    row = Row(12, "from a store to the change seen", "the store's round trip", "two CPUs", "ns", Mark(1.0))
    entry = ctypes.c_uint64.from_address(_entries[0] + SHADOW_PTE.size * (PAGES // 2) + 8)
    page = start + PAGES // 2 * PAGE_SIZE
    with placed(CPUS[:1], daemon.pid, target.pid):
        os.sched_setaffinity(0, CPUS[1:2])
        for _ in range(ROUNDS * 8):
            target.call(discard, page)
            assert entry.value == 0
            target.send(timed_store, page)
            while entry.value == 0:
                pass
            seen = time.perf_counter_ns()
            before, after = target.receive()
            row.ours.append(seen - before)
            row.theirs.append(after - before)
    del inspector
    yield row
    # The inspector sleeps now: target and daemon have a processor each, and use the ring.
    by_then = Row(12, "a store's reply, by which the change is seen", "none", "two CPUs", "ns", Mark(10_000))
    with placed(CPUS[:1], target.pid):
        os.sched_setaffinity(0, CPUS)
        for _ in range(ROUNDS):
            by_then.ours.append(target.call(measure_faults, start) / PAGES)
    yield by_then


def discard(process: Process, page: int) -> None:
    """Make a page fresh again."""
    process.madvise(page, PAGE_SIZE, Madv.DONTNEED)


def timed_store(process: Process, page: int) -> tuple[int, int]:
    """Store to a page; return the clock before and after."""
    before = time.perf_counter_ns()
    process.mem.store_u64(page, 1)
    return before, time.perf_counter_ns()
