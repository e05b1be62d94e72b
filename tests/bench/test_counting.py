"""Counts of instructions: read from what callgrind writes, kept in a file, and the same each time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench import counting
from bench.counting import Counted, count, find_counter, read_dumps, read_lines, store, stored
from bench.handlers import CALLS
from bench.machine import ROOT
from tests.support.effort import examples

DUMP = """# callgrind format
version: 1
desc: Trigger: {trigger}

events: Ir
summary: {total}

totals: {total}
"""


def test_dumps_have_the_names_that_the_program_gave(tmp_path: Path) -> None:
    (tmp_path / "out.1").write_text(DUMP.format(trigger="Client Request: pair", total=1234))
    (tmp_path / "out.2").write_text(DUMP.format(trigger="Client Request: fork", total=99))
    (tmp_path / "out.3").write_text(DUMP.format(trigger="Program termination", total=7))
    assert dict(read_dumps(tmp_path)) == {"pair": 1234, "fork": 99}


def test_lines_that_are_no_figure_are_passed_over() -> None:
    assert dict(read_lines("pair 12\na warning of 3 words\nfork x\n\nfork 5\n")) == {"pair": 12, "fork": 5}


def test_counts_are_kept_with_the_machine(tmp_path: Path) -> None:
    counted = Counted("a machine", "callgrind", {"pair": 2, "brk": 1})
    store(counted, tmp_path / "kept.json")
    assert stored(tmp_path / "kept.json") == counted


def test_the_kept_counts_have_every_call() -> None:
    assert stored().calls.keys() == CALLS.keys()


def test_a_machine_without_a_counter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise PermissionError("perf_event_open")

    monkeypatch.setattr(counting, "PerfCounter", forbidden)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(OSError, match="valgrind is not installed"):
        find_counter()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert find_counter() == "callgrind"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_call_takes_the_same_instructions_each_time() -> None:
    """With the counter of the processor or with valgrind; where there is neither, that is said. Once in a usual run."""
    try:
        counter = find_counter()
    except OSError:
        counter = "none"
    if counter == "none":
        assert shutil.which("valgrind") is None
        return
    counted = [count(ROOT, counter, ("read", "fork"), times=10).calls for _ in range(examples(1))]
    for call in ("read", "fork"):
        found = [calls[call] for calls in counted]
        assert min(found) > 1000
        assert max(found) <= min(found) * 1.02


def test_a_tree_that_is_no_kerneld_is_said(tmp_path: Path) -> None:
    (tmp_path / "kerneld").mkdir()
    (tmp_path / "kerneld" / "__init__.py").write_text("raise ImportError('no kernel here')")
    with pytest.raises(OSError, match="no kernel here"):
        count(tmp_path, "perf", ("read",))
