"""Signals that ask a program to end: it puts away what it has first, and its parent sees the signal."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support.patience import SECONDS

HEAD = """
import os, signal
from shared.interrupts import Interrupted, ending_by_signals
def ask(signo):
    os.kill(os.getpid(), signo)
"""


def run(program: str) -> tuple[int, str, str]:
    """Run a program; return its status and what it said."""
    done = subprocess.run(
        [sys.executable, "-u", "-c", HEAD + program],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_things_are_put_away_and_the_signal_ends_it(signo: signal.Signals) -> None:
    program = f"""
with ending_by_signals("it"):
    try:
        ask({int(signo)})
    finally:
        ask({int(signo)})
        print("put away")
"""
    assert run(program) == (-signo, "put away\n", f"it: ended by {signo.name}\n")


def test_what_goes_wrong_meanwhile_is_not_said() -> None:
    program = """
with ending_by_signals("it"):
    try:
        ask(signal.SIGINT)
    finally:
        raise BrokenPipeError
"""
    assert run(program) == (-signal.SIGINT, "", "it: ended by SIGINT\n")


def test_whoever_goes_on_asking_is_heard() -> None:
    program = """
with ending_by_signals("it"):
    try:
        ask(signal.SIGINT)
    finally:
        while True:
            ask(signal.SIGTERM)
"""
    assert run(program) == (-signal.SIGTERM, "", "")


def test_other_errors_go_through() -> None:
    status, _out, err = run('with ending_by_signals("it"): raise KeyError("mine")')
    assert (status, err.splitlines()[-1]) == (1, "KeyError: 'mine'")


def test_an_ignored_hangup_stays_so() -> None:
    program = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with ending_by_signals("it"):
    ask(signal.SIGHUP)
"""
    assert run(program) == (0, "", "")
