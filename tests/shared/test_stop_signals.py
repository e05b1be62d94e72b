"""The signals that ask for the end, as something to wait for: one rule for the daemon, the inspector and a trace."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

from shared.stop_signals import STOP_SIGNALS, stop_signals

LONG = 50.0
"""More seconds than a test may take."""


@pytest.mark.parametrize("signo", STOP_SIGNALS)
def test_the_first_is_noted_and_makes_the_descriptor_readable(signo: signal.Signals) -> None:
    with stop_signals() as signals:
        assert signals.received is None
        assert select.select([signals], [], [], 0)[0] == []
        os.kill(os.getpid(), signo)
        assert select.select([signals], [], [], LONG)[0] == [signals]
        assert signals.received == signo


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(signo) for signo in STOP_SIGNALS]
    with stop_signals():
        assert [signal.getsignal(signo) for signo in STOP_SIGNALS] != before
    assert [signal.getsignal(signo) for signo in STOP_SIGNALS] == before


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = """
import os, signal
from shared.stop_signals import stop_signals
with stop_signals():
    while True:
        os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_the_two_of_timeout_are_one() -> None:
    program = """
import os, signal
from shared.stop_signals import stop_signals
with stop_signals():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (7, b"")


def test_a_daemon_takes_no_notice_of_later_ones() -> None:
    program = """
import os, signal, time
from shared.stop_signals import GRACE_SECONDS, stop_signals
with stop_signals(ends_at_second=False) as signals:
    end = time.monotonic() + 2 * GRACE_SECONDS
    while time.monotonic() < end:
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(signals.received)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (signal.SIGTERM, b"")


def test_a_forked_child_dies_of_it() -> None:
    with stop_signals() as signals:
        pid = os.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert signals.received is None
