"""Load for a time: many targets, one that sends heavy batches, an inspector. `python -m bench.soak --help`.

Says how many requests were served, how evenly, how long one waited, and whether the daemon's memory, descriptors and
frames are at the end what they were. Owns a daemon of its own. The exit status is 1 where something was not given back
or a client was not served.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import mmap
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shared import wire
from shared.client import Process, realmem
from shared.client.connection import Connection
from shared.interrupts import ending_by_signals
from shared.uapi.mman import Map, Prot
from shared.uapi.syscalls import Nr

PAGE = 4096
PAGES = 16
WORD = 8
SLOT_WORDS = 4
"""A worker's requests, exchanges, longest wait in ns, and whether it runs."""
ANONYMOUS = int(Map.PRIVATE | Map.ANONYMOUS)
HEAVY_BATCH, HEAVY_PAGES = 2000, 256


class Board:
    """Counters in memory that every process shares: a few words each, written by that one alone."""

    def __init__(self, count: int) -> None:
        self._map = mmap.mmap(-1, max(PAGE, (count + 1) * SLOT_WORDS * WORD))
        self.words = memoryview(self._map).cast("Q")
        self.count = count

    def slot(self, number: int) -> memoryview:
        return self.words[(number + 1) * SLOT_WORDS : (number + 2) * SLOT_WORDS]

    @property
    def is_over(self) -> bool:
        return self.words[0] != 0

    def stop(self) -> None:
        self.words[0] = 1

    def column(self, index: int) -> list[int]:
        return [self.slot(number)[index] for number in range(self.count)]


def target(path: str, board: Board, number: int) -> None:
    """Map, touch, store, load, unmap: a datagram at a time, and now and then a batch of a few."""
    process = Process.attach(path)
    slot = board.slot(number)
    slot[3] = 1
    rw = int(Prot.READ | Prot.WRITE)
    while not board.is_over:
        started = time.monotonic_ns()
        address = process.mmap(0, PAGES * PAGE, rw, ANONYMOUS)
        waited = time.monotonic_ns() - started
        process.mem.store_u64(address, number)
        if process.mem.load_u64(address) != number:
            raise AssertionError("another's memory")
        with process.batch() as batch:
            batch.touch(address, PAGES * PAGE)
            batch.call(Nr.GETPID)
        process.munmap(address, PAGES * PAGE)
        slot[0] += 6
        slot[1] += 5
        slot[2] = max(slot[2], waited)
    process.close()


def heavy(path: str, board: Board, number: int) -> None:
    """One batch after another of thousands of requests, each of which touches a MiB."""
    connection = Connection(path, lambda _late: None)
    connection.exchange(wire.pack_request(Nr.ATTACH, (1, 0, 0)))
    mapped = (0, HEAVY_PAGES * PAGE, int(Prot.READ | Prot.WRITE), ANONYMOUS | int(Map.NORESERVE), 1 << 64, 0)
    (reply,) = wire.unpack_replies(connection.exchange(wire.pack_request(Nr.MMAP, mapped)))
    batch = wire.pack_request(Nr.TOUCH, (reply.ret, HEAVY_PAGES * PAGE, 1)) * HEAVY_BATCH
    slot = board.slot(number)
    slot[3] = 1
    while not board.is_over:
        started = time.monotonic_ns()
        replies = wire.unpack_replies(connection.exchange(batch))
        slot[0] += len(replies)
        slot[1] += 1
        slot[2] = max(slot[2], time.monotonic_ns() - started)
    connection.close()


def inspector(path: str, board: Board, number: int, pid: int) -> None:
    """Follow a target and copy whole tables."""
    process = Process.attach(path)
    length = 512 * PAGE
    start = 0x7FFF_F000_0000
    entries = realmem.map_anonymous(512 * 24)
    process.shadowpt_open(pid, start, start + length, entries)
    process.shadowpt_start()
    slot = board.slot(number)
    slot[3] = 1
    while not board.is_over:
        started = time.monotonic_ns()
        process.snapshot()
        process.getpid()
        slot[0] += 1
        slot[1] += 1
        slot[2] = max(slot[2], time.monotonic_ns() - started)
    process.shadowpt_close()
    process.close()


def fork(run: Callable[[], None]) -> int:
    """Run a function in a child; its exit status is 1 where that raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException as error:
            print(f"soak: pid {os.getpid()}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return pid


def start_daemon(path: Path, ram: str, clients: int) -> subprocess.Popen[bytes]:
    """Start a kerneld and wait until it accepts."""
    command = [sys.executable, "-m", "kerneld", "start", "--ram", ram, "--socket", str(path), "--log-format", "json"]
    limits = ["--max-clients", str(clients + 16), "--log-level", "info"]
    log = path.with_suffix(".log").open("wb")
    read_fd, write_fd = os.pipe()
    daemon = subprocess.Popen([*command, *limits], stderr=write_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as reader:
        ready = reader.readline()
        if b"kerneld ready" not in ready:
            raise SystemExit(f"soak: no daemon: {ready.decode(errors='replace').strip()}")
        subprocess.Popen(["cat"], stdin=reader, stdout=log)
    log.close()
    return daemon


def state_of(daemon: subprocess.Popen[bytes], asker: Process) -> dict[str, int]:
    """Return what must be flat: private memory, descriptors, tasks and free frames."""
    status = dict(line.split(":\t") for line in asker.read_proc("kerneld/status").decode().splitlines())
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            anon_kb = int(line.split()[1])
    return {
        "RssAnon kB": anon_kb,
        "descriptors": len(os.listdir(f"/proc/{daemon.pid}/fd")),
        "tasks": int(status["Tasks"]),
        "free kB": int(status["MemFree"].split()[0]),
    }


def watch(board: Board, seconds: float, requests: int, daemon: subprocess.Popen[bytes], asker: Process) -> float:
    """Print a line ten times on the way; returns the time that passed."""
    started = time.monotonic()
    share = 0.1
    while True:
        passed = time.monotonic() - started
        served = sum(board.column(0))
        done = max(passed / seconds, served / requests) if requests else passed / seconds
        if done >= share or done >= 1:
            print(f"{passed:7.1f} s  {served:10,} requests  {state_of(daemon, asker)}", flush=True)
            share += 0.1
        if done >= 1:
            return passed
        asker.getpid()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(0.05)
        if daemon.poll() is not None:
            raise SystemExit(f"soak: the daemon has ended with {daemon.returncode}")


def report(board: Board, seconds: float, targets: int) -> None:
    """Print the figures."""
    served, waits = board.column(0), board.column(2)
    by_target = sorted(served[:targets])
    print(f"requests      {sum(served):,} in {seconds:.1f} s: {sum(served) / seconds:,.0f} a second")
    median = statistics.median(by_target)
    print(f"targets       {targets}: least {by_target[0]:,}, median {median:,.0f}, most {by_target[-1]:,}")
    longest = sorted(waits[:targets])
    median = statistics.median(longest)
    print(f"longest wait  of a target: median {median / 1e6:.1f} ms, worst {longest[-1] / 1e6:.1f} ms")
    print(f"heavy batches {board.slot(targets)[1]:,} of {HEAVY_BATCH} requests, longest {waits[targets] / 1e6:.0f} ms")
    print(f"inspector     {served[targets + 1]:,} tables copied")


def main() -> int:
    """Run and report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Load for a time.")
    parser.add_argument("--processes", type=int, default=500, help="targets [500]")
    parser.add_argument("--seconds", type=float, default=120.0, help="longest time [120]")
    parser.add_argument("--requests", type=int, default=0, help="end after so many requests [0: the time alone]")
    parser.add_argument("--ram", default="1G", help="of the machine [1G]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kerneld-soak-") as directory:
        path = Path(directory) / "kerneld.sock"
        daemon = start_daemon(path, args.ram, args.processes + 3)
        try:
            return run(args, str(path), daemon)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)


def run(args: argparse.Namespace, path: str, daemon: subprocess.Popen[bytes]) -> int:
    """Load the daemon, and compare before and after."""
    board = Board(args.processes + 2)
    asker = Process.attach(path)
    before = state_of(daemon, asker)
    print(f"before        {before}")
    pids = [fork(functools.partial(target, path, board, number)) for number in range(args.processes)]
    pids.append(fork(lambda: heavy(path, board, args.processes)))
    while not all(board.column(3)[: args.processes + 1]) and daemon.poll() is None:
        asker.getpid()
    pids.append(fork(lambda: inspector(path, board, args.processes + 1, pids[0])))
    seconds = watch(board, args.seconds, args.requests, daemon, asker)
    board.stop()
    failed = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in pids)
    report(board, seconds, args.processes)
    after = state_of(daemon, asker)
    print(f"after         {after}")
    kept = [key for key in ("descriptors", "tasks", "free kB") if before[key] != after[key]]
    print(f"clients that failed: {failed}; not given back: {', '.join(kept) or 'nothing'}")
    asker.close()
    return 1 if failed or kept else 0


if __name__ == "__main__":
    with ending_by_signals("soak"):
        sys.exit(main())
