"""What the demonstration stands on: programs that are read, waited for and killed, and the inspector's prints."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from inspector.table import Entry, diff
from inspector.view import Print, text_lines
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import Spte
from target import demo
from target.demo_inspector import Counts, LiveInspector, parse_print, pick_shown
from target.demo_inspector import Print as Seen
from target.demo_program import DemoError, Program
from target.scene import say

START = 1 << 30


def start(code: str) -> Program:
    return Program("the program", [sys.executable, "-c", code], os.environ)


def inspector_lines(before: list[Entry] | None, entries: list[Entry]) -> list[str]:
    """Return a print as the inspector writes it where the output is no terminal."""
    shown = Print(
        datetime.now().astimezone(),
        42,
        START,
        START + len(entries) * PAGE_SIZE,
        entries,
        diff(before, entries),
        before is None,
        False,
    )
    return [click.unstyle(line) for line in text_lines(shown, False)]


def test_counts_and_changes_are_those_of_the_inspectors_own_print() -> None:
    flags = Spte.VADDR_ALLOCATED | Spte.VADDR_ANONYMOUS
    before = [Entry(START, 0, 0), Entry(START + PAGE_SIZE, 0, flags), Entry(START + 2 * PAGE_SIZE, 0, 0)]
    after = [before[0], Entry(START + PAGE_SIZE, 9, flags | Spte.PTE_MAPPED), before[2]]

    first = parse_print(inspector_lines(None, before))
    second = parse_print(inspector_lines(before, after))

    assert first is not None
    assert second is not None
    assert (first.counts, first.changed) == (Counts(1, 1, 0), 0)
    assert (second.counts, second.changed) == (Counts(1, 1, 1), 1)


def test_lines_without_a_head_are_no_print() -> None:
    assert parse_print([]) is None
    assert parse_print(["inspector: kerneld does not run"]) is None


def test_of_several_prints_the_last_with_a_change_is_shown() -> None:
    quiet, loud, louder = (Seen([name], Counts(0, 0, 0), changed) for name, changed in (("q", 0), ("a", 1), ("b", 2)))

    assert pick_shown([quiet, loud, louder, quiet]) is louder
    assert pick_shown([quiet, quiet]) is quiet


def test_lines_come_as_written_and_the_end_stays_the_end() -> None:
    program = start("print('one'); print('two')")
    assert [program.read_line() for _ in range(4)] == ["one", "two", None, None]
    assert program.wait() == []


def test_enter_and_ctrl_c_reach_the_program() -> None:
    program = start(
        "import signal\n"
        "input('ready\\n')\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        "print('waits', flush=True)\n"
        "print(signal.sigwait({signal.SIGINT}) == signal.SIGINT)\n"
    )
    assert program.read_line() == "ready"
    program.press_enter()
    assert program.read_line() == "waits"
    program.interrupt()
    assert program.wait() == ["True"]


def test_a_bad_end_is_an_error_with_the_last_line() -> None:
    program = start("print('the reason'); raise SystemExit(3)")
    with pytest.raises(DemoError, match="ended with exit status 3: the reason"):
        program.wait()


def test_a_death_by_a_signal_is_an_error_that_names_it() -> None:
    program = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(DemoError, match="killed by SIGKILL"):
        program.wait()


def test_a_killed_program_is_gone() -> None:
    program = start("input()")
    program.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(program.pid, 0)


def test_an_inspector_that_fails_says_why() -> None:
    words = [sys.executable, "-c", "raise SystemExit('inspector: kerneld does not run')"]
    with pytest.raises(DemoError, match="kerneld does not run"):
        LiveInspector(words, os.environ)


def test_what_other_programs_keep_in_shared_memory_is_not_kernelds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_SHM", tmp_path)
    (tmp_path / "org.chromium.x").touch()
    (tmp_path / "kerneld-12-abc").touch()
    (tmp_path / "kerneld-123-abc").touch()
    assert demo._shm_names(123) == ["kerneld-123-abc"]


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, no_color: str, coloured: bool) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(demo.Demo, "run", lambda _self: say("words"))
    said = CliRunner().invoke(demo.cli, [], color=True).stdout
    assert ("\x1b[" in said) is coloured
