"""Hostile datagrams into a machine that is traced, by clients that open and close traces of their own meanwhile.

The trace stays true through all of it: address spaces and free frames rebuilt from it are the machine's. When the last
client has gone, nothing is wrapped and no ring is left.
"""

from __future__ import annotations

import gc
import os
import random
from typing import Any, cast

import pytest

from kerneld.syscalls.dispatch import dispatch
from kerneld.syscalls.kernel import Sender
from kerneld.trace import tracepoint
from kerneld.trace.fprobe import FPROBES
from kerneld.trace.tracing import Tracing
from shared.trace.attr import TraceAttr
from shared.trace.events import EVENTS
from shared.uapi.syscalls import ABI_VERSION, Nr
from shared.wire import Request
from tests.support.in_process import Drive
from tests.support.programs import Program
from tests.support.replay import Replay
from tests.support.traced import Trace

TRACER = (1 << 23) - 1
STEPS = 1200


class Refused(AssertionError):
    """A record did not fit its event."""


class _Log:
    def exception(self, event: str, **fields: object) -> None:
        raise Refused(f"{event}: {fields}")


def meddle(drive: Drive, chance: random.Random) -> None:
    """One of the clients opens a trace, well or badly, or closes one; what it is given it drops."""
    threads = [connection.thread for connection in drive._clients if connection.thread is not None]
    if not threads:
        return
    thread = chance.choice(threads)
    globs = tuple(chance.choice(EVENTS).name for _ in range(chance.randrange(1, 4)))
    pids = tuple(chance.sample(list(drive.kernel.processes), chance.randrange(2)))
    data = TraceAttr(chance.choice((globs, ("*",), ("no",))), pids, chance.choice((0, 1, 2, 3, 1 << 30))).pack()
    if chance.random() < 0.3:
        at = chance.randrange(len(data))
        data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    nr = int(chance.choice((Nr.PERF_EVENT_OPEN, Nr.PERF_EVENT_OPEN, Nr.CLOSE)))
    answer = dispatch(drive.kernel, thread, Request(nr, (chance.randrange(40), 0, 0, 0, 0, 0), data), [])
    for fd in answer.fds:
        os.close(fd)


@pytest.mark.parametrize("seed", [11, 12])
def test_traced_through_all_of_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracepoint, "_log", cast(Any, _Log()))
    gc.collect()  # A machine and its tracing know each other: an earlier one may still hold descriptors.
    drive = Drive(seed, 0.0)
    Tracing(drive.kernel)
    program = Program(drive.kernel, drive.kernel.attach(Sender(TRACER, 0, 0), ABI_VERSION, 0, 0))
    trace = Trace(program, data_pages=8192)
    replay = Replay(drive.kernel.frames)
    replay.know(program.mm)
    chance = random.Random(seed)
    try:
        for number in range(STEPS):
            if program.process.ended:
                break  # Hostile clients may kill whom they like, by having memory run out.
            drive.step()
            if chance.random() < 0.2:
                meddle(drive, chance)
            drive.tend()
            replay.take(trace.records())
            if number % 20 == 0:
                for mm in drive.kernel.table.address_spaces():
                    replay.check(mm)
                replay.check_frames(drive.kernel.frames)
        assert not trace.lost
        trace.close()
        drive.tend()
        assert drive.pipes.fd < 0, "a ring is left that nobody reads"
        drive.finish()
        assert FPROBES.functions == []
    finally:
        drive.close()
