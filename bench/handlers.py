"""The small calls on a kernel in this process: what the handlers alone cost, without a socket and another process.

`python -m bench.handlers METER TIMES [CALL ...]` makes each call so often, and has a meter (`bench.meters`) measure it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

import structlog

from bench.meters import TIMERS, Meter, meter
from kerneld.mm.space import dying, pace
from kerneld.syscalls.answer import Answer, Call, Work
from kerneld.syscalls.dispatch import run
from kerneld.syscalls.kernel import Kernel, KernelConfig, Sender
from kerneld.syscalls.table import RESTART
from shared.client.execve import pack_strings
from shared.uapi.mman import Madv, Map, Mremap, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import ABI_VERSION, Exec, Nr

RAM_BYTES, SWAP_BYTES = 256 << 20, 64 << 20
NONE, READ, RW = Prot.NONE.value, Prot.READ.value, (Prot.READ | Prot.WRITE).value
PRIVATE, ANONYMOUS = Map.PRIVATE.value, (Map.PRIVATE | Map.ANONYMOUS).value
WINDOW_PAGES = 16
GIB = 1 << 30
IMAGE = "/bin/true"


class Program:
    """A process of the kernel's, with ten mappings that do not merge; the real process behind it is this one."""

    def __init__(self, kernel: Kernel, meter: Meter) -> None:
        self.kernel = kernel
        self.meter = meter
        thread = kernel.attach(Sender(os.getpid(), os.getuid(), os.getgid()), ABI_VERSION, 0, 0)
        self._call = Call(kernel, thread, (0,) * 6, b"", [])
        for number in range(10):
            self.mmap(1, READ if number % 2 else NONE)

    def request(self, nr: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
        """Make a request of all its pieces and return what it returns. Raises OSError."""
        call = self._call
        # As from the wire: no number is an enum's member.
        call.args = (a, b, c, d, e, f)
        result: int | Answer | Work = run(call, nr)
        while isinstance(result, Work):
            call.work = result
            result = run(call, RESTART)
        call.work = None
        ret = result if isinstance(result, int) else result.ret
        if ret < 0:
            raise OSError(-ret, f"{Nr(nr).name.lower()}: {os.strerror(-ret)}")
        return ret

    def request_with(self, nr: int, fd: int, data: bytes, *args: int) -> int:
        """Make a request that has a descriptor, which it takes, and bytes."""
        self._call.fds, self._call.data = [fd], data
        try:
            return self.request(nr, *args)
        finally:
            self._call.fds, self._call.data = [], b""

    def mmap(self, pages: int, prot: int = RW) -> int:
        """Map anonymous private pages."""
        return self.request(Nr.MMAP, 0, pages * PAGE_SIZE, prot, ANONYMOUS)

    @contextlib.contextmanager
    def mapped(self, pages: int, populate: Madv | None = None) -> Iterator[int]:
        """Map pages that are never huge, and populate them where that is asked for."""
        address = self.mmap(pages)
        self.request(Nr.MADVISE, address, pages * PAGE_SIZE, Madv.NOHUGEPAGE.value)
        if populate is not None:
            self.request(Nr.MADVISE, address, pages * PAGE_SIZE, populate.value)
        yield address
        self.request(Nr.MUNMAP, address, pages * PAGE_SIZE)

    def measure(self, name: str, times: int, once: Callable[[int], object]) -> None:
        """Have the meter measure `once(0)`, `once(1)` … `once(times - 1)`."""
        self.meter.begin()
        for number in range(times):
            once(number)
        self.meter.end(name)


def pair(program: Program, times: int) -> None:
    """Map a page and unmap it."""
    request = program.request

    def once(_: int) -> None:
        request(Nr.MUNMAP, request(Nr.MMAP, 0, PAGE_SIZE, RW, ANONYMOUS), PAGE_SIZE)

    program.measure("pair", times, once)


def merge(program: Program, times: int) -> None:
    """Map a page and unmap it, as `pair`, right below written memory of the same kind, with which it merges."""
    request = program.request
    with program.mapped(2, Madv.POPULATE_WRITE) as address:
        # It has no flag that a new mapping has not, and so both merge.
        heap = request(Nr.MMAP, 0, 2 * PAGE_SIZE, RW, ANONYMOUS | Map.POPULATE.value)

        def once(_: int) -> None:
            request(Nr.MUNMAP, request(Nr.MMAP, 0, PAGE_SIZE, RW, ANONYMOUS), PAGE_SIZE)

        program.measure("merge", times, once)
        request(Nr.MUNMAP, heap, 2 * PAGE_SIZE)
        assert address > heap


def mprotect(program: Program, times: int) -> None:
    """Make one page of eight read-only and writable again: two splits, then two merges."""
    request = program.request
    with program.mapped(8, Madv.POPULATE_WRITE) as address:
        page = address + 4 * PAGE_SIZE

        def once(_: int) -> None:
            request(Nr.MPROTECT, page, PAGE_SIZE, READ)
            request(Nr.MPROTECT, page, PAGE_SIZE, RW)

        program.measure("mprotect", times, once)


def dontneed(program: Program, times: int) -> None:
    """Drop one written page."""
    with program.mapped(times, Madv.POPULATE_WRITE) as address:
        program.measure(
            "dontneed",
            times,
            lambda page: program.request(Nr.MADVISE, address + page * PAGE_SIZE, PAGE_SIZE, Madv.DONTNEED.value),
        )


def brk(program: Program, times: int) -> None:
    """Move the break up by two pages and down again."""
    request = program.request
    base = request(Nr.BRK)

    def once(_: int) -> None:
        request(Nr.BRK, base + 2 * PAGE_SIZE)
        request(Nr.BRK, base)

    program.measure("brk", times, once)


def mremap(program: Program, times: int) -> None:
    """Grow a mapping of one page where it is, and shrink it again."""
    request = program.request
    with program.mapped(8, Madv.POPULATE_WRITE) as address:
        request(Nr.MUNMAP, address + PAGE_SIZE, 7 * PAGE_SIZE)

        def once(_: int) -> None:
            request(Nr.MREMAP, address, PAGE_SIZE, 2 * PAGE_SIZE)
            request(Nr.MREMAP, address, 2 * PAGE_SIZE, PAGE_SIZE)

        program.measure("mremap", times, once)


def move(program: Program, times: int) -> None:
    """Move a GiB that has an entry in each of its leaf tables to a place that is free, and back."""
    request, flags = program.request, Mremap.MAYMOVE.value | Mremap.FIXED.value
    unbacked = ANONYMOUS | Map.NORESERVE.value
    address = request(Nr.MMAP, 0, GIB, RW, unbacked)
    for table in range(address, address + GIB, PMD_SIZE):
        request(Nr.MADVISE, table, PAGE_SIZE, Madv.POPULATE_READ.value)
    free_place = request(Nr.MMAP, 0, GIB, RW, unbacked)
    request(Nr.MUNMAP, free_place, GIB)

    def once(_: int) -> None:
        request(Nr.MREMAP, address, GIB, GIB, flags, free_place)
        request(Nr.MREMAP, free_place, GIB, GIB, flags, address)

    program.measure("move", times, once)
    request(Nr.MUNMAP, address, GIB)


def fork(program: Program, times: int) -> None:
    """Copy a process of some thirty mappings and two hundred pages, attach the copy, and end it."""
    kernel, request = program.kernel, program.request

    def once(_: int) -> None:
        token = request(Nr.CLONE)
        thread = kernel.attach(Sender(real.pid, os.getuid(), os.getgid()), ABI_VERSION, 0, token)
        run(Call(kernel, thread, (0,) * 6, b"", []), Nr.EXIT_GROUP)
        kernel.take_ended()
        while kernel.dying.queue:
            kernel.reap_memory()

    with contextlib.ExitStack() as stack:
        # The child that attaches must be a real one of the real process that has forked.
        real = stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        for _ in range(20):
            address = stack.enter_context(program.mapped(10, Madv.POPULATE_WRITE))
            request(Nr.MPROTECT, address + 9 * PAGE_SIZE, PAGE_SIZE, NONE)
        program.measure("fork", times, once)


def execve(program: Program, times: int) -> None:
    """Replace the program by /bin/true's image."""
    strings = pack_strings(os.fsencode(IMAGE), ["true"], ["PATH=/bin"])
    counts = (Exec.COUNTED.value, strings.argc, strings.envc)
    fds = [os.open(IMAGE, os.O_RDONLY | os.O_CLOEXEC) for _ in range(times)]
    data = strings.data
    program.measure(
        "execve", times, lambda number: program.request_with(Nr.EXECVE, fds[number], data, 0, 0, 0, *counts)
    )


def read(program: Program, times: int) -> None:
    """Read fresh pages: the zero page."""
    _load_each(program, "read", times, None)


def write(program: Program, times: int) -> None:
    """Write to fresh pages."""
    _store_each(program, "write", times, None)


def cow(program: Program, times: int) -> None:
    """Write to pages that the zero page stands for."""
    _store_each(program, "cow", times, Madv.POPULATE_READ)


def file(program: Program, times: int) -> None:
    """Read a page of each window of sixteen of a file that is in the host's cache, and not in the kernel's."""
    with _file(times) as (opened, length):
        _load_windows(program, "file", opened, length)


def cached(program: Program, times: int) -> None:
    """Do the same as `file` when another mapping has brought all pages of the file into the kernel's cache."""
    with _file(times) as (opened, length):
        other = _map_file(program, opened, length)
        program.request(Nr.MADVISE, other, length, Madv.POPULATE_READ.value)
        _load_windows(program, "cached", opened, length)
        program.request(Nr.MUNMAP, other, length)


@contextlib.contextmanager
def _file(windows: int) -> Iterator[tuple[IO[bytes], int]]:
    """Make a file of so many windows of sixteen pages; yield it and its length in bytes."""
    length = windows * WINDOW_PAGES * PAGE_SIZE
    with tempfile.TemporaryFile() as opened:
        opened.write(b"x" * length)
        opened.flush()
        yield opened, length


def _map_file(program: Program, opened: IO[bytes], length: int) -> int:
    return program.request_with(Nr.MMAP, os.dup(opened.fileno()), b"", 0, length, READ, PRIVATE)


def _load_windows(program: Program, name: str, opened: IO[bytes], length: int) -> None:
    address, window = _map_file(program, opened, length), WINDOW_PAGES * PAGE_SIZE
    program.measure(name, length // window, lambda at: program.request(Nr.LOAD, address + at * window, 1))
    program.request(Nr.MUNMAP, address, length)


def swap(program: Program, times: int) -> None:
    """Read pages that are in the swap file, and not in the swap cache."""
    with program.mapped(times, Madv.POPULATE_WRITE) as address:
        program.request(Nr.MADVISE, address, times * PAGE_SIZE, Madv.PAGEOUT.value)
        program.measure("swap", times, lambda page: program.request(Nr.LOAD, address + page * PAGE_SIZE, 1))


def _load_each(program: Program, name: str, times: int, populate: Madv | None) -> None:
    with program.mapped(times, populate) as address:
        program.measure(name, times, lambda page: program.request(Nr.LOAD, address + page * PAGE_SIZE, 1))


def _store_each(program: Program, name: str, times: int, populate: Madv | None) -> None:
    call = program._call
    with program.mapped(times, populate) as address:
        call.data = bytes(8)
        program.measure(name, times, lambda page: program.request(Nr.STORE, address + page * PAGE_SIZE, 8))
        call.data = b""


CALLS: dict[str, Callable[[Program, int], None]] = {
    call.__name__: call
    for call in (pair, merge, mprotect, dontneed, brk, mremap, read, write, cow, file, cached, swap, fork, execve, move)
}
"""By their names in small.c. execve is late: its process has another image afterwards."""


class Nothing:
    """The meter of the calls that warm everything up."""

    def begin(self) -> None:
        """Do nothing."""

    def end(self, name: str) -> None:
        """Do nothing."""


def stop_clock() -> None:
    """Have no request go in pieces that end by the clock: a counter makes this process up to fifty times slower.

    Then there would be more pieces, one time more than another.
    """
    for module in (pace, dying):
        vars(module)["monotonic"] = lambda: 0.0


def main(arguments: list[str]) -> None:
    """Make each call a few times, so that nothing is new, and then as often as it is measured."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    chosen, times = arguments[0], int(arguments[1])
    if chosen not in TIMERS:
        stop_clock()
    wanted = [CALLS[name] for name in arguments[2:]] or list(CALLS.values())
    # As `kerneld start` makes it: native programs are allowed.
    config = KernelConfig(RAM_BYTES, swap_bytes=SWAP_BYTES, superuser_uid=os.getuid(), native=True)
    kernel = Kernel(config)
    program = Program(kernel, Nothing())
    for call in wanted:
        call(program, times)
    gc.collect()
    gc.freeze()
    gc.disable()
    program.meter = meter(chosen)
    for call in wanted:
        call(program, times)
    kernel.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
