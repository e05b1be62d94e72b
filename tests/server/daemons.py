"""A real `python -m kerneld`, as a person starts it, and its commands."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KERNELD = (sys.executable, "-m", "kerneld")
WAIT_SECONDS = 30.0


def environment(path: Path | str) -> dict[str, str]:
    """Return this environment with kerneld's socket at `path`."""
    return {**os.environ, "KERNELD_SOCKET": str(path)}


def kerneld(path: Path | str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run one command of kerneld's to its end."""
    return subprocess.run(
        [*KERNELD, *args], env=environment(path), capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )


def wait_until_gone(pidfd: int) -> bool:
    """Wait until the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(WAIT_SECONDS * 1000))


def private_socket(directory: Path) -> Path:
    """Return the path of a socket in a directory that others may not enter from now on, as kerneld wants it."""
    directory.chmod(0o700)
    return directory / "kerneld.sock"


@contextmanager
def running_daemon(path: Path | str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a daemon in the foreground and yield it once its log says that it is ready; it is killed at the end."""
    command = [*KERNELD, "start", "--ram", "64M", "--check-invariants", "--log-format", "json", *args]
    daemon = subprocess.Popen(command, env=environment(path), stderr=subprocess.PIPE)
    assert daemon.stderr is not None
    try:
        line = daemon.stderr.readline()
        assert b"kerneld ready" in line, line + daemon.stderr.read()
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGKILL)
        daemon.wait(WAIT_SECONDS)
        daemon.stderr.close()
