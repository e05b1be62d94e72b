"""The C program of the demonstration: where it cannot be shown, a line says why, and nothing fails."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from target import demo, demo_inside
from target.demo_program import DemoError, Program


def test_without_a_compiler_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with ExitStack() as programs:
        demo.Demo(tmp_path, programs)._show_inside()
    assert "There is no C compiler here." in capsys.readouterr().out


def test_a_compiler_that_fails_ends_the_demonstration(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(DemoError, match=r"cannot compile the program: no"):
        demo_inside.compile_program(str(compiler), tmp_path)


def test_the_words_of_kerneld_are_the_reason() -> None:
    program = Program("it", [sys.executable, "-c", "print('kerneld: no seccomp')"], os.environ)
    line = program.read_line()
    assert demo_inside.why_not(program, line) == "kerneld: no seccomp"
    assert demo_inside.why_not(program, program.read_line()) == "it has said nothing"
    assert demo_inside.why_not(program, "mapped") == ""
    program.wait()
