"""The target's tour, with a real kerneld: what each step does. `test_tour_ends.py` has how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shared.uapi.page import PAGE_SIZE
from target.scenarios import TOUR
from target.scenarios.huge import START as HUGE_START
from tests.support.patience import SECONDS
from tests.support.tour import (
    ROOT,
    WINDOW,
    Table,
    free_frames,
    press_enter,
    read_to_prompt,
    run_target,
    running,
)


def test_the_whole_tour_ends_by_itself_and_gives_all_back(own_tour_socket: Path) -> None:
    run_target(own_tour_socket, "--delay", "0", "--scenario", "exec")
    before = free_frames(own_tour_socket)

    result = run_target(own_tour_socket, "--delay", "0")

    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[2].rstrip(":") for line in result.stdout.splitlines() if line.startswith("== ")] == [
        scenario.name for scenario in TOUR
    ]
    # The page cache keeps what it has read of files that are gone: a second tour takes as much as the first gives back.
    after = free_frames(own_tour_socket)
    assert run_target(own_tour_socket, "--delay", "0").returncode == 0
    assert free_frames(own_tour_socket) == after <= before


@pytest.mark.parametrize("scenario", TOUR, ids=lambda scenario: scenario.name)
def test_each_scenario_can_be_played_alone(scenario: object, tour_socket: Path) -> None:
    name = getattr(scenario, "name", "")
    result = run_target(tour_socket, "--delay", "0", "--scenario", name)

    assert (result.returncode, result.stderr) == (0, "")


def test_a_write_through_a_null_pointer_is_a_real_death(own_tour_socket: Path) -> None:
    """A shell shows 139; the memory is given back, and the program's own directory is gone."""
    run_target(own_tour_socket, "--delay", "0", "--scenario", "null-write")
    before = free_frames(own_tour_socket)

    result = run_target(own_tour_socket, "--delay", "0", "--scenario", "null-write")

    assert (result.returncode, result.stderr) == (-signal.SIGSEGV, "")
    assert free_frames(own_tour_socket) == before
    assert not list(own_tour_socket.parent.glob("kerneld-target-*"))
    shell = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -P -m target --delay 0 --scenario null-write >&2; echo $?"],
        env={**os.environ, "KERNELD_SOCKET": str(own_tour_socket), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == "139\n"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("demand", [(8, 8, 0), (8, 8, 1), (8, 8, 3), (8, 8, 3), (0, 0, 0)]),
        ("hole", [(8, 8, 8), (6, 6, 6), (8, 8, 6), (0, 0, 0)]),
        ("file-shared", [(4, 0, 0), (4, 0, None), (4, 0, None), (4, 0, None), (0, 0, 0)]),
        ("file-private", [(4, 0, 0), (4, 0, None), (4, 0, None), (0, 0, 0)]),
        ("protect", [(4, 4, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4), (0, 0, 0)]),
        ("exec", [(4, 4, 4), (0, 0, 0)]),
    ],
)
def test_the_table_changes_with_each_step(
    name: str, counts: list[tuple[int, int, int | None]], tour_socket: Path
) -> None:
    with running(["target", "--step", "--scenario", name], tour_socket) as target:
        read_to_prompt(target)
        with Table(tour_socket, target.pid) as table:
            assert table.counts() == (0, 0, 0)
            press_enter(target)
            seen = []
            for _step in counts:
                press_enter(target)
                seen.append(table.counts())
            for have, want in zip(seen, counts, strict=True):
                assert have[:2] == want[:2]
                assert want[2] in (None, have[2])
                assert want[2] is not None or have[2] >= 1


def test_pages_that_are_only_read_share_the_zero_page(tour_socket: Path) -> None:
    with running(["target", "--step", "--scenario", "demand"], tour_socket) as target:
        read_to_prompt(target)
        with Table(tour_socket, target.pid) as table:
            for _press in range(4):
                press_enter(target)
            written, _unused, first, second = [pfn for pfn, _flags in table.read()[:4]]
            assert first == second not in (0, written)
            press_enter(target)
            assert table.read()[2][0] not in (first, written)
            assert table.read()[3][0] == second


def test_fork_copies_the_page_that_the_parent_writes_while_it_is_shared(tour_socket: Path) -> None:
    with running(["target", "--step", "--scenario", "fork"], tour_socket) as target:
        read_to_prompt(target)
        with Table(tour_socket, target.pid) as table:
            press_enter(target)
            press_enter(target)
            frames = [pfn for pfn, _flags in table.read()[:4]]
            # fork, time to watch the child, the child's write, the parent's write to the page that the child left.
            for _press in range(4):
                press_enter(target)
                assert [pfn for pfn, _flags in table.read()[:4]] == frames
            press_enter(target)
            after = [pfn for pfn, _flags in table.read()[:4]]
            assert after[1] not in frames
            assert after[:1] + after[2:] == frames[:1] + frames[2:]


def test_the_table_is_empty_and_stays_when_the_target_exits(tour_socket: Path) -> None:
    with running(["target", "--step", "--scenario", "exit"], tour_socket) as target:
        read_to_prompt(target)
        with Table(tour_socket, target.pid) as table:
            press_enter(target)
            press_enter(target)
            assert table.counts() == (4, 4, 4)
            press_enter(target)
            assert target.wait() == 0
            assert table.counts() == (0, 0, 0)


def test_the_exact_command_that_is_printed_starts_an_inspector(tour_socket: Path) -> None:
    with running(["target", "--step", "--scenario", "demand"], tour_socket) as target:
        command = read_to_prompt(target)[-1].strip()
        assert f" {target.pid} {WINDOW.start:#x} {WINDOW.start + WINDOW.pages * PAGE_SIZE:#x}" in command
        environment = {name: value for name, value in os.environ.items() if name != "KERNELD_SOCKET"}
        result = subprocess.run(
            f"{command} --once --json", shell=True, env=environment, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("{")


def prints_from_now_on(inspector: subprocess.Popen[str], shown: list[dict[str, Any]]) -> None:
    """Read the prints into `shown`, up to one that began after this call."""
    assert inspector.stdout is not None
    now = datetime.now().astimezone()
    for line in inspector.stdout:
        shown.append(json.loads(line))
        if datetime.fromisoformat(shown[-1]["time"]) > now:
            return


def test_with_wait_one_command_follows_the_whole_tour(own_tour_socket: Path) -> None:
    """The command that is printed, as it is, shows heap, stack, child, execve, huge pages, swap and the end."""
    with running(["target", "--wait", "--step"], own_tour_socket) as target:
        assert target.stdout is not None
        before: list[str] = []
        while not before or "Waiting for an inspector" not in before[-1]:
            before.append(target.stdout.readline())
            assert before[-1], before
        assert not any(line.startswith("  1. ") for line in before)
        (command,) = (line.strip() for line in before if "inspector --follow" in line)
        environment = {name: value for name, value in os.environ.items() if name != "KERNELD_SOCKET"}
        words = f"exec env {command} --interval 0.05 --json"
        shown: list[dict[str, Any]] = []
        with subprocess.Popen(
            words, shell=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as inspector:
            rest = read_to_prompt(target)
            assert rest[0] == f"  Process {inspector.pid} has opened a table of this process."
            while not any("exit: the address space" in line for line in rest[-3:]):
                prints_from_now_on(inspector, shown)
                rest += press_enter(target)
            prints_from_now_on(inspector, shown)
            press_enter(target)
            assert target.wait(SECONDS) == 0
            shown += map(json.loads, inspector.communicate(timeout=SECONDS)[0].splitlines())
    assert inspector.returncode == 0
    assert not any("./inspector" in line and "--also" not in line for line in rest)
    moves = [one for one in shown if "moved" in one]
    causes = [one["moved"].partition("@")[0].partition(" ")[0] for one in moves]
    assert {"mmap", "store/fault", "fork", "execve"} <= set(causes)
    assert "" not in causes
    assert {WINDOW.start, HUGE_START} < {one["start"] for one in shown}
    assert len({one["pid"] for one in shown}) >= 2
    # The heap, the stack and the image: each at its place, and in this order.
    before_execve, image = moves[: causes.index("execve")], moves[causes.index("execve") + 1]
    heap = next(at for at, one in enumerate(before_execve) if one["start"] >> 32 == 0x5555)
    assert any(one["moved"].startswith("store/fault@0x7ff") for one in before_execve[heap:])
    assert image["start"] >> 32 == 0x5555
    assert shown[-1]["exited"]


def test_pages_that_reclaim_takes_come_back(own_tour_socket: Path) -> None:
    with running(["target", "--step", "--scenario", "swap"], own_tour_socket) as target:
        read_to_prompt(target)
        with Table(own_tour_socket, target.pid) as table:
            press_enter(target)
            press_enter(target)
            assert table.counts() == (4, 4, 4)
            press_enter(target)
            assert table.counts() == (4, 4, 2)
            press_enter(target)
            assert table.counts() == (4, 4, 3)


def test_the_oom_killer_takes_the_child_and_the_tour_goes_on(own_tour_socket: Path) -> None:
    with running(["target", "--delay", "0", "--scenario", "oom"], own_tour_socket) as target:
        out, err = target.communicate(timeout=SECONDS)
    assert (target.returncode, err) == (0, "")
    assert "was killed by signal 9 (SIGKILL)" in out
    assert "Memory reads parent." in out
