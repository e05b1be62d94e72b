"""How long one client makes all others wait: `python -m tests.hostile.waits`, or `make waits`.

Plays every call that may be long in the worlds that it takes longest in (`waits_calls.py`), one process each, on a real
kerneld that notes its longest turn (`measured_daemon.py`). Prints a line a case as it is done: the longest turn of the
call, and of the end of the process behind it, in ms of the daemon's processor and of the clock. The exit status is 1
where a call's turn was over the aim. On a busy machine the clock has what others took too; the processor's time has
not.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared.client import Process
from shared.client.trace import TraceSession
from shared.interrupts import ending_by_signals
from shared.uapi.mman import Madv
from shared.uapi.page import PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.hostile import (
    waits_calls,
    waits_crowds,
    waits_machine,
    waits_newer,
    waits_ranges,
    waits_requests,
    waits_traces,
)
from tests.hostile.measured_daemon import Board
from tests.hostile.waits_cases import Case
from tests.hostile.waits_worlds import ANON, ELSEWHERE, RW, Scale, common_file
from tests.support.client import ROOT
from tests.support.daemons import start_kerneld

CASES = [
    *waits_calls.CASES, *waits_ranges.CASES, *waits_machine.CASES, *waits_crowds.CASES, *waits_requests.CASES,
    *waits_newer.CASES, *waits_traces.CASES,
]  # fmt: skip
AIM_MS, PROMISE_MS = 50.0, 100.0
_NOT_MADE, _NOT_MADE_TEXT = 1, "not made"
_MADE = b"m"
_UNIT = "   longest turn in ms: processor (clock)\n"
_LEFT_BYTES = 32 << 20
"""What a full machine has left: kswapd sleeps, and an allocation of a few MiB wakes it."""
_RING_BYTES = 16 << 20
"""The largest ring of a user. Nobody reads it: what comes when it is full costs less."""
_GIB = 1 << 30
_UNITS = {"M": 1 << 20, "G": 1 << 30}


class Measured(NamedTuple):
    """What came of one case: longest turns in ns, (processor, clock)."""

    call: tuple[int, int]
    end: tuple[int, int]
    seconds: float
    failure: str
    made_seconds: float = 0.0
    """How long it took to make the world."""


class MeasuredDaemon:
    """A kerneld that notes its longest turn, in a directory of its own."""

    def __init__(self, directory: Path, ram: str, swap: str, options: list[str]) -> None:
        self.board = Board(str(directory / "board"))
        self.path = str(directory / "kerneld.sock")
        self.process = start_kerneld(
            self.path,
            "--swap",
            swap,
            *options,
            command=[sys.executable, "-P", "-m", "tests.hostile.measured_daemon", str(directory / "board")],
            environ={**os.environ, "PYTHONPATH": str(ROOT)},
            ram=ram,
            check_invariants=False,
        )
        assert self.process.stderr is not None
        with self.process.stderr as stderr, (directory / "log").open("wb") as log:
            # The rest of the log must go somewhere while the daemon lives.
            self._drain = subprocess.Popen(["cat"], stdin=stderr, stdout=log)

    def settle(self) -> None:
        """Wait until all that have ended have left their memory."""
        with Process.attach(self.path) as process:
            while b"Exiting:\t0" not in process.procread("kerneld/status"):
                os.sched_yield()

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self._drain.wait()


class How(NamedTuple):
    """In what surroundings the calls are made."""

    traced: bool
    full: bool
    seconds: int
    """After which a call is ended: what is the same again and again has been seen by then."""


def play(daemon: MeasuredDaemon, case: Case, scale: Scale, how: How) -> Measured:
    """Play one case in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        try:
            _child(daemon, case, scale, writing, how)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(_NOT_MADE)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    daemon.settle()
    after = daemon.board.read()
    exit_code = os.waitstatus_to_exitcode(status)
    if exit_code == _NOT_MADE or not told:
        return Measured((0, 0), (0, 0), 0.0, _NOT_MADE_TEXT)
    if told == _MADE:
        # The call was its end, or was ended.
        was_cut = exit_code == -signal.SIGALRM
        return Measured(after, after, how.seconds * was_cut, f"ended after {how.seconds} s" * was_cut)
    call, seconds, failure, made_seconds = pickle.loads(told.removeprefix(_MADE))
    return Measured(call, after, seconds, failure, made_seconds)


def play_up_to(times: int, daemon: MeasuredDaemon, case: Case, scale: Scale, how: How) -> Measured:
    """Play a case again while it is over the aim, and return the best: what the host does comes once, the rest always.

    A virtual machine whose processor is taken away for a while counts that as the processor's time.
    """
    best = play(daemon, case, scale, how)
    for _ in range(1, times):
        if _worst(best) <= AIM_MS:
            break
        best = min(best, play(daemon, case, scale, how), key=_worst)
    return best


def _worst(measured: Measured) -> float:
    """Return the longest turn of the processor's time, in ms; one that was not made is no better than another."""
    return max(measured.call[0], measured.end[0]) / 1e6 if measured.failure != _NOT_MADE_TEXT else AIM_MS


def _child(daemon: MeasuredDaemon, case: Case, scale: Scale, writing: int, how: How) -> None:
    """Make the world, make the call, tell what it took, and end."""
    failure, started = "", time.monotonic()
    common_file()
    others = [Helper(daemon.path, case, scale, how.seconds) for _ in range(1, case.nr_processes)]
    process = Process.attach(daemon.path)
    world = case.make(process, scale.shared_by(case.nr_processes))
    for other in others:
        other.wait()
    if how.full:
        fill(daemon.path)
    trace = TraceSession(process, ("*",), [process.pid], _RING_BYTES) if how.traced else None
    os.write(writing, _MADE)
    daemon.board.clear()
    signal.alarm(how.seconds)
    begun = time.monotonic()
    for other in others:
        other.go_on()
    try:
        case.do(process, world)
    except OSError as error:
        failure = error.strerror or str(error)
    for other in others:
        other.wait()
    process.getpid()  # The turn of the call is over then, and noted.
    told = pickle.dumps((daemon.board.read(), time.monotonic() - begun, failure, begun - started))
    daemon.board.clear()
    os.write(writing, told)
    if trace is not None:
        trace.close()
    for other in others:
        other.go_on()
    os._exit(0)


def fill(path: str) -> None:
    """Let another process take the memory that is left, in huge pages as far as that goes; it ends with this one."""
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        _kept.append(ours)
        ours.recv(1)
        return
    try:
        ours.close()
        process = Process.attach(path)
        free = int(process.procread("meminfo").split(b"MemFree:")[1].split()[0]) << 10
        length = max(free - _LEFT_BYTES, 0) & -PMD_SIZE
        process.mmap(ELSEWHERE << 2, length, RW, ANON)
        process.madvise(ELSEWHERE << 2, length, Madv.HUGEPAGE)
        process.call(Nr.TOUCH, ELSEWHERE << 2, length, Access.WRITE)
        theirs.send(b"x")
        theirs.recv(1)
    finally:
        os._exit(0)


_kept: list[socket.socket] = []


class Helper:
    """Another process that makes the same call at the same time, in a world of its own."""

    def __init__(self, path: str, case: Case, scale: Scale, seconds: int) -> None:
        ours, theirs = socket.socketpair()
        self._pid, self._channel = os.fork(), ours
        if self._pid:
            theirs.close()
            return
        ours.close()
        self._channel = theirs
        try:
            process = Process.attach(path)
            world = case.make(process, scale.shared_by(case.nr_processes))
            self.go_on()
            self.wait()
            signal.alarm(seconds)
            with contextlib.suppress(OSError):
                case.do(process, world)
            self.go_on()
            self.wait()
        finally:
            os._exit(0)

    def go_on(self) -> None:
        """Tell the other side that this one has come so far."""
        with contextlib.suppress(OSError):
            self._channel.send(b"x")

    def wait(self) -> None:
        """Wait until the other side has, or has ended."""
        self._channel.recv(1)


def _in_ms(turn: tuple[int, int]) -> str:
    return f"{turn[0] / 1e6:7.1f} ({turn[1] / 1e6:7.1f})"


@contextlib.contextmanager
def measured_daemon(ram: str, swap: str, options: list[str]) -> Iterator[MeasuredDaemon]:
    """Yield a daemon that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="waits-") as directory:
        daemon = MeasuredDaemon(Path(directory), ram, swap, options)
        try:
            yield daemon
        finally:
            daemon.close()


def main() -> int:
    """Play the cases; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.waits", description=str(__doc__).split("\n\n")[1])
    parser.add_argument("--ram", default="16G", help="the machine's RAM, in M or G; worlds are as large as it [16G]")
    parser.add_argument("--swap", default="2G", help="its swap file [2G]")
    parser.add_argument("--only", default=["*"], nargs="+", help="globs over the names, such as 'mremap*/ wide'")
    parser.add_argument("--traced", action="store_true", help="the process traces itself, every event")
    parser.add_argument("--full", action="store_true", help="another process takes all memory that a world has left")
    parser.add_argument("--times", type=int, default=1, help="how often to play a case that is over the aim [1]")
    parser.add_argument("--seconds", type=int, default=60, help="after which a call is ended by a signal [60]")
    args = parser.parse_args()
    scale = Scale.of(int(args.ram[:-1]) * _UNITS[args.ram[-1]])
    late = 0
    print(f"{'call / world':44} {'call':>17} {'its end':>19} {'took':>8} {'made in':>8}", end=_UNIT)
    with measured_daemon(args.ram, args.swap, ["--overcommit-memory", "1"]) as daemon:
        for case in CASES:
            if not any(fnmatch.fnmatchcase(case.name, glob) for glob in args.only):
                continue
            measured = play_up_to(args.times, daemon, case, scale, How(args.traced, args.full, args.seconds))
            worst = _worst(measured)
            late += worst > AIM_MS or measured.failure == _NOT_MADE_TEXT
            mark = "  <-- over" if worst > AIM_MS else ""
            print(
                f"{case.name:44} {_in_ms(measured.call)} {_in_ms(measured.end)} {measured.seconds:7.2f}s "
                f"{measured.made_seconds:7.2f}s "
                f"{measured.failure}{mark}",
                flush=True,
            )
    print(f"{late} of them over {AIM_MS:.0f} ms")
    return 1 if late else 0


if __name__ == "__main__":
    with ending_by_signals("waits"):
        sys.exit(main())
