"""The right inspector gets all points in every format, and each mistake loses its own row."""

from __future__ import annotations

import pytest

from kerneld.commands.grade.grading import Means
from kerneld.commands.grade.model import Result
from kerneld.commands.grade.rows import ROWS, Part
from tests.commands.grade.conftest import Grade, lost
from tests.commands.grade.submission import write_submission

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FORMATS = ("WORDS", "NUMBER", "COLUMNS", "LETTERS", "LINES", "DECIMAL", "ONLY_ALLOCATED", "SENTENCE", "SCREEN",
           "STATIC_BUFFER")  # fmt: skip
NEEDS_TABLE = {"rhythm", "addresses", "pfns", "flags", "live"}
MISTAKES = {
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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, grade: Grade) -> dict[str, Result]:
    """The results of all inspectors."""
    top = tmp_path_factory.mktemp("teams")
    teams = [write_submission(top / name, inspector={"FORMAT": name}) for name in FORMATS]
    teams += [write_submission(top / name, inspector={"MISTAKE": name}) for name in MISTAKES]
    teams.append(write_submission(top / "STATIC", is_static=True))
    return grade(teams, Part.BUILD, Part.INSPECTOR)


@pytest.mark.parametrize("name", FORMATS)
def test_right_in_every_format(results: dict[str, Result], name: str) -> None:
    assert lost(results[name]) == {}
    assert len(results[name].findings) == sum(1 for row in ROWS if row.part in (Part.BUILD, Part.INSPECTOR))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_loses_its_own_rows(results: dict[str, Result], name: str) -> None:
    assert set(lost(results[name])) == {f"inspector_{row}" for row in MISTAKES[name]}, lost(results[name])


def test_a_static_program_runs_where_programs_run_inside(results: dict[str, Result], means: Means) -> None:
    if means.why_not_inside:
        assert "linked statically" in lost(results["STATIC"])["inspector_opens"]
    else:
        assert lost(results["STATIC"]) == {}


def test_what_was_seen_is_told_with_numbers(results: dict[str, Result]) -> None:
    assert "the table held pfn 0x" in lost(results["WRONG_PFN"])["inspector_pfns"]
    assert "no shadowpt_close" in lost(results["NO_CLOSE"])["inspector_closes"]
    assert "s apart" in lost(results["SLOW"])["inspector_rhythm"]
    assert "after 'grow'" in lost(results["STALE"])["inspector_live"]
    finding = results["STALE"].find("inspector_live")
    assert finding is not None
    assert finding.again.startswith("kerneld grade --only inspector_live ")


def test_without_programs_inside_the_library_takes_the_calls(
    tmp_path_factory: pytest.TempPathFactory, grade: Grade
) -> None:
    top = tmp_path_factory.mktemp("outside")
    teams = [write_submission(top / "right"), write_submission(top / "stale", inspector={"MISTAKE": "STALE"})]
    found = grade(teams, Part.BUILD, Part.INSPECTOR, stub="")
    assert lost(found["right"]) == {}
    assert set(lost(found["stale"])) == {"inspector_live"}
