"""The referee's programs on kerneld alone, with protection keys and without, whatever the host's processor has.

There is nobody to compare with: invariants are checked after calls, and what must be so on each processor.
"""

from __future__ import annotations

from pathlib import Path
from signal import SIGILL, SIGSEGV

import pytest

from kerneld.referee.execute import play
from kerneld.referee.generate import generate
from kerneld.referee.outcome import State
from kerneld.referee.program import from_json
from kerneld.referee.simulated import Simulated
from shared.uapi.signals import SegvCode
from tests.differential.alone import LAYOUT, facts

PROGRAMS = 16
BY_HAND = sorted(Path(__file__).with_name("programs").glob("keys_*.json"))


def keys_of(states: list[State]) -> set[str]:
    """Return the protection keys that mappings had, but 0."""
    flags = {flag for state in states for view in state.views.values() for at in view.mappings for flag in at.flags}
    return {flag for flag in flags if flag.startswith("key")}


@pytest.mark.parametrize("pku", [True, False], ids=["pku", "no-pku"])
def test_random_programs(tmp_path: Path, pku: bool) -> None:
    ours = Simulated(tmp_path, facts(), pku=pku)
    states: list[State] = []
    try:
        for number in range(PROGRAMS):
            ours.check_invariants(number % 8 == 0)
            states += play(ours, LAYOUT, generate(f"keys-{number}", 40))
    finally:
        ours.close()
    denied = [state.outcome for state in states if state.outcome.signo == SIGSEGV and state.outcome.si_code == 4]
    instructions = [state.outcome for state in states if state.outcome.signo == SIGILL]
    assert (bool(denied), bool(keys_of(states)), not instructions) == (pku, pku, pku)


@pytest.mark.parametrize("file", BY_HAND, ids=lambda file: file.stem)
def test_programs_by_hand(tmp_path: Path, file: Path) -> None:
    program = from_json(file.read_text())
    ours = Simulated(tmp_path, facts(), check_invariants=True, pku=True)
    try:
        states = list(play(ours, LAYOUT, program))
    finally:
        ours.close()
    assert keys_of(states)
    for op, state in zip(program, states, strict=True):
        if op.name == "wrpkru":
            assert (state.outcome.ret, state.outcome.signo) == (0, 0)
    assert any(state.outcome.si_code == SegvCode.PKUERR for state in states if state.outcome.signo == SIGSEGV)
