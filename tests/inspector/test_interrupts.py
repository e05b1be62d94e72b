"""Signals as something to wait for, in this very process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from inspector.interrupts import SIGNALS, Woken, interrupts

LONG = 50.0
"""More seconds than a test may take."""


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("signo", SIGNALS)
def test_a_signal_before_the_wait_ends_it(pair: tuple[socket.socket, socket.socket], signo: int) -> None:
    with interrupts() as signals:
        os.kill(os.getpid(), signo)
        assert signals.wait(LONG, pair[0].fileno()) is Woken.STOP
        assert signals.received == signo


def test_a_signal_during_the_wait_ends_it(pair: tuple[socket.socket, socket.socket]) -> None:
    with interrupts() as signals:
        # The child's signal comes while this process waits, or at the latest just before.
        with subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getppid(), 15)"]):
            assert signals.wait(LONG, pair[0].fileno()) is Woken.STOP
        assert signals.received == signal.SIGTERM


def test_the_other_end_closing_ends_it(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with interrupts() as signals:
        assert signals.wait(LONG, pair[0].fileno()) is Woken.HANGUP


def test_the_time_ends_it(pair: tuple[socket.socket, socket.socket]) -> None:
    with interrupts() as signals:
        assert signals.wait(0.001, pair[0].fileno()) is Woken.TIME
        assert signals.wait(-1, pair[0].fileno()) is Woken.TIME


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(signo) for signo in SIGNALS]
    with interrupts():
        assert [signal.getsignal(signo) for signo in SIGNALS] != before
    assert [signal.getsignal(signo) for signo in SIGNALS] == before


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = """
import os, signal
from inspector.interrupts import interrupts
with interrupts():
    while True:
        os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_the_two_of_timeout_are_one() -> None:
    program = """
import os, signal
from inspector.interrupts import interrupts
with interrupts():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (7, b"")
