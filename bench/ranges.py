"""Rows 5 to 8: calls on 1 GiB at once, beside the same calls on the host's kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from bench.machine import CPUS, ONE_CPU, Daemon, Host, placed
from bench.sample import Mark, Row, interleave
from shared.client import Process
from shared.uapi.mman import Madv, Map, Mremap, Prot
from shared.uapi.page import PAGE_SHIFT
from shared.uapi.syscalls import Nr

GIB = 1 << 30
PAGES = GIB >> PAGE_SHIFT
ROUNDS = 5
RW = Prot.READ | Prot.WRITE
ANONYMOUS = Map.PRIVATE | Map.ANONYMOUS


def rows(daemon: Daemon, host: Host) -> Iterator[Row]:
    """Yield the rows; the daemon has room for 1 GiB twice over."""
    process = daemon.attach()
    cases: tuple[tuple[int, str, str, Callable[[Process], float], float], ...] = (
        (5, "populate 1 GiB, never written", "populate", populate, 0.5),
        (5, "populate 1 GiB, 1/8 of it written before", "populate", populate_used, 0.5),
        (6, "munmap of 1 GiB populated", "munmap", munmap, 1.0),
        (7, "fork of 1 GiB populated, exit of the child", "fork", fork, 1.5),
        (8, "mprotect of 1 GiB populated", "mprotect", mprotect, 2.0),
        (8, "mremap move of 1 GiB populated", "mremap", mremap, 2.0),
        (8, "DONTNEED of 1 GiB populated", "dontneed", dontneed, 2.0),
    )
    try:
        for cpus, placement in ((ONE_CPU, "one CPU"), (CPUS, "unpinned")):
            with placed(cpus, daemon.pid, host.pid):
                for number, measured, command, ours, bound in cases:
                    row = Row(number, measured, "host, the same in C", placement, "ns/page", Mark(bound))
                    yield interleave(
                        row,
                        ROUNDS,
                        lambda ours=ours: ours(process) / PAGES,  # type: ignore[misc]
                        lambda command=command: host.measure(command, GIB) / PAGES,  # type: ignore[misc]
                    )
    finally:
        process.close()


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - started


def _mapped(process: Process) -> int:
    """Map 1 GiB of 4 KiB pages, as host.c does."""
    address = process.mmap(0, GIB, RW, ANONYMOUS)
    process.madvise(address, GIB, Madv.NOHUGEPAGE)
    return address


def _populated(process: Process) -> int:
    address = _mapped(process)
    process.madvise(address, GIB, Madv.POPULATE_WRITE)
    return address


def populate(process: Process) -> float:
    """Return the nanoseconds of POPULATE_WRITE of 1 GiB."""
    address = _mapped(process)
    elapsed = _timed(lambda: process.madvise(address, GIB, Madv.POPULATE_WRITE))
    process.munmap(address, GIB)
    return elapsed


def populate_used(process: Process) -> float:
    """Return the same after every eighth page has been written and unmapped, which have to be zeroed."""
    address = _populated(process)
    for low in range(address, address + GIB, 1 << 20):
        process.mem.store(low, bytes(128 << 10))
    process.munmap(address, GIB)
    return populate(process)


def munmap(process: Process) -> float:
    """Return the nanoseconds of munmap of 1 GiB."""
    address = _populated(process)
    return _timed(lambda: process.munmap(address, GIB))


def fork(process: Process) -> float:
    """Return the nanoseconds from fork to the child's end, which the kernel has then taken down.

    The real process forks too, which is why the host's fork is in the figure as well.
    """
    address = _populated(process)

    def fork_and_wait() -> None:
        pid = process.fork()
        if pid == 0:
            process.syscall(Nr.EXIT_GROUP, 0)
            os._exit(0)
        os.waitpid(pid, 0)

    elapsed = _timed(fork_and_wait)
    process.munmap(address, GIB)
    return elapsed


def mprotect(process: Process) -> float:
    """Return the nanoseconds of mprotect of 1 GiB to read-only."""
    address = _populated(process)
    elapsed = _timed(lambda: process.mprotect(address, GIB, Prot.READ))
    process.munmap(address, GIB)
    return elapsed


def mremap(process: Process) -> float:
    """Return the nanoseconds of moving 1 GiB to a place that is free."""
    address = _populated(process)
    place = _mapped(process)
    process.munmap(place, GIB)
    elapsed = _timed(lambda: process.mremap(address, GIB, GIB, Mremap.MAYMOVE | Mremap.FIXED, place))
    process.munmap(place, GIB)
    return elapsed


def dontneed(process: Process) -> float:
    """Return the nanoseconds of MADV_DONTNEED of 1 GiB."""
    address = _populated(process)
    elapsed = _timed(lambda: process.madvise(address, GIB, Madv.DONTNEED))
    process.munmap(address, GIB)
    return elapsed
