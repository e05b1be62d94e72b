"""Row 16: what tracing costs. The same stores on two daemons, one with every event of everybody going into a file: as
text (`kerneld trace`), and as a record that shows the machine at any moment (`kerneld record`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import CPUS, ONE_CPU, ROOT, START_SECONDS, Daemon, placed
from bench.round_trips import ROUNDS, measure_batches, measure_faults
from bench.sample import Mark, Row, interleave

BUFFER = "64M"


class Recorder:
    """`kerneld trace` or `kerneld record` at work: all events into a file that is gone when it ends."""

    def __init__(self, daemon: Daemon, command: str) -> None:
        """Start it, and wait until it is traced by."""
        self._command = command
        self._directory = tempfile.TemporaryDirectory(prefix="kerneld-bench-")
        path = Path(self._directory.name, "trace")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kerneld", command, "--socket", daemon.socket_path, "--buffer", BUFFER,
             "-o", str(path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid
        deadline = time.monotonic() + START_SECONDS
        while "memfd:kerneld-trace" not in Path(f"/proc/{daemon.pid}/maps").read_text(encoding="utf-8"):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"kerneld {self._command} does not start")
            time.sleep(0.001)

    def close(self) -> str:
        """End it; return what it says of lost records, "" if there are none."""
        self._process.send_signal(signal.SIGINT)
        _out, said = self._process.communicate()
        self._directory.cleanup()
        last = said.splitlines()[-1]
        return last if " 0 lost" not in last and ("lost" in last or "missing" in last) else ""


def rows(plain: Daemon) -> Iterator[Row]:
    """Yield the rows, each measured when its turn comes: the batched ones have the mark, the others are to compare."""
    yield from _rows(plain, "trace", "the same, every event traced to a file", "every event traced")
    yield from _rows(plain, "record", "the same, every event recorded to a file", "every event recorded")


def _rows(plain: Daemon, command: str, batched: str, how: str) -> Iterator[Row]:
    traced = Daemon()
    recorder = Recorder(traced, command)
    ours, theirs = traced.attach(), plain.attach()
    try:
        for cpus, placement in ((ONE_CPU, "one CPU"), (CPUS, "unpinned")):
            with placed(cpus, plain.pid, traced.pid, recorder.pid):
                batch = Row(16, batched, "untraced: row 4", placement, "ns/page", Mark(3.0))
                yield interleave(batch, ROUNDS, lambda: measure_batches(ours), lambda: measure_batches(theirs))
                single = Row(16, f"one store a datagram, {how}", "untraced: row 3", placement, "ns", None)
                yield interleave(single, ROUNDS, lambda: measure_faults(ours), lambda: measure_faults(theirs))
    finally:
        lost = recorder.close()
        if lost:
            print(f"    row 16: {lost}: what was written down is less than what happened")
        for process in (ours, theirs):
            process.close()
        traced.close()
