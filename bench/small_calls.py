"""Rows 17 to 26 and 36 to 38: the small calls that programs make all day, beside the host in C and User-Mode Linux.

A call of ours goes over the socket, as each does. The daemon's whole time is what its process has run meanwhile: the
socket's work is in it, and the calls that prepare the measured one. The handler's time is that of the call alone, in a
process of its own (`bench.handlers`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.machine import ONE_CPU, ROOT, Answering, Daemon, compiled, placed
from bench.sample import Mark, Row, interleave
from bench.user_mode_linux import UserModeLinux
from shared.client import Process
from shared.uapi.mman import Madv, Map, Mremap, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr

ROUNDS = 21
RW = Prot.READ | Prot.WRITE
ANONYMOUS = Map.PRIVATE | Map.ANONYMOUS
WINDOW_PAGES = 16
SWAP_STEP = 16
IMAGE = "/bin/true"
HANDLERS_MARK_NS = 25_000
"""What the handler of a call may take of which the host makes one in under 10 µs."""


class Case(NamedTuple):
    """One call: its row, the command of small.c, how often a round makes it, and ours."""

    number: int
    measured: str
    command: str
    times: int
    ours: Callable[[Process, int], float]
    """Makes the call so often and returns the nanoseconds that all took. `bench.handlers` has one of this name."""
    bound: float
    """What the ratio to User-Mode Linux is to be at most."""
    calls: int = 1
    """How many calls it is. The handler's time is of one of them."""
    is_short: bool = True
    """Whether it takes the host under 10 µs, so that the handler has a mark."""
    real: Callable[[Process, int], float] | None = None
    """What the client itself has to ask of the host, measured as `ours`."""


def rows(daemon: Daemon, wanted: set[int]) -> Iterator[Row]:
    """Yield four rows for each wanted call: beside the host, beside User-Mode Linux if it runs; daemon, and handler."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kerneld-bench-"))
        program = compiled("small", directory, "-static")
        host = stack.enter_context(contextlib.closing(Answering([program])))
        with placed(ONE_CPU):
            # Its processes keep that processor: on two, each of its calls takes twice as long.
            uml = start_uml(program)
        if uml is not None:
            stack.enter_context(contextlib.closing(uml))
        process = stack.enter_context(daemon.attach())
        for number in range(10):
            process.mmap(0, PAGE_SIZE, Prot.READ if number % 2 else Prot.NONE, ANONYMOUS)
        for case in (case for case in CASES if case.number in wanted):
            with placed(ONE_CPU, daemon.pid, host.pid):
                yield from _rows_of(case, process, daemon, host, uml)


def start_uml(program: str) -> UserModeLinux | None:
    """Start User-Mode Linux with a program; None where it cannot start, which is said on stderr."""
    try:
        return UserModeLinux(program)
    except OSError as error:
        print(f"bench: no rows beside User-Mode Linux: {error}", file=sys.stderr)
        return None


def _rows_of(case: Case, process: Process, daemon: Daemon, host: Answering, uml: UserModeLinux | None) -> Iterator[Row]:
    def ours() -> float:
        return case.ours(process, case.times) / case.times

    if host.measure(case.command, case.times):
        beside = Row(case.number, case.measured, "host, C", "one CPU", "ns", None)
        yield interleave(beside, ROUNDS, ours, lambda: host.measure(case.command, case.times) / case.times)
    else:
        print(f"bench: no row {case.number} beside the host: it has no swap, or none that drops pages", file=sys.stderr)
    if uml is not None:
        beside = Row(case.number, case.measured, "User-Mode Linux", "one CPU", "ns", Mark(case.bound))
        yield interleave(beside, ROUNDS, ours, lambda: uml.measure(case.command, case.times) / case.times)
    whole = Row(case.number, f"{case.measured}: the daemon's whole time", "none", "one CPU", "ns", None)
    for _ in range(ROUNDS):
        before = run_ns(daemon.pid)
        case.ours(process, case.times)
        whole.ours.append((run_ns(daemon.pid) - before) / case.times)
    yield whole
    yield handler_row(case)
    if case.real is not None:
        real = Row(case.number, f"{case.measured}: the client's real one alone", "none", "one CPU", "ns", None)
        real.ours.extend(case.real(process, case.times) / case.times for _ in range(ROUNDS))
        yield real


def handler_row(case: Case, rounds: int = ROUNDS) -> Row:
    """Return the processor time of the handler of one call, without a socket and without what prepares the call."""
    name = case.ours.__name__
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench.handlers", "clock", str(case.times), *[name] * rounds],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    which = "the handler alone" if case.calls == 1 else "the handler alone, each of two calls"
    mark = Mark(HANDLERS_MARK_NS) if case.is_short else None
    row = Row(case.number, f"{case.measured}: {which}", "none", "one CPU", "ns", mark)
    for line in done.stdout.splitlines():
        measured, nanoseconds = line.split()
        assert measured == name
        row.ours.append(int(nanoseconds) / (case.times * case.calls))
    return row


def run_ns(pid: int) -> int:
    """Return how long a process has run, in nanoseconds. Source: Linux v6.8 Documentation/scheduler/sched-stats.rst."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])


def _timed(times: int, call: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    for _ in range(times):
        call()
    return time.perf_counter_ns() - started


@contextlib.contextmanager
def _mapped(process: Process, pages: int, *, written: bool = False) -> Iterator[int]:
    """Map pages of 4 KiB, written to where that is asked for; they are unmapped at the end."""
    length = pages * PAGE_SIZE
    address = process.mmap(0, length, RW, ANONYMOUS)
    process.madvise(address, length, Madv.NOHUGEPAGE)
    if written:
        process.madvise(address, length, Madv.POPULATE_WRITE)
    yield address
    process.munmap(address, length)


def pair(process: Process, times: int) -> float:
    """Map a page and unmap it."""
    return _timed(times, lambda: process.munmap(process.mmap(0, PAGE_SIZE, RW, ANONYMOUS), PAGE_SIZE))


def mprotect(process: Process, times: int) -> float:
    """Make one page of eight read-only and writable again: two splits, then two merges."""
    with _mapped(process, 8, written=True) as address:
        page = address + 4 * PAGE_SIZE

        def there_and_back() -> None:
            process.mprotect(page, PAGE_SIZE, Prot.READ)
            process.mprotect(page, PAGE_SIZE, RW)

        return _timed(times, there_and_back)


def dontneed(process: Process, times: int) -> float:
    """Drop one written page; the writing is not in the time."""
    spent = 0.0
    with _mapped(process, 8) as address:
        for _ in range(times):
            process.mem.store_u64(address, 1)
            spent += _timed(1, lambda: process.madvise(address, PAGE_SIZE, Madv.DONTNEED))
    return spent


def brk(process: Process, times: int) -> float:
    """Move the break up by two pages and down again."""
    base = process.brk(0)

    def up_and_down() -> None:
        process.brk(base + 2 * PAGE_SIZE)
        process.brk(base)

    return _timed(times, up_and_down)


def mremap(process: Process, times: int) -> float:
    """Grow a mapping of one page where it is, and shrink it again."""
    with _mapped(process, 8, written=True) as address:
        process.munmap(address + PAGE_SIZE, 7 * PAGE_SIZE)

        def grow_and_shrink() -> None:
            process.mremap(address, PAGE_SIZE, 2 * PAGE_SIZE, Mremap(0))
            process.mremap(address, 2 * PAGE_SIZE, PAGE_SIZE, Mremap(0))

        return _timed(times, grow_and_shrink)


def _touch_each(process: Process, address: int, times: int, step: int = PAGE_SIZE, *, write: bool = False) -> float:
    load, store = process.mem.load_u8, process.mem.store_u64
    started = time.perf_counter_ns()
    for vaddr in range(address, address + times * step, step):
        if write:
            store(vaddr, 1)
        else:
            load(vaddr)
    return time.perf_counter_ns() - started


def read(process: Process, times: int) -> float:
    """Read fresh pages: the zero page."""
    with _mapped(process, times) as address:
        return _touch_each(process, address, times)


def write(process: Process, times: int) -> float:
    """Write to fresh pages."""
    with _mapped(process, times) as address:
        return _touch_each(process, address, times, write=True)


def cow(process: Process, times: int) -> float:
    """Write to pages that the zero page stands for."""
    with _mapped(process, times) as address:
        process.madvise(address, times * PAGE_SIZE, Madv.POPULATE_READ)
        return _touch_each(process, address, times, write=True)


def file(process: Process, times: int) -> float:
    """Read a page of each window of sixteen of a file that is in the host's cache, and not in the kernel's."""
    with _mapped_file(process, times) as (address, _file):
        return _touch_each(process, address, times, WINDOW_PAGES * PAGE_SIZE)


def cached(process: Process, times: int) -> float:
    """Do the same as `file` when another mapping has brought all pages of the file into the kernel's cache."""
    length = times * WINDOW_PAGES * PAGE_SIZE
    with _mapped_file(process, times) as (address, file):
        other = process.mmap(0, length, Prot.READ, Map.PRIVATE, file)
        process.madvise(other, length, Madv.POPULATE_READ)
        elapsed = _touch_each(process, address, times, WINDOW_PAGES * PAGE_SIZE)
        process.munmap(other, length)
    return elapsed


@contextlib.contextmanager
def _mapped_file(process: Process, windows: int) -> Iterator[tuple[int, int]]:
    """Map a file of so many windows of sixteen pages; yield the address and the file's descriptor."""
    length = windows * WINDOW_PAGES * PAGE_SIZE
    with tempfile.TemporaryFile() as opened:
        opened.write(b"x" * length)
        opened.flush()
        address = process.mmap(0, length, Prot.READ, Map.PRIVATE, opened.fileno())
        yield address, opened.fileno()
        process.munmap(address, length)


def fork(process: Process, times: int) -> float:
    """Fork a process of some thirty mappings and two hundred pages; the child ends, real and simulated."""

    def fork_and_wait() -> None:
        pid = process.fork()
        if pid == 0:
            process.syscall(Nr.EXIT_GROUP, 0)
            os._exit(0)
        os.waitpid(pid, 0)

    with contextlib.ExitStack() as stack:
        for _ in range(20):
            address = stack.enter_context(_mapped(process, 10, written=True))
            process.mprotect(address + 9 * PAGE_SIZE, PAGE_SIZE, Prot.NONE)
        return _timed(times, fork_and_wait)


def real_fork(process: Process, times: int) -> float:
    """Fork this process alone, as `fork` does beside the simulated one; the child ends at once."""

    def fork_and_wait() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    return _timed(times, fork_and_wait)


def execve(process: Process, times: int) -> float:
    """Replace the simulated program by /bin/true's image. The real program goes on, and loads nothing."""
    return _timed(times, lambda: process.execve(IMAGE, ["true"], ["PATH=/bin"]))


def swap(process: Process, times: int) -> float:
    """Read pages that are in the swap file alone, so far apart that Linux reads none with another."""
    with _mapped(process, times * SWAP_STEP) as address:
        step = SWAP_STEP * PAGE_SIZE
        _touch_each(process, address, times, step, write=True)
        process.madvise(address, times * step, Madv.PAGEOUT)
        return _touch_each(process, address, times, step)


CASES = (
    Case(17, "mmap and munmap of a page", "pair", 100, pair, 0.4, 2),
    Case(18, "mprotect of a page, split and merge", "mprotect", 50, mprotect, 1, 2),
    Case(19, "DONTNEED of a page", "dontneed", 100, dontneed, 1),
    Case(20, "brk up and down", "brk", 100, brk, 1, 2),
    Case(21, "mremap of a page, grow and shrink", "mremap", 100, mremap, 1, 2),
    Case(22, "load of a fresh page", "read", 100, read, 1),
    Case(23, "store to a fresh page", "write", 100, write, 0.15),
    Case(24, "store to a page of the zero page", "cow", 100, cow, 1),
    Case(25, "load of a file, sixteen pages around", "file", 50, file, 1),
    Case(26, "fork and exit, 30 mappings and 200 pages", "fork", 10, fork, 0.6, is_short=False, real=real_fork),
    Case(38, "load of a file in the page cache, sixteen pages around", "file", 50, cached, 1),
    Case(37, "load of a page in the swap file", "swap", 50, swap, 1),
    # The last: its process has another image afterwards.
    Case(36, "execve of /bin/true's image", "execve", 10, execve, 1, is_short=False),
)
