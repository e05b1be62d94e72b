"""The results in the form of Gradescope's results.json, for one submission; for several, by the name of the team.

Owns the form. Source: gradescope-autograders.readthedocs.io, Autograder Specifications, Output format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kerneld.commands.grade.checklist import Checklist
from kerneld.commands.grade.model import Finding, Outcome, Result
from kerneld.commands.grade.rows import BY_NAME


def results_text(results: Sequence[Result], checklist: Checklist) -> str:
    """Return the JSON."""
    forms = {result.team: results_form(result, checklist) for result in results}
    return json.dumps(next(iter(forms.values())) if len(forms) == 1 else forms, indent=2) + "\n"


def results_form(result: Result, checklist: Checklist) -> dict[str, Any]:
    """Return one submission's results.json. Gradescope adds the points of the tests up."""
    tests = [_test(finding, checklist) for finding in result.findings]
    skipped = sum(1 for finding in result.findings if finding.outcome is Outcome.SKIPPED)
    form: dict[str, Any] = {
        "score": sum(test["score"] for test in tests),
        "execution_time": round(result.seconds),
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }
    if skipped:
        form["output"] = f"{skipped} rows could not be graded on this machine. A person has to look at them."
    return form


def _test(finding: Finding, checklist: Checklist) -> dict[str, Any]:
    row = BY_NAME[finding.row]
    points = checklist.points.get(finding.row, row.points)
    lines = [f"expected: {row.expected}", f"seen: {finding.seen}"]
    if finding.outcome is Outcome.FAILED:
        lines += [f"usual mistake: {row.mistake}", f"see it again: {finding.again}"]
    return {
        "name": row.title,
        "number": finding.row,
        "score": points if finding.outcome is Outcome.PASSED else 0,
        "max_score": 0 if finding.outcome is Outcome.SKIPPED else points,
        "status": "failed" if finding.outcome is Outcome.FAILED else "passed",
        "output": "\n".join(lines) if finding.outcome is not Outcome.SKIPPED else f"not graded: {finding.seen}",
        "visibility": "visible",
    }
