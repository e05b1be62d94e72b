"""The right target gets all points, and each change that is left out loses its own row.

A usual run has few targets, which leave out several changes. `make test-long` has one for each change.
"""

from __future__ import annotations

import pytest

from kerneld.commands.grade.cell import targeting
from kerneld.commands.grade.cell.changes import Changes
from kerneld.commands.grade.grading import Means
from kerneld.commands.grade.model import Outcome, Result
from kerneld.commands.grade.rows import Part
from tests.commands.grade.conftest import Grade, lost
from tests.commands.grade.submission import mistakes, write_submission
from tests.support.effort import EFFORT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EACH = {
    "NO_WRITE": {"writes"},
    "NO_COW": {"cow"},
    "NO_UNMAP": {"unmaps"},
    "NO_STACK": {"stack"},
    "NO_EXECVE": {"execve"},
    "CRASHES": {"exit"},
    "HURRIES": {"visible"},
    # Its memory is static: nothing of it is mapped, written or unmapped as the assignment asks.
    "NO_MAP": {"maps", "writes", "unmaps", "visible"},
}
TOGETHER = (("NO_COW", "NO_UNMAP", "CRASHES"), ("NO_WRITE", "NO_STACK"), ("NO_EXECVE", "HURRIES"), ("NO_MAP",))
"""Changes that do not need one another."""
GROUPS: dict[str, tuple[str, ...]] = {
    "right": (),
    **{"+".join(names): names for names in (tuple((name,) for name in EACH) if EFFORT > 1 else TOGETHER)},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, grade: Grade, means: Means) -> dict[str, Result]:
    """The results of all targets."""
    if means.why_not_inside:
        pytest.skip(f"no program runs inside: {means.why_not_inside}")
    top = tmp_path_factory.mktemp("teams")
    teams = [write_submission(top / group, target=mistakes(*names)) for group, names in GROUPS.items()]
    return grade(teams, Part.BUILD, Part.TARGET)


@pytest.mark.parametrize("group", GROUPS)
def test_a_change_left_out_loses_its_own_row(results: dict[str, Result], group: str) -> None:
    wanted = {f"target_{row}" for name in GROUPS[group] for row in EACH[name]}
    assert set(lost(results[group])) == wanted, lost(results[group])
    assert {one.outcome for one in results[group].findings} <= {Outcome.PASSED, Outcome.FAILED}


def test_where_no_program_runs_inside_the_target_is_not_graded_and_not_passed(
    tmp_path_factory: pytest.TempPathFactory, grade: Grade
) -> None:
    team = write_submission(tmp_path_factory.mktemp("outside") / "right")
    (result,) = grade([team], Part.BUILD, Part.TARGET, stub="").values()
    outcomes = {one.row: one.outcome for one in result.findings}
    assert outcomes.pop("build") is Outcome.PASSED
    assert set(outcomes.values()) == {Outcome.SKIPPED}


@pytest.mark.parametrize(("counts", "is_ended"), [([0, 0, 1, 5, 0], True), ([3, 0], False)])
def test_the_last_events_may_come_late(monkeypatch: pytest.MonkeyPatch, counts: list[int], is_ended: bool) -> None:
    """The third read has the program's end, the fourth what went with it."""
    changes = Changes(7)
    left = list(counts)

    def read(*_parts: object) -> int:
        if len(left) == len(counts) - 2:
            changes.exit_signal = 6
        return left.pop(0)

    monkeypatch.setattr(targeting, "_read", read)
    monkeypatch.setattr(targeting, "_LAST_EVENTS_SECONDS", 0.0)
    targeting._read_last(None, changes, None, is_ended=is_ended)  # type: ignore[arg-type]
    assert left == []
