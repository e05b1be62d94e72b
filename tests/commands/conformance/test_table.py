"""The table of checks, the command that prints and exports it, and the header that the kit is made with."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from kerneld.commands.conformance.kit import Check, kit_files
from tests.commands.conformance.kit_program import make, program, run_kit
from tests.support import daemons


def test_every_check_is_described_whole(checks: list[Check]) -> None:
    assert len(checks) >= 80
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        texts = [getattr(check, field.name) for field in fields(check) if field.type == "str"]
        assert all(text and text != "(null)" and "\n" not in text for text in texts), check
        assert check.semesters, check
        assert (check.points == 0) == check.is_extra, check


def test_every_c_file_of_checks_is_in_the_table(checks: list[Check]) -> None:
    defined = {
        line.removeprefix("CHECK(").split(",")[0]
        for path in kit_files()
        if path.name.startswith("check_")
        for line in path.read_text().splitlines()
        if line.startswith("CHECK(")
    }
    assert defined == {check.name for check in checks}


def test_the_command_lists_for_people_and_for_programs(tmp_path: Path, checks: list[Check]) -> None:
    for_people = daemons.kerneld(tmp_path, "conformance", "--list").stdout
    for_programs = json.loads(daemons.kerneld(tmp_path, "conformance", "--list", "--json").stdout)
    assert [line.split()[1] for line in for_people.splitlines()[:-1]] == [check.name for check in checks]
    assert for_people.splitlines()[-1].split()[0] == str(sum(check.points for check in checks))
    assert [row["name"] for row in for_programs] == [check.name for check in checks]


def test_the_export_is_the_kit(tmp_path: Path) -> None:
    done = daemons.kerneld(tmp_path, "conformance", "--export", str(tmp_path / "kit"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "kit").iterdir()} == {path.name for path in kit_files()}


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = daemons.kerneld(tmp_path, "conformance", "--export", str(tmp_path / "file"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "cannot write" in done.stderr


def test_the_command_without_an_option_is_wrong_usage(tmp_path: Path) -> None:
    assert daemons.kerneld(tmp_path, "conformance").returncode == 2
    assert daemons.kerneld(tmp_path, "conformance", "--json").returncode == 2


def test_a_check_that_does_not_exist_is_named(kits: dict[str, Path]) -> None:
    done = run_kit([str(kits["f24"])], "--only", "open_works,open_wroks")
    assert done.status == 2
    assert "there is no check 'open_wroks'" in done.output
    assert "'open_works'" not in done.output


def test_a_header_that_does_not_compile_is_no_failed_make(tmp_path: Path) -> None:
    header = tmp_path / "include" / "linux" / "shadowpt.h"
    header.parent.mkdir(parents=True)
    header.write_text("struct shadow_pte { unsigned long vaddr };\n")
    done = make(tmp_path / "kit", tmp_path / "include")
    assert done.returncode == 0, done.stderr
    assert "error" in done.stdout
    assert program(tmp_path / "kit").exists()
