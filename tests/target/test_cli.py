"""The command line: selection of scenarios, and errors as one line and a status, as a real process gives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from target.cli import choose
from target.scenarios import ALL, TOUR

DOCS = Path(__file__).resolve().parents[2] / "docs"


def run_target(*arguments: str, socket: str = "/nonexistent/kerneld.sock") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "target", *arguments],
        env={**os.environ, "KERNELD_SOCKET": socket},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_version() -> None:
    done = run_target("--version")
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "target", "")


def test_all_are_chosen_in_their_order() -> None:
    assert choose([], loop=False) == list(TOUR)


def test_names_are_played_in_the_order_given() -> None:
    assert [scenario.name for scenario in choose(["fork", "heap", "fork"], loop=False)] == ["fork", "heap", "fork"]


def test_a_loop_leaves_out_the_exit() -> None:
    assert [scenario.name for scenario in choose([], loop=True)] == [s.name for s in TOUR if s.name != "exit"]


@pytest.mark.parametrize(("names", "loop"), [(["exit", "heap"], False), (["heap", "exit"], True)])
def test_nothing_follows_an_exit(names: list[str], loop: bool) -> None:
    with pytest.raises(click.UsageError):
        choose(names, loop)


def test_an_exit_may_be_the_last() -> None:
    assert [scenario.name for scenario in choose(["heap", "exit"], loop=False)] == ["heap", "exit"]


def test_the_answer_is_printed_on_demand_and_stands_in_no_page_of_the_docs() -> None:
    answer = run_target("--answers")
    assert answer.returncode == 0
    # The functions that only the answer has: what the tracer printed.
    for name in ("force_sig_fault_to_task", "exit_to_user_mode_loop", "dequeue_task"):
        assert name in answer.stdout
        pages = [page for page in DOCS.glob("*.md") if name in page.read_text()]
        assert pages == []


def test_list_names_every_scenario_without_a_daemon() -> None:
    result = run_target("--list")

    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [scenario.name for scenario in ALL]


def test_help_has_examples() -> None:
    result = run_target("--help")

    assert result.returncode == 0
    assert "Examples:" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scenario", "nonesuch"),
        ("--delay", "-1"),
        ("--delay", "soon"),
        ("--delay", "nan"),
        ("--delay", "inf"),
        ("--socket", ""),
        ("--step", "--delay", "1"),
        ("--nonesuch",),
        ("extra",),
        ("--scenario", "exit", "--scenario", "heap"),
        ("--scenario", "null-write", "--loop"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: tuple[str, ...]) -> None:
    result = run_target(*arguments)

    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("target: ")
    assert result.stderr.endswith(" (target --help tells more)\n")


def test_no_daemon_is_one_line_and_status_3(tmp_path: Path) -> None:
    path = str(tmp_path / "kerneld.sock")
    result = run_target(socket=path)

    assert result.returncode == 3
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert path in result.stderr
