"""The long run of the fuzzers: `python -m tests.hostile`, or `make fuzz`.

Datagrams go in pieces of many thousands to fresh machines in this and other processes, and through real daemons. Prints
a line a piece and the sum; a piece that fails names its seed, prints its traceback, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import structlog

PIECE = 5_000
RAM_MIB = (4, 4, 4, 16)
"""What the machines have, in turn: a check of all of a small one takes less long, and its memory is short more often.
"""


def drive_machine(seed: int, count: int, check_share: float) -> Counter[str]:
    """Send `count` datagrams into a machine in this process; every invariant is checked after each."""
    from tests.support.in_process import Drive  # noqa: PLC0415  (a machine: only where one is driven)

    drive = Drive(seed, check_share, check_each=True, ram_bytes=RAM_MIB[seed % len(RAM_MIB)] << 20)
    try:
        for number in range(count):
            try:
                drive.step()
            except BaseException:
                print(f"seed {seed}: datagram {number} fails", file=sys.stderr, flush=True)
                raise
        drive.finish()
    finally:
        drive.close()
    return Counter(datagrams=count, checked=drive.nr_checked, replies=drive.nr_replies, good=drive.nr_good)


def drive_daemon(seed: int, count: int) -> Counter[str]:
    """Send `count` datagrams to a real daemon."""
    from tests.hostile import through_daemon  # noqa: PLC0415
    from tests.support.client import Nursery  # noqa: PLC0415
    from tests.support.hostile_daemon import HostileDaemon  # noqa: PLC0415

    nursery = Nursery()
    with tempfile.TemporaryDirectory(prefix="hostile-") as directory:
        daemon = HostileDaemon(Path(directory), nursery, check_invariants=False)
        total = through_daemon.run(daemon, seed, count, 3)
        daemon.close()
    nursery.close()
    return total


def piece(way: str, seed: int, count: int, check_share: float) -> tuple[str, int, Counter[str], str]:
    """Run one piece; return what it was, what came of it, and the traceback of its failure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        total = drive_machine(seed, count, check_share) if way == "machine" else drive_daemon(seed, count)
    except BaseException:
        return way, seed, Counter(), traceback.format_exc()
    return way, seed, total, ""


def outcomes(tasks: list[tuple[str, int, int, float]], jobs: int) -> Iterator[tuple[str, int, Counter[str], str]]:
    """Yield what came of each piece as it ends, `jobs` at once; whoever leaves off early leaves nothing running."""
    # What they keep in files lies in one directory, which goes also when they are killed.
    with tempfile.TemporaryDirectory(prefix="hostile-") as directory:
        os.environ["TMPDIR"] = directory
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            jobs, context, signal.signal, (signal.SIGINT, signal.SIG_DFL), max_tasks_per_child=1
        ) as pool:
            try:
                for done in as_completed([pool.submit(piece, *task) for task in tasks]):
                    yield done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():
                    worker.kill()
                raise


def main() -> int:
    """Run every piece; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description="The long run of the fuzzers.")
    parser.add_argument("--datagrams", type=int, default=1_000_000, help="into machines in a process [1000000]")
    parser.add_argument("--through-daemon", type=int, default=100_000, help="through real daemons [100000]")
    parser.add_argument(
        "--check",
        type=float,
        default=0.01,
        help="share in which each request is followed by a check, not only the datagram [0.01]",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first piece [1]")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="pieces at once")
    args = parser.parse_args()
    tasks = []
    for way, wanted in (("machine", args.datagrams), ("daemon", args.through_daemon)):
        for number, start in enumerate(range(0, wanted, PIECE)):
            tasks.append((way, args.seed + number, min(PIECE, wanted - start), args.check))
    started = time.monotonic()
    sums: dict[str, Counter[str]] = {"machine": Counter(), "daemon": Counter()}
    failed = 0
    for way, seed, total, failure in outcomes(tasks, args.jobs):
        sums[way] += total
        failed += bool(failure)
        print(f"{way} seed {seed}: {failure or dict(total)}", flush=True)
    for way, total in sums.items():
        print(f"{way}: {dict(total)}")
    print(f"{len(tasks)} pieces, {failed} failed, {time.monotonic() - started:.0f} s")
    return 1 if failed else 0
