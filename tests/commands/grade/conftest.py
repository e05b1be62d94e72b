"""What the tests of grading share: the means of this host, found once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from kerneld.commands.grade.checklist import Checklist
from kerneld.commands.grade.grading import Means, find_tools, find_walls, grade_all
from kerneld.commands.grade.model import Outcome, Result
from kerneld.commands.grade.rows import Part
from kerneld.commands.grade.traced_order import trace_order

JOBS = 8
Grade = Callable[..., dict[str, Result]]


@pytest.fixture(scope="session", autouse=True)
def _has_compiler() -> None:
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("no C compiler and make here")


@pytest.fixture(scope="session")
def means() -> Means:
    """Everything that `kerneld grade` finds out before it grades."""
    stub, library, why_not_inside = find_tools()
    checklist = Checklist.default()
    return Means(checklist, tuple(Part), find_walls(), stub, library, trace_order(checklist.functions), why_not_inside)


@pytest.fixture(scope="session")
def grade(means: Means) -> Grade:
    """A function that grades submissions side by side, and returns the results by the names of their directories."""

    def grade_them(directories: Sequence[Path], *parts: Part, **changes: object) -> dict[str, Result]:
        chosen = dataclasses.replace(means, parts=parts or tuple(Part), **changes)  # type: ignore[arg-type]
        results = grade_all(directories, chosen, JOBS, lambda _result: None)
        return {directory.name: result for directory, result in zip(directories, results, strict=True)}

    return grade_them


def lost(result: Result) -> Mapping[str, str]:
    """Return the rows that a submission has lost, with what was seen."""
    return {one.row: one.seen for one in result.findings if one.outcome is Outcome.FAILED}
