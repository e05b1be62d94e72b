"""The results on a terminal: a line for each submission, or a line for each row. Owns the words and columns."""

from __future__ import annotations

from collections.abc import Sequence

import click

from kerneld.commands.grade.cell.isolation import Walls
from kerneld.commands.grade.checklist import Checklist
from kerneld.commands.grade.model import Finding, Outcome, Result
from kerneld.commands.grade.report.score import score
from kerneld.commands.grade.rows import BY_NAME
from shared.terminal import escaped

_MARKS = {Outcome.PASSED: "ok", Outcome.FAILED: "NO", Outcome.SKIPPED: "?"}
_SHOWN_LINES = 60


def walls_line(walls: Walls) -> str:
    """Return what separates submissions from this host and from one another here, and what is missing."""
    line = f"kerneld grade: each submission has {', '.join(walls.words()) or 'no walls'}"
    return f"{line}. MISSING on this host: {', '.join(walls.missing())}" if walls.missing() else line


class Shower:
    """Prints each result when it is there."""

    def __init__(self, checklist: Checklist, *, is_detailed: bool) -> None:
        """With `is_detailed` every row has a line, and what the programs printed follows."""
        self._checklist = checklist
        self._is_detailed = is_detailed

    def add(self, result: Result) -> None:
        """Print a result."""
        won, most = score(result, self._checklist)
        click.echo(f"{escaped(result.team)}: {won:g} of {most:g} points, {result.seconds:.0f} s")
        for finding in result.findings:
            if self._is_detailed or finding.outcome is not Outcome.PASSED:
                for line in self._lines(finding):
                    click.echo(f"  {line}")
        if self._is_detailed and any(finding.outcome is Outcome.FAILED for finding in result.findings):
            for line in result.output.splitlines()[:_SHOWN_LINES]:
                click.echo(f"  | {escaped(line)}")

    def _lines(self, finding: Finding) -> list[str]:
        row = BY_NAME[finding.row]
        points = self._checklist.points.get(finding.row, row.points)
        won = f"{points if finding.outcome is Outcome.PASSED else 0:g}/{points:g}"
        lines = [f"{_MARKS[finding.outcome]:2}  {won:>5}  {finding.row:<19}  {row.title}"]
        if finding.outcome is Outcome.PASSED:
            return lines
        pad = " " * 11
        lines += [f"{pad}expected: {row.expected}", f"{pad}seen:     {escaped(finding.seen)}"]
        if finding.outcome is Outcome.FAILED:
            lines += [f"{pad}usual mistake: {row.mistake}", f"{pad}again:    {escaped(finding.again)}"]
        return lines


def totals(results: Sequence[Result], checklist: Checklist) -> str:
    """Return the last line: the number of submissions, the mean of their points, the rows that most of them lost."""
    if len(results) == 1:
        return ""
    scores = [score(result, checklist)[0] for result in results]
    lost: dict[str, int] = {}
    for result in results:
        for finding in result.findings:
            if finding.outcome is Outcome.FAILED:
                lost[finding.row] = lost.get(finding.row, 0) + 1
    worst = sorted(lost, key=lambda row: -lost[row])[:3]
    words = ", ".join(f"{row} ({lost[row]})" for row in worst)
    line = f"{len(results)} submissions, mean {sum(scores) / len(scores):.1f} points"
    return f"{line}; lost most often: {words}" if words else line
