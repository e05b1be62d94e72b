"""Signals as something to wait for, in this very process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from inspector.interrupts import Woken, wait
from shared.stop_signals import STOP_SIGNALS, stop_signals

LONG = 50.0
"""More seconds than a test may take."""


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("signo", STOP_SIGNALS)
def test_a_signal_before_the_wait_ends_it(pair: tuple[socket.socket, socket.socket], signo: int) -> None:
    with stop_signals() as signals:
        os.kill(os.getpid(), signo)
        assert wait(signals, LONG, pair[0].fileno()) is Woken.STOP
        assert signals.received == signo


def test_a_signal_during_the_wait_ends_it(pair: tuple[socket.socket, socket.socket]) -> None:
    with stop_signals() as signals:
        # The child's signal comes while this process waits, or at the latest just before.
        with subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getppid(), 15)"]):
            assert wait(signals, LONG, pair[0].fileno()) is Woken.STOP
        assert signals.received == signal.SIGTERM


def test_the_other_end_closing_ends_it(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with stop_signals() as signals:
        assert wait(signals, LONG, pair[0].fileno()) is Woken.HANGUP


def test_the_time_ends_it(pair: tuple[socket.socket, socket.socket]) -> None:
    with stop_signals() as signals:
        assert wait(signals, 0.001, pair[0].fileno()) is Woken.TIME
        assert wait(signals, -1, pair[0].fileno()) is Woken.TIME
