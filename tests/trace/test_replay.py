"""Random calls with huge pages and little memory, traced: what the records say is what the machine came to.

The same calls on a machine that is not traced return the same. tests/differential/test_traced.py does so with the
referee's programs, which know neither huge pages nor reclaim.
"""

from __future__ import annotations

import random

import pytest

from kerneld.mm.space import pagewalk
from kerneld.trace.fprobe import FPROBES
from shared.uapi.mman import Madv, Mremap
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.support.effort import examples
from tests.support.programs import ANON, FIXED, NONE, READ, RW, SHARED_ANON, USER, Program, page
from tests.support.replay import Replay
from tests.support.traced import TracedWorld

PAGES = 4 * 512
STEPS = examples(120)
ADVICE = (
    Madv.DONTNEED, Madv.FREE, Madv.PAGEOUT, Madv.COLLAPSE, Madv.HUGEPAGE, Madv.NOHUGEPAGE, Madv.WIPEONFORK,
    Madv.POPULATE_WRITE, Madv.COLD,
)  # fmt: skip
KINDS = (ANON, SHARED_ANON)


class Script:
    """The same random calls each time for one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _range(self) -> tuple[int, int]:
        chance = self._random
        start = chance.choice((0, 512, 1024, chance.randrange(PAGES)))
        count = chance.choice((1, 7, 512, 700, 1600, chance.randrange(1, 300)))
        return page(start), min(count, PAGES - start) * PAGE_SIZE

    def step(self, program: Program) -> tuple[int, int]:
        """Make one call; return what came of it."""
        answer = program.answer(*self.request())
        return answer.ret, answer.signo

    def request(self) -> tuple[int, ...]:
        """Return the number and the arguments of the next call."""
        chance = self._random
        start, length = self._range()
        other, _ = self._range()
        calls = [
            (Nr.MMAP, start, length, RW, FIXED | chance.choice(KINDS)),
            (Nr.MMAP, start, length, RW, FIXED | ANON),
            (Nr.MUNMAP, start, min(length, 5 * PAGE_SIZE)),
            (Nr.MPROTECT, start, length, chance.choice((RW, RW, READ, NONE))),
            (Nr.MADVISE, start, length, chance.choice(ADVICE)),
            (Nr.MREMAP, start, length, length, Mremap.MAYMOVE | Mremap.FIXED, other + 2 * PAGES * PAGE_SIZE),
            (Nr.MREMAP, start, length, length * 2, Mremap.MAYMOVE),
            (Nr.MLOCK, start, min(length, 8 * PAGE_SIZE)),
            (Nr.MUNLOCK, start, length),
            (Nr.TOUCH, start, length, Access.READ),
        ]
        touch = (Nr.TOUCH, start, length, Access.WRITE)
        return chance.choice((touch, chance.choice(calls)))


def make() -> tuple[TracedWorld, list[Program]]:
    world = TracedWorld(12 << 20, swap_bytes=16 << 20, thp="always")
    programs = [world.attach(USER), world.attach(USER)]
    for program in programs:
        # A bad access is reported to it, not the end of it.
        program.call(Nr.RT_SIGACTION, 11, 2)
        program.mmap(PAGES, at=page(0))
    return world, programs


def play(seed: int) -> list[tuple[int, int]]:
    """Return what the calls of a seed return, untraced."""
    world, programs = make()
    script, pick = Script(seed), random.Random(seed)
    said = []
    for number in range(STEPS):
        program = pick.choice(programs)
        if program.process.ended:
            continue
        said.append(script.step(program))
        if number % 40 == 39 and not program.process.ended:
            program.answer(Nr.CLONE)
    world.close()
    return said


@pytest.mark.parametrize(("seed", "few_tables"), [(0, 2), (1, 0), (2, 0)])
def test_traced_calls_return_the_same_and_are_told_truly(
    seed: int, few_tables: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagewalk, "_FEW_TABLES", few_tables)
    expected = play(seed)
    assert FPROBES.functions == []
    world, programs = make()
    script, pick = Script(seed), random.Random(seed)
    said = []
    with world.trace(data_pages=8192) as trace:
        replay = Replay(world.kernel.frames)
        for process in world.kernel.processes.values():
            replay.know(process.live_mm)
        for number in range(STEPS):
            program = pick.choice(programs)
            if program.process.ended:
                continue
            said.append(script.step(program))
            replay.take(trace.records())
            if number % 40 == 39 and not program.process.ended:
                program.answer(Nr.CLONE)
            replay.take(trace.records())
            for mm in world.kernel.table.address_spaces():
                replay.check(mm)
            replay.check_frames(world.kernel.frames)
        assert not trace.lost
    assert said == expected
    world.close()
