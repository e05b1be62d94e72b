"""Rows 14 and 15: the start of a daemon, and the host's memory that it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from bench.machine import CPUS, ONE_CPU, ROOT, Daemon, placed
from bench.many_vmas import make_vmas
from bench.sample import Mark, Row
from bench.worker import Worker
from shared.client import KerneldUnavailable, Process
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SHIFT

MIB = 1 << 20
STARTS = 5
TARGETS, VMAS = 200, 1000
HALF_BYTES = 8 << 30
POPULATED = HALF_BYTES >> PAGE_SHIFT


def rows() -> Iterator[Row]:
    """Yield the rows."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as bytecode:
        for cpus, placement in ((ONE_CPU, "one CPU"), (CPUS, "unpinned")):
            with placed(cpus):
                start = Row(14, "kerneld start to the first reply", "–", placement, "s", Mark(0.35))
                idle = Row(14, "idle memory of the daemon", "–", placement, "MiB", Mark(45))
                measure_start(bytecode)
                for _ in range(STARTS):
                    seconds, mib = measure_start(bytecode)
                    start.ours.append(seconds)
                    idle.ours.append(mib)
                yield start
                yield idle
    yield from _memory()


def measure_start(bytecode: str) -> tuple[float, float]:
    """Return the seconds from starting the program to the reply to attach, and its resident MiB then.

    `bytecode` is the directory for compiled modules, from the first start on: every user but the very first finds them,
    whatever the environment of the benchmark says.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as directory:
        path = os.path.join(directory, "kerneld.sock")
        command = [sys.executable, "-P", "-m", "kerneld", "start", "--socket", path, "--log-level", "warning"]
        started = time.monotonic()
        daemon = subprocess.Popen(command, env=environment)
        try:
            while True:
                try:
                    process = Process.attach(path)
                    break
                except KerneldUnavailable:
                    time.sleep(0.002)
            seconds = time.monotonic() - started
            with open(f"/proc/{daemon.pid}/status", encoding="utf-8") as status:
                kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
            process.close()
        finally:
            daemon.terminate()
            daemon.wait()
    return seconds, kib / 1024


def _memory() -> Iterator[Row]:
    daemon = Daemon("16G")
    try:
        before = daemon.memory_bytes()
        workers = [Worker(daemon.socket_path) for _ in range(TARGETS)]
        vma = Row(15, "memory a VMA, 200 targets of 1,000", "–", "unpinned", "B", Mark(400))
        attached = daemon.memory_bytes()
        for worker in workers:
            worker.call(make_vmas, VMAS)
        vma.ours.append((daemon.memory_bytes() - attached) / (TARGETS * VMAS))
        yield vma
        page = Row(15, "memory a populated page beyond its contents", "–", "unpinned", "B", Mark(40))
        mapped = daemon.memory_bytes()
        tables = sum(worker.call(populate_part, HALF_BYTES // TARGETS >> PAGE_SHIFT) for worker in workers)
        page.ours.append((daemon.memory_bytes() - mapped + tables) / (POPULATED // TARGETS * TARGETS))
        yield page
        each = Row(15, "memory an attached target", "–", "unpinned", "KiB", None)
        each.ours.append((attached - before) / TARGETS / 1024)
        yield each
        for worker in workers:
            worker.close()
    finally:
        daemon.close()


def populate_part(process: Process, pages: int) -> int:
    """Populate so many pages; return the bytes that the page tables took in the simulated RAM."""
    before = table_bytes(process)
    length = pages << PAGE_SHIFT
    address = process.mmap(0, length, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE)
    process.madvise(address, length, Madv.POPULATE_WRITE)
    return table_bytes(process) - before


def table_bytes(process: Process) -> int:
    """Return what this process's page tables take: VmPTE."""
    status = process.read_proc("self/status").decode()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPTE")) * 1024
