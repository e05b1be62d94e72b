"""The right inspector gets all points in every format, and each mistake loses its own row.

A usual run has few submissions, with several mistakes each. `make test-long` has one for each format and each mistake.
How formats are read is tested without programs in test_reading.py.
"""

from __future__ import annotations

import pytest

from kerneld.commands.grade.grading import Means
from kerneld.commands.grade.model import Result
from kerneld.commands.grade.rows import ROWS, Part
from tests.commands.grade.conftest import Grade, lost
from tests.commands.grade.submission import mistakes, write_submission
from tests.support.effort import EFFORT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ALL_FORMATS = ("WORDS", "NUMBER", "COLUMNS", "LETTERS", "LINES", "DECIMAL", "ONLY_ALLOCATED", "SENTENCE", "SCREEN",
               "STATIC_BUFFER")  # fmt: skip
FORMATS = ALL_FORMATS if EFFORT > 1 else ("SCREEN",)
NEEDS_TABLE = {"rhythm", "addresses", "pfns", "flags", "live"}
EACH = {
    "NO_CLOSE": {"closes"},
    "STALE": {"live"},
    "WRONG_PFN": {"pfns"},
    "SWAPPED_FLAGS": {"flags"},
    "NO_FLAGS": {"flags"},
    "FAST": {"rhythm"},
    "SLOW": {"rhythm"},
    "SMALL_ENTRIES": {"large"},
    "NO_USAGE": {"usage"},
    "IGNORES_ERRORS": {"errors"},
    "LAST_PAGE_MISSING": {"addresses"},
    "CRASHES_AT_END": {"ends"},
    "BAD_STATUS": {"ends"},
    "ONLY_INDEX": {"addresses"},
    # The rest of these follows: nothing closes, and the table stays empty.
    "IGNORES_CTRL_C": {"closes", "ends"},
    "NO_START": {"opens", *NEEDS_TABLE} - {"rhythm"},
    "DECIMAL_ARGUMENTS": {"opens", "large", "closes", "ends", *NEEDS_TABLE},
}
TOGETHER = (
    ("NO_CLOSE", "WRONG_PFN", "NO_USAGE"),
    ("STALE", "IGNORES_ERRORS", "BAD_STATUS"),
    ("SWAPPED_FLAGS", "SLOW", "CRASHES_AT_END"),
    ("NO_FLAGS", "FAST"),
    ("LAST_PAGE_MISSING", "SMALL_ENTRIES", "IGNORES_CTRL_C"),
    ("NO_START",),
)
"""Mistakes that do not hide one another."""
GROUPS = {"+".join(names): names for names in (tuple((name,) for name in EACH) if EFFORT > 1 else TOGETHER)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, grade: Grade) -> dict[str, Result]:
    """The results of all inspectors."""
    top = tmp_path_factory.mktemp("teams")
    teams = [write_submission(top / name, inspector={"FORMAT": name}) for name in FORMATS]
    teams += [write_submission(top / group, inspector=mistakes(*names)) for group, names in GROUPS.items()]
    teams.append(write_submission(top / "STATIC", is_static=True))
    return grade(teams, Part.BUILD, Part.INSPECTOR)


@pytest.mark.parametrize("name", FORMATS)
def test_right_in_every_format(results: dict[str, Result], name: str) -> None:
    assert lost(results[name]) == {}
    assert len(results[name].findings) == sum(1 for row in ROWS if row.part in (Part.BUILD, Part.INSPECTOR))


@pytest.mark.parametrize("group", GROUPS)
def test_mistakes_lose_their_own_rows(results: dict[str, Result], group: str) -> None:
    wanted = {f"inspector_{row}" for name in GROUPS[group] for row in EACH[name]}
    assert set(lost(results[group])) == wanted, lost(results[group])


def test_a_static_program_runs_where_programs_run_inside(results: dict[str, Result], means: Means) -> None:
    if means.why_not_inside:
        assert "linked statically" in lost(results["STATIC"])["inspector_opens"]
    else:
        assert lost(results["STATIC"]) == {}


def test_what_was_seen_is_told_with_numbers(results: dict[str, Result]) -> None:
    by_mistake = {name: results[group] for group, names in GROUPS.items() for name in names}
    assert "the table held pfn 0x" in lost(by_mistake["WRONG_PFN"])["inspector_pfns"]
    assert "no shadowpt_close" in lost(by_mistake["NO_CLOSE"])["inspector_closes"]
    assert "s apart" in lost(by_mistake["SLOW"])["inspector_rhythm"]
    assert "after 'grow'" in lost(by_mistake["STALE"])["inspector_live"]
    finding = by_mistake["STALE"].find("inspector_live")
    assert finding is not None
    assert finding.again.startswith("kerneld grade --only inspector_live ")


def test_without_programs_inside_the_library_takes_the_calls(
    tmp_path_factory: pytest.TempPathFactory, grade: Grade
) -> None:
    team = write_submission(tmp_path_factory.mktemp("outside") / "stale", inspector=mistakes("STALE"))
    # All other rows of the inspector are passed.
    (result,) = grade([team], Part.BUILD, Part.INSPECTOR, stub="").values()
    assert set(lost(result)) == {"inspector_live"}
