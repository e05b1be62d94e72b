"""The checklist, and what is written: results.json, JUnit, pages, the bundle."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kerneld.commands.grade.bundle import write_bundle
from kerneld.commands.grade.checklist import Checklist, ChecklistError, checklist_text, read_checklist
from kerneld.commands.grade.grading import team_names
from kerneld.commands.grade.model import Result, failed, passed, skipped
from kerneld.commands.grade.report import gradescope, junit, page, table
from kerneld.commands.grade.report.score import score
from kerneld.commands.grade.rows import ROWS
from tests.commands.grade.submission import write_submission

CHECKLIST = Checklist.default()
RESULT = Result(
    "team<7>", "teams/team7",
    (passed("build", "both"), failed("inspector_pfns", "<b>&\x00\x1b[31m", "kerneld grade --only inspector_pfns team7"),
     skipped("target_cow", "not here")),
    ("no network",), 12.4, "printed <script>\x07",
)  # fmt: skip


def test_a_row_that_was_skipped_has_no_points() -> None:
    assert score(RESULT, CHECKLIST) == (3, 6)


def test_results_json_has_gradescopes_form() -> None:
    form = json.loads(gradescope.results_text([RESULT], CHECKLIST))
    assert (form["score"], form["execution_time"]) == (3, 12)
    assert [(one["score"], one["max_score"], one["status"]) for one in form["tests"]] == [
        (3, 3, "passed"), (0, 3, "failed"), (0, 0, "passed")
    ]  # fmt: skip
    assert "kerneld grade --only inspector_pfns team7" in form["tests"][1]["output"]
    assert "1 rows could not be graded" in form["output"]
    several = json.loads(gradescope.results_text([RESULT, Result("other", "", ())], CHECKLIST))
    assert sorted(several) == ["other", "team<7>"]


def test_junit_is_xml_whatever_was_printed() -> None:
    (suite,) = ElementTree.fromstring(junit.junit_text([RESULT], CHECKLIST))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [case.get("name") for case in suite.iter("testcase")] == ["build", "inspector_pfns", "target_cow"]


class Tags(HTMLParser):
    """Collects tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_says_expected_seen_and_the_command_and_runs_nothing() -> None:
    written = page.pages([RESULT], CHECKLIST)
    assert sorted(written) == ["index.html", "team-team_7_.html"]
    parsed = Tags(written["team-team_7_.html"])
    assert "script" not in parsed.tags
    assert "b&" not in parsed.tags
    for words in ("expected", "seen", "kerneld grade --only inspector_pfns team7", "3 of 6 points", "no network"):
        assert words in parsed.text
    assert "team-team_7_.html" in written["index.html"]


def test_the_table_shows_what_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    table.Shower(CHECKLIST, is_detailed=False).add(RESULT)
    shown = capsys.readouterr().out
    assert "3 of 6 points" in shown
    assert "seen:     <b>&" in shown
    assert "\x1b" not in shown
    assert "build" not in shown
    assert "2 submissions" in table.totals([RESULT, RESULT], CHECKLIST)


def test_a_checklist_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "checklist.toml").write_text(checklist_text(CHECKLIST))
    for path in (tmp_path, tmp_path / "checklist.toml"):
        read = read_checklist(path)
        assert dict(read.points) == dict(CHECKLIST.points)
        assert read.limits == CHECKLIST.limits
        assert sorted(read.functions) == sorted(CHECKLIST.functions)
    assert all(row.title in checklist_text(CHECKLIST) for row in ROWS)


def test_points_and_limits_are_edited(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[points]\nbuild = 2.5\nreadme = 0\n[limits]\nmemory_mib = 64\n[part5]\nfunctions = ["do_exit"]\n')
    read = read_checklist(file)
    assert (dict(read.points), read.limits.memory_mib, read.functions) == ({"build": 2.5}, 64, ("do_exit",))


@pytest.mark.parametrize(
    "text",
    ["[points]\nno_such_row = 1", "[points]\nbuild = -1", "[points]\nbuild = true", "[limits]\nmemory_mib = 0.5",
     "[limits]\nmemory_mib = 0", "points = 3", "[part5]\nfunctions = ['a b']", "[other]", "]", "[points]\nbuild = 'x'"],
)  # fmt: skip
def test_a_bad_checklist_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ChecklistError, match=r"bad\.toml"):
        read_checklist(file)


def test_teams_of_the_same_name_are_told_apart() -> None:
    assert team_names([Path("a/x"), Path("b/x"), Path("c/y")]) == ["x", "x-2", "y"]


def kerneld(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "kerneld", *words], capture_output=True, text=True, timeout=300, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_init_grade_and_the_files(tmp_path: Path) -> None:
    team = write_submission(tmp_path / "team7")
    assert kerneld("grade", "--init", str(tmp_path / "course")).returncode == 0
    checklist = tmp_path / "course" / "checklist.toml"
    lines = [line for line in checklist.read_text().splitlines() if not line.startswith(("inspector_", "target_"))]
    checklist.write_text("\n".join("build = 41" if line == "build = 3" else line for line in lines))
    files = [str(tmp_path / name) for name in ("results.json", "junit.xml", "pages")]
    done = kerneld(
        "grade", "--checklist", str(tmp_path / "course"), "--json", files[0], "--junit", files[1], "--html", files[2],
        "--only", "build", "--only", "readme", str(team),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "team7: 42 of 42 points" in done.stdout
    assert json.loads(Path(files[0]).read_text())["score"] == 42
    assert ElementTree.parse(files[1]).getroot().tag == "testsuites"
    assert "42 of 42" in (Path(files[2]) / "team-team7.html").read_text()


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    assert kerneld("grade").returncode == 2
    assert kerneld("grade", str(tmp_path / "none")).returncode == 2
    assert kerneld("grade", "--only", "no_such_row", str(tmp_path)).returncode == 2


@pytest.mark.parametrize(("version_status", "python"), [(0, "python3"), (1, "python3.11")])
def test_an_image_with_an_old_python_gets_a_newer_one(tmp_path: Path, version_status: int, python: str) -> None:
    """Ubuntu 22.04 has Python 3.10 as python3. The programs that setup.sh calls only note what they are asked."""
    write_bundle(tmp_path / "out.zip", CHECKLIST)
    with zipfile.ZipFile(tmp_path / "out.zip") as bundle:
        setup = bundle.read("setup.sh").decode().replace("/autograder", str(tmp_path))
    for name in ("apt-get", "python3", "python3.11", "venv/bin/pip"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        status = version_status if name == "python3" else 0
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/asked\n[ "$1" != -c ] || exit {status}\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", setup], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text()
    assert f"apt-get install -y --no-install-recommends {python} {python}-venv {python}-dev\n" in asked
    assert f"{python} -m venv {tmp_path}/venv\n" in asked
    assert "pip install" in asked


def test_the_bundle_grades_as_gradescope_runs_it(tmp_path: Path) -> None:
    """Unpack the bundle, and run its command in its directories. The libraries are those of this Python."""
    write_bundle(tmp_path / "out.zip", CHECKLIST)
    source = tmp_path / "autograder" / "source"
    with zipfile.ZipFile(tmp_path / "out.zip") as bundle:
        bundle.extractall(source)
        modes = {entry.filename: entry.external_attr >> 16 & 0o777 for entry in bundle.infolist()}
    assert (modes["setup.sh"], modes["run_autograder"]) == (0o755, 0o755)
    setup = (source / "setup.sh").read_text()
    assert all(name in setup for name in ("click", "numpy", "posix_ipc", "structlog"))
    for script in ("setup.sh", "run_autograder"):
        assert subprocess.run(["bash", "-n", str(source / script)], check=False).returncode == 0
    submission = write_submission(tmp_path / "autograder" / "submission")
    text = (source / "run_autograder").read_text()
    text = text.replace("/autograder/venv/bin/python", f"{sys.executable} -P").replace(
        "/autograder", str(source.parent)
    )
    text = text.replace(str(submission), f"--only build --only references {submission}")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((source.parent / "results" / "results.json").read_text())
    assert results["score"] == 4
