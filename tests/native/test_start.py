"""The usual start of a program does without the library for command lines; all others have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kerneld.commands.exec.build_stub import ensure_stub
from kerneld.commands.exec.quick import _parse, run_quickly
from tests.native.inside import End, Inside


def imports(inside: Inside, *words: str) -> tuple[End, set[str]]:
    """Run `kerneld exec` with these words, and return its end and the modules that it has imported."""
    ensure_stub()  # the first use of all builds it, by a compiler
    python, *rest = inside.command([])
    command = [python, "-X", "importtime", *rest[: rest.index("exec") + 1], *words]
    end = inside.outside(command)
    return end, {line.rpartition("|")[2].strip() for line in end.errors.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("words", [["--", "/bin/echo", "hi"], ["echo", "hi"], ["--env", "A=b", "--", "echo", "hi"]])
def test_the_usual_start_imports_no_library_for_command_lines(inside: Inside, words: list[str]) -> None:
    end, modules = imports(inside, *words)
    assert (end.status, end.output) == (0, "hi\n")
    assert "kerneld.commands.exec.quick" in modules
    assert not modules & {"click", "socket", "subprocess", "shared.client.connection"}


@pytest.mark.parametrize("words", [["--env=A=b", "--", "echo", "hi"], ["--abi", "f23", "echo", "hi"]])
def test_other_options_go_by_the_command_line(inside: Inside, words: list[str]) -> None:
    end, modules = imports(inside, *words)
    assert (end.status, end.output) == (0, "hi\n")
    assert "click" in modules


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("true", ("", {}, ["true"])),
        ("-- true -x", ("", {}, ["true", "-x"])),
        ("--socket /s --env A=b --env C=d=e -- true -x no", ("/s", {"A": "b", "C": "d=e"}, ["true", "-x", "no"])),
        ("--env A= true", ("", {"A": ""}, ["true"])),
        ("--env A true", ("", {}, [])),
        ("--env =b true", ("", {}, [])),
        ("--help", ("", {}, [])),
        ("--abi f23 true", ("", {}, [])),
        ("--socket /s", ("", {}, [])),
        ("--socket", ("", {}, [])),
        ("--", ("", {}, [])),
        ("", ("", {}, [])),
        ("-- -x", ("", {}, ["-x"])),
    ],
)  # fmt: skip
def test_what_is_read_quickly(words: str, expected: tuple[str, dict[str, str], list[str]]) -> None:
    path, variables, program = _parse(words.split())
    assert (path if program else "", variables if program else {}, program) == expected


def test_without_a_daemon_or_a_program_nothing_is_done(tmp_path: Path) -> None:
    before = dict(os.environ)
    run_quickly(["--socket", str(tmp_path / "none"), "--", "true"])
    run_quickly(["--socket", str(tmp_path / "none"), "--", "no such program"])
    run_quickly(["--help"])
    assert dict(os.environ) == before
