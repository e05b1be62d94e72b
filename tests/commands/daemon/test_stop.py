"""`kerneld stop`, and the signals that end the daemon."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from kerneld.commands.daemon.stop import stop_daemon
from tests.support import daemons
from tests.support.daemons import private_socket, running_daemon
from tests.support.patience import SECONDS


def test_a_daemon_is_ended(tmp_path: Path) -> None:
    path = private_socket(tmp_path)
    with running_daemon(path) as daemon:
        done = daemons.kerneld(path, "stop")
        assert (done.returncode, done.stdout) == (0, f"kerneld has ended (pid {daemon.pid})\n")
        assert daemon.wait(SECONDS) == 0
    assert not path.exists()


def test_a_hangup_that_is_ignored_when_it_starts_stays_so(tmp_path: Path) -> None:
    """`nohup kerneld`: the end of the terminal is not the daemon's."""
    path = private_socket(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running_daemon(path) as daemon:
            daemon.send_signal(signal.SIGHUP)
            assert daemons.kerneld(path, "status").returncode == 0
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(SECONDS) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_has_ended_already_needs_no_signal() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert stop_daemon(ended.pid, 0)
