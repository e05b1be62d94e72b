"""kerneld's side of the referee without a host."""

from __future__ import annotations

from kerneld.referee.execute import play
from kerneld.referee.facts import HostFacts, find_facts
from kerneld.referee.layout import AREA_BYTES, CONTROL_START, TEXT_START, Layout
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import State
from kerneld.referee.program import MAX_PROCESSES, Op
from kerneld.referee.simulated import Simulated
from shared.uapi.page import PAGE_SIZE

LAYOUT = Layout(
    TEXT_START + 4 * PAGE_SIZE,
    (
        (TEXT_START, TEXT_START + 3 * PAGE_SIZE),
        (CONTROL_START, CONTROL_START + (MAX_PROCESSES + 1) * AREA_BYTES),
    ),
    0x10000,
)
"""Where the host's runner lies, nearly: there is none here."""


def facts(mode: Mode = Mode.PLAIN) -> HostFacts:
    """Return what kerneld's side takes over from this machine. Raises HostError where this has no such mode."""
    return find_facts(mode, LAYOUT)


def states(ours: Simulated, *program: Op) -> list[State]:
    """Return what kerneld's side has after each operation of a program."""
    return list(play(ours, LAYOUT, program))
