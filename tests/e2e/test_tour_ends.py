"""Every way in which the target's tour ends: a signal, the end of input, the end of kerneld, SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tour import ROOT, press_enter, read_past, read_to_prompt, running


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["demand", "fork"])
def test_a_signal_ends_the_tour_as_that_signal(name: str, signo: signal.Signals, tour_socket: Path) -> None:
    with running(["target", "--step", "--scenario", name], tour_socket) as target:
        read_to_prompt(target)
        # In the middle of the fork scenario there is a child too.
        for _press in range(4):
            press_enter(target)
        children = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
        assert len(children) == (name == "fork")
        target.send_signal(signo)
        _out, err = target.communicate()
    assert target.returncode == -signo
    assert err == f"target: ended by {signo.name}\n"
    assert not any(Path("/proc", child).exists() for child in children)


def test_sigterm_ends_a_tour_that_waits_for_time_to_pass(tour_socket: Path) -> None:
    with running(["target", "--delay", "1000"], tour_socket) as target:
        read_past(target, "  Watch ")
        target.terminate()
        _out, err = target.communicate()
    assert (target.returncode, err) == (-signal.SIGTERM, "target: ended by SIGTERM\n")


def test_a_loop_goes_on_until_a_signal(tour_socket: Path) -> None:
    with running(["target", "--loop", "--delay", "0"], tour_socket) as target:
        for _round in range(3):
            read_past(target, "== 1/")
        target.send_signal(signal.SIGINT)
        _out, err = target.communicate()
    assert (target.returncode, err) == (-signal.SIGINT, "target: ended by SIGINT\n")


def test_the_end_of_input_ends_the_tour(tour_socket: Path) -> None:
    with running(["target", "--step"], tour_socket) as target:
        _out, err = target.communicate("\n\n")
    assert (target.returncode, err) == (0, "")


@pytest.mark.parametrize("arguments", [["--step"], ["--delay", "1000"]])
def test_the_end_of_kerneld_ends_the_tour_at_once(arguments: list[str], own_tour_socket: Path) -> None:
    with running(["target", *arguments], own_tour_socket) as target:
        read_past(target, "  Watch ")
        stop = subprocess.run(
            [sys.executable, "-P", "-m", "kerneld", "stop", "--socket", str(own_tour_socket)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )
        assert stop.returncode == 0
        # Input that stays open: it is kerneld's end that is noticed.
        assert target.wait() == 4
        assert target.stderr is not None
        assert len(target.stderr.read().splitlines()) == 1


@pytest.mark.parametrize(("name", "left"), [("hole", 0), ("file-shared", 1)])
def test_a_killed_tour_leaves_a_directory_only_while_it_has_a_file(
    name: str, left: int, tour_socket: Path, tmp_path: Path
) -> None:
    with running(["target", "--step", "--scenario", name], tour_socket, TMPDIR=str(tmp_path)) as target:
        read_to_prompt(target)
        press_enter(target)
        assert len(list(tmp_path.iterdir())) == left
        press_enter(target)
