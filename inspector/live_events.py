"""The kernel's events for `--follow` and `--also`: opens them, and waits while it takes them. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from inspector.interrupts import Woken, wait
from inspector.replay import find_mm
from shared.client import KerneldGone, Process
from shared.failure import Failure, Status
from shared.real_process import no_process
from shared.recording.live_machine import LiveMachine
from shared.stop_signals import StopSignals
from shared.trace.record import Record


def open_live_machine(process: Process, *pids: int) -> LiveMachine:
    """Return the model of the machine, which has all of these processes. Raises Failure, KerneldGone."""
    try:
        live = LiveMachine(process)
    except OSError as error:
        raise Failure(Status.FAILED, f"kerneld refuses its events: {error.strerror}") from None
    for pid in pids:
        if find_mm(live.now, pid) is None:
            live.close()
            raise _why_not_there(process, pid)
    return live


def _why_not_there(process: Process, pid: int) -> Failure:
    try:
        process.read_proc(f"{pid}/stat")
    except OSError:
        return Failure(Status.NO_PROCESS, f"{no_process(pid)}: only a process of kerneld's makes events")
    return Failure(Status.NOT_PERMITTED, f"not permitted to look into process {pid}: it is another user's")


def wait_reading(
    live: LiveMachine, take: Callable[[list[Record]], None], due: float, signals: StopSignals, connection: int
) -> Woken:
    """Wait until `due`, a time of time.monotonic(), or for a signal. Give the events that come meanwhile to `take`.

    Raises KerneldGone when the connection ends.
    """
    while (rest := due - time.monotonic()) > 0:
        if live.wait(rest, signals.fileno()):
            take(live.read())
        woken = wait(signals, 0, connection)
        if woken is Woken.HANGUP:
            raise KerneldGone("the connection has ended")
        if woken is Woken.STOP:
            return woken
    return Woken.TIME
