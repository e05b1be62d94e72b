"""The small calls on a kernel in this process run, and a meter is told of each."""

from __future__ import annotations

import errno
import mmap
import subprocess
import sys

import pytest

from bench.counting import read_lines
from bench.handlers import CALLS
from bench.machine import ROOT
from bench.meters import SOFTWARE_PAGE_FAULTS, TYPE_SOFTWARE, PerfCounter
from shared.uapi.page import PAGE_SIZE


def test_every_call_runs_and_is_measured() -> None:
    command = [sys.executable, "-P", "-m", "bench.handlers", "clock", "2"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    measured = dict(read_lines(done.stdout))
    assert list(measured) == list(CALLS)
    assert all(nanoseconds > 0 for nanoseconds in measured.values())


def test_the_counter_of_the_host_counts_the_events_of_a_piece(capsys: pytest.CaptureFixture[str]) -> None:
    why = None
    try:
        counter = PerfCounter(TYPE_SOFTWARE, SOFTWARE_PAGE_FAULTS)
    except OSError as error:
        why = error.errno
    if why is not None:
        # Forbidden by perf_event_paranoid, by a filter of system calls, or left out of the host's kernel.
        assert why in (errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENOENT)
        return
    with mmap.mmap(-1, 64 * PAGE_SIZE) as fresh:
        fresh.madvise(mmap.MADV_NOHUGEPAGE)
        counter.begin()
        for page in range(64):
            fresh[page * PAGE_SIZE] = 1
        counter.end("touched")
    assert 64 <= dict(read_lines(capsys.readouterr().out))["touched"] < 128
