"""System V shared memory in the referee's programs."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from kerneld.referee.execute import play
from kerneld.referee.match import Match
from kerneld.referee.mode import Mode
from kerneld.referee.program import MAX_PROCESSES, At, Base, Op
from kerneld.referee.programs import make_program
from kerneld.referee.segments import CALLS
from kerneld.referee.simulated import Simulated
from shared.uapi import shm
from tests.differential.alone import LAYOUT, states
from tests.differential.noting_host import NotingHost

ANYWHERE = At(Base.ZERO)
REMOVED = Op(0, "shmctl", (0, shm.IPC_RMID))


def test_a_segment_is_named_by_its_number(ours: Simulated) -> None:
    """It is the one that is attached and told of, and not another of the program's."""
    played = states(
        ours, Op(0, "shmget", (8192, 0)), Op(0, "shmget", (12288, 0)), Op(0, "shmat", (1, ANYWHERE, 0), slot=2),
        Op(0, "shmctl", (0, shm.IPC_STAT)), Op(0, "shmctl", (1, shm.IPC_STAT)), Op(0, "shmat", (2, ANYWHERE, 0)),
    )  # fmt: skip
    get, other, attached, idle, told, none = played[:6]
    assert (get.outcome.ret, other.outcome.ret, none.outcome.ret) == (0, 0, -errno.EINVAL)
    start = attached.outcome.ret
    assert [(mapping.start, mapping.end) for mapping in attached.views[0].mappings] == [(start, start + 12288)]
    assert (idle.outcome.data, told.outcome.data) == (b"(8192, 0, '0o600')", b"(12288, 1, '0o600')")


def test_nothing_outlives_a_program(ours: Simulated) -> None:
    at_its_end: list[int] = []
    for state in play(ours, LAYOUT, (Op(0, "shmget", (8192, 0)), Op(0, "shmget", (4096, 0)), REMOVED)):
        assert state.outcome.ret >= 0
        at_its_end.append(len(list(ours.kernel.shm)))
    assert at_its_end[:3] == [1, 2, 1]
    assert not list(ours.kernel.shm)


def test_programs_attach_detach_and_remove(ours: Simulated) -> None:
    done: Counter[str] = Counter()
    for number in range(60):
        program = tuple(op for op in make_program(Mode.PLAIN, f"segments-{number}", 60) if op.name in CALLS)
        results = states(ours, *program)
        done.update(op.name for op, state in zip(program, results, strict=True) if state.outcome.ret >= 0)
    assert set(done) == CALLS, done


@pytest.mark.parametrize("has_own_ipc", [True, False])
def test_a_host_without_a_namespace_passes_over_them(match: Match, has_own_ipc: bool) -> None:
    host = NotingHost(match, has_own_ipc=has_own_ipc)
    asked = Match(match.ours, host, ())  # type: ignore[arg-type]
    asked.expect((Op(0, "shmget", (4096, 0)), Op(0, "munmap", (0, 4096))))
    assert [op.who for op in host.expected] == [0 if has_own_ipc else MAX_PROCESSES, 0]
    assert ("System V" in asked.describe()) is not has_own_ipc
