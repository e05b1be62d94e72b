"""Hosts that say of accesses what v6.8 by default would not: other lists of pages, or DAMON. It is not compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.referee.host_view import has_damon, has_lru_gen
from kerneld.referee.match import Match


@pytest.mark.parametrize(
    ("text", "has"), [("0x0007\n", True), ("0x0001\n", True), ("0x0006\n", False), ("0x0000\n", False)]
)
def test_the_main_switch_decides(tmp_path: Path, text: str, has: bool) -> None:
    (tmp_path / "enabled").write_text(text)
    assert has_lru_gen(tmp_path / "enabled") is has


def test_a_host_without_the_knob_has_none(tmp_path: Path) -> None:
    assert not has_lru_gen(tmp_path / "enabled")


@pytest.mark.parametrize(("state", "has"), [("on\n", True), ("off\n", False), (None, False)])
def test_a_pid_namespace_that_hides_the_threads_of_damon(tmp_path: Path, state: str | None, has: bool) -> None:
    kdamond = tmp_path / "kdamonds" / "0"
    kdamond.mkdir(parents=True)
    if state is not None:
        (kdamond / "state").write_text(state)
    assert has_damon(tmp_path / "proc", tmp_path / "kdamonds") is has


def test_a_thread_of_damon(tmp_path: Path) -> None:
    for pid, name in (("1", "init"), ("71", "kdamond.0")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(name + "\n")
    assert has_damon(tmp_path, tmp_path / "kdamonds")
    assert not has_damon(tmp_path / "1", tmp_path / "kdamonds")


@pytest.mark.parametrize(("sees_frames", "told"), [(True, False), (False, True)])
def test_where_damon_leaves_no_trace_accesses_are_not_compared(match: Match, sees_frames: bool, told: bool) -> None:
    class Watched:
        facts = match.hosts.facts._replace(has_damon=True, has_lru_gen=False, sees_frames=sees_frames)

    described = Match(match.ours, Watched(), ()).describe()  # type: ignore[arg-type]
    assert ("Referenced is not compared, for this host's DAMON" in described) is told
