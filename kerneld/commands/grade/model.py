"""The result of one submission: what each row of the checklist expected, what was seen, and how to see it again.

A row has passed only if its part came to the point where it was seen. A row without an answer has failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a row ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """The host cannot make this row. It has no points, neither won nor lost, and a person has to look."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one row."""

    row: str
    outcome: Outcome
    seen: str
    again: str = ""
    """A command that shows it again."""


@dataclass(frozen=True, slots=True)
class Result:
    """All findings of one submission."""

    team: str
    directory: str
    findings: tuple[Finding, ...]
    walls: tuple[str, ...] = ()
    """What separated this submission from the host and from the others."""
    seconds: float = 0.0
    output: str = ""
    """What the programs printed, for a person: shortened."""

    def find(self, row: str) -> Finding | None:
        """Return the finding of a row, or None."""
        return next((one for one in self.findings if one.row == row), None)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Result:
        """Return the result that `dataclasses.asdict` has made JSON of."""
        findings = tuple(Finding(**{**one, "outcome": Outcome(one["outcome"])}) for one in fields["findings"])
        return cls(**{**fields, "findings": findings, "walls": tuple(fields["walls"])})


def passed(row: str, seen: str, again: str = "") -> Finding:
    """Return the finding of a row that has passed."""
    return Finding(row, Outcome.PASSED, seen, again)


def failed(row: str, seen: str, again: str = "") -> Finding:
    """Return the finding of a row that has failed."""
    return Finding(row, Outcome.FAILED, seen, again)


def skipped(row: str, why: str) -> Finding:
    """Return the finding of a row that this host cannot make."""
    return Finding(row, Outcome.SKIPPED, why)


def judged(row: str, why_not: str, seen: str, again: str = "") -> Finding:
    """Return a finding that has passed if `why_not` is empty; `seen` is what was seen then."""
    return failed(row, why_not, again) if why_not else passed(row, seen, again)
