"""A host for tests of what the referee passes over: it plays nothing."""

from __future__ import annotations

from typing import Any

from kerneld.referee.match import Match
from kerneld.referee.program import Op, Program


class NotingHost:
    """A host like that of a match, but for some facts, that notes what it is told to play."""

    def __init__(self, match: Match, **facts: Any) -> None:
        self.facts = match.hosts.facts._replace(runs_ksm=False, has_journal=False, **facts)
        self.expected: list[Op] = []

    def expect(self, program: Program, *, pages_out: bool, everything: bool) -> None:
        self.expected += program
