"""Points of a result, by a checklist."""

from __future__ import annotations

from kerneld.commands.grade.checklist import Checklist
from kerneld.commands.grade.model import Outcome, Result


def score(result: Result, checklist: Checklist) -> tuple[float, float]:
    """Return the points won and the most that could be won. A row that was skipped has none of either."""
    counted = {one.row: one for one in result.findings if one.outcome is not Outcome.SKIPPED}
    rows = {row: points for row, points in checklist.points.items() if row in counted}
    won = sum(points for row, points in rows.items() if counted[row].outcome is Outcome.PASSED)
    return won, sum(rows.values())
