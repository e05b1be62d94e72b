"""The model equals the machine after every call: random calls with files, huge pages, swap and little memory."""

from __future__ import annotations

import random

import pytest

from kerneld.mm.space import pagewalk
from shared.recording.dump import key_frame
from shared.recording.machine import Machine
from shared.recording.reader import Recording
from shared.uapi.syscalls import Nr
from tests.support.effort import examples
from tests.support.model_check import check
from tests.support.programs import USER, page
from tests.support.recorded import recorded, state
from tests.support.traced import TracedWorld
from tests.trace.test_replay import Script

pytestmark = pytest.mark.slow
STEPS = examples(80)


@pytest.mark.parametrize(("seed", "few_tables"), [(0, 2), (1, 0), (2, 2)])
def test_the_model_is_the_machine_after_every_call(seed: int, few_tables: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagewalk, "_FEW_TABLES", few_tables)
    world = TracedWorld(12 << 20, swap_bytes=16 << 20, thp="always")
    programs = [world.attach(USER), world.attach(USER)]
    for program in programs:
        program.call(Nr.RT_SIGACTION, 11, 2)  # A bad access is reported to it, not the end of it.
        program.mmap(4 * 512, at=page(0))
    script, pick = Script(seed), random.Random(seed)
    with recorded(world, key_events=500) as record:
        check(record.read(), world.kernel)
        for number in range(STEPS):
            program = pick.choice(programs)
            if program.process.ended:
                continue
            script.step(program)
            if number % 40 == 39 and not program.process.ended:
                program.answer(Nr.CLONE)
            check(record.read(), world.kernel)
            if number % 10 == 0:
                _check_key_frame(record.recorder.machine)
        _check_file(record.file(), state(record.recorder.machine), pick)
    world.close()


def _check_key_frame(machine: Machine) -> None:
    """A machine that its key frame makes from nothing is the same."""
    again = Machine()
    again.apply(key_frame(machine))
    assert state(again) == state(machine)


def _check_file(data: bytes, end: dict[str, object], pick: random.Random) -> None:
    """Any moment that is reached from a key frame is the one that is reached from the beginning."""
    recording = Recording(data)
    assert recording.nr_events > 1000
    assert state(recording.machine(recording.nr_events)) == end
    moments = sorted(pick.sample(range(recording.nr_events), 12))
    walker, at = recording.machine(0), 0
    for moment in moments:
        recording.advance(walker, at, moment)
        at = moment
        assert state(recording.machine(moment)) == state(walker)
