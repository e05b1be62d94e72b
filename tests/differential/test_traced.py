"""The same programs, with every event traced: the results are the same, and the trace is true.

Page tables, VMAs and free frames rebuilt from the records alone are the kernel's own after every call. So is the model
of a record: tables, marks, page cache and swap too.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from kerneld.referee.generate import generate
from kerneld.referee.match import Match
from kerneld.referee.outcome import View
from kerneld.referee.simulated import Simulated
from kerneld.referee.wide import WideGenerator
from kerneld.syscalls.kernel import Sender
from kerneld.trace.fprobe import FPROBES
from kerneld.trace.tracing import Tracing
from shared.recording.head import GLOBS
from shared.recording.machine import Machine
from shared.trace.record import Record, decode
from shared.uapi.syscalls import ABI_VERSION
from tests.differential.agreement import REGRESSIONS, agree
from tests.support.model_check import check_frames, check_mm
from tests.support.programs import Program
from tests.support.replay import Replay
from tests.support.traced import Trace

TRACER = (1 << 22) - 2
SECONDS = 4
FRESH_PROGRAMS = 30
FRAMES_EVERY = 40
DESCRIBED_EVERY = 8
"""At so many looks the frames of the model, and its shadow page tables, are compared too, which takes longest."""
FEWEST = 8
"""So many are run however long it takes."""


class Follower:
    """Reads the trace of the simulated side, and compares what it tells whenever the referee looks at a process."""

    def __init__(self, ours: Simulated) -> None:
        kernel = ours.kernel
        Tracing(kernel)
        self._opener = Program(kernel, kernel.attach(Sender(TRACER, 0, 0), ABI_VERSION, 0, 0))
        ours._free_pages = kernel.frames.free_pages
        self.trace = Trace(self._opener, *GLOBS, data_pages=16384)
        self.replay = Replay(kernel.frames)
        self.machine = Machine()
        self.machine.apply(self.trace.reader.take())  # The snapshot, which is for the model alone.
        self.looks = 0

    def look(self, ours: Simulated, who: int) -> None:
        """Compare what is known of a process with what is so."""
        ours.kernel.tracing.flush()  # type: ignore[union-attr]  # What its start does is in no request.
        data = self.trace.reader.take()
        self.replay.take(one for one in decode(data) if isinstance(one, Record))
        self.machine.apply(data)
        assert not self.trace.reader.lost
        mm = ours.threads[who].process.mm
        if mm is not None:
            self.replay.check(mm)
            check_mm(self.machine.mms[mm.number], mm, described=self.looks % DESCRIBED_EVERY == 0)
        self.replay.check_frames(ours.kernel.frames)
        if self.looks % FRAMES_EVERY == 0:
            check_frames(self.machine, ours.kernel)
        self.looks += 1

    def close(self) -> None:
        self.trace.close()
        self._opener.kernel.process_died(self._opener.process)
        self._opener.kernel.take_ended()


@pytest.fixture
def traced(match: Match, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Match, Follower]]:
    match.ours.check_invariants(False)  # Of these programs, test_random checks them.
    free_pages = match.ours._free_pages
    follower = Follower(match.ours)
    view = Simulated.view

    def looking(self: Simulated, who: int, *, whole: bool = True) -> View:
        follower.look(self, who)
        return view(self, who, whole=whole)

    monkeypatch.setattr(Simulated, "view", looking)
    yield match, follower
    follower.close()
    match.ours._free_pages = free_pages
    assert FPROBES.functions == []
    assert match.ours.kernel.frames.free_pages == free_pages


def test_programs_that_once_diverged(traced: tuple[Match, Follower]) -> None:
    from kerneld.referee.program import from_json  # noqa: PLC0415

    match, follower = traced
    for file in REGRESSIONS:
        agree(match, from_json(file.read_text()))
    assert follower.looks > len(REGRESSIONS)


def test_random_programs(traced: tuple[Match, Follower], record_property: Callable[[str, object], None]) -> None:
    match, follower = traced
    seed = os.environ.get("REFEREE_SEED", "traced")
    end = time.monotonic() + SECONDS
    played = 0
    while played < FRESH_PROGRAMS and (played < FEWEST or time.monotonic() < end):
        agree(match, generate(f"{seed}-{played}", 40))
        played += 1
    assert follower.looks > played
    record_property("played", f"{played} of {FRESH_PROGRAMS} programs")


def test_programs_on_wide_ranges(traced: tuple[Match, Follower]) -> None:
    """Records of many leaf tables at once are as true as those of one."""
    match, follower = traced
    for number in range(3):
        agree(match, WideGenerator(random.Random(f"traced-{number}")).program(40))
    assert follower.looks > 30
