"""A real process whose mmap_lock is held for ever: it maps something over a file whose server never answers.

What it had written to the file must reach the file before its mapping goes, and the host holds the lock meanwhile
(Linux: fs/fuse/file.c:fuse_vma_close()). Whoever looks at its memory then waits for as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.compiler import build
from tests.support.fuse import SIZE, stuck_file_system

ADDRESS = 0x3000_0000_0000
"""Where it has mapped the file: one page."""


class StuckProcess:
    """Runs, until `get_stuck` is called."""

    def __init__(self, file: Path) -> None:
        orders, self._orders = os.pipe()
        ready, tells = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _run(file, orders, tells)
            finally:
                os._exit(1)
        os.close(orders)
        os.close(tells)
        assert os.read(ready, 1) == b"r"
        os.close(ready)

    def get_stuck(self) -> None:
        """Have it hold its mmap_lock, or be about to."""
        os.write(self._orders, b"g")

    def kill(self) -> None:
        """Kill it; it ends once its file system has."""
        os.close(self._orders)
        os.kill(self.pid, signal.SIGKILL)


def _run(file: Path, orders: int, tells: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    rw = mmap.PROT_READ | mmap.PROT_WRITE
    fixed = 0x10
    assert libc.mmap(ADDRESS, SIZE, rw, mmap.MAP_SHARED | fixed, os.open(file, os.O_RDWR), 0) == ADDRESS
    ctypes.memset(ADDRESS, 65, 1)
    os.write(tells, b"r")
    os.read(orders, 1)
    libc.mmap(ADDRESS, SIZE, rw, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed, -1, 0)


class StuckWorld:
    """A process, and the file system that it is to wait for."""

    def __init__(self, process: StuckProcess, wait_for_a_write: object) -> None:
        self.process = process
        self.pid = process.pid
        self._wait = wait_for_a_write

    def get_stuck(self) -> None:
        """Have the process hold its mmap_lock from now on."""
        self.process.get_stuck()
        assert callable(self._wait)
        self._wait()


@contextlib.contextmanager
def stuck_process(directory: Path) -> Iterator[StuckWorld]:
    """Start one that is to be stuck in an empty directory; skips the test where that cannot be."""
    with stuck_file_system(directory, reads=True) as stuck:
        process = StuckProcess(stuck.file)
        try:
            yield StuckWorld(process, stuck.wait_for_a_write)
        finally:
            process.kill()
            stuck.end()
            os.waitpid(process.pid, 0)


@contextlib.contextmanager
def stuck_execve(directory: Path) -> Iterator[int]:
    """Yield the pid of a process whose execve does not end, `stuck_execve.c`; skips the test where that cannot be."""
    program = build(directory / "stuck_execve", [Path(__file__).with_name("stuck_execve.c")], "-pthread")
    mounted = directory / "mounted"
    mounted.mkdir()
    with stuck_file_system(mounted, reads=True) as stuck:
        orders, gives = os.pipe()
        process = subprocess.Popen(
            [program, stuck.file, str(orders)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(orders,), bufsize=0,
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.read(1) == b"r"
            process.stdin.write(b"g")
            stuck.wait_for_a_write()
            os.write(gives, b"g")
            pid = int(process.stdout.readline())
            while "\nState:\tD" not in Path(f"/proc/{pid}/status").read_text():
                os.sched_yield()
            yield pid
        finally:
            process.kill()
            stuck.end()
            process.communicate()
            os.close(orders)
            os.close(gives)
