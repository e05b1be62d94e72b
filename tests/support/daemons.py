"""A real `python -m kerneld`, as a person starts it, and its commands."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.patience import SECONDS

KERNELD = (sys.executable, "-m", "kerneld")


def environment(path: Path | str) -> dict[str, str]:
    """Return this environment with kerneld's socket at `path`."""
    return {**os.environ, "KERNELD_SOCKET": str(path)}


def kerneld(path: Path | str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run one command of kerneld's to its end."""
    return subprocess.run(
        [*KERNELD, *args], env=environment(path), capture_output=True, text=True, timeout=SECONDS, check=False
    )


def wait_until_gone(pidfd: int) -> bool:
    """Wait until the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(SECONDS * 1000))


def private_socket(directory: Path) -> Path:
    """Return the path of a socket in a directory that others may not enter from now on, as kerneld wants it."""
    directory.chmod(0o700)
    return directory / "kerneld.sock"


def start_kerneld(
    path: Path | str,
    *options: str,
    command: Sequence[str] = KERNELD,
    environ: Mapping[str, str] | None = None,
    ram: str = "64M",
    check_invariants: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground and return it once its log says that it is ready; its stderr is the rest of it.

    `command` is what runs kerneld, `options` are those of `kerneld start` besides. A daemon that does not come up fails
    the test with what it said.
    """
    words = [*command, "start", "--socket", str(path), "--ram", ram, "--log-format", "json", *options]
    if check_invariants:
        words.append("--check-invariants")
    daemon = subprocess.Popen(
        words,
        env=environment(path) if environ is None else environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert daemon.stderr is not None
    line = daemon.stderr.readline()
    if b"kerneld ready" not in line:
        daemon.kill()
        with daemon.stderr as stderr:
            raise AssertionError((line + stderr.read()).decode())
    return daemon


@contextmanager
def running_daemon(path: Path | str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a daemon and yield it; it is killed at the end."""
    daemon = start_kerneld(path, *options)
    assert daemon.stderr is not None
    try:
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGKILL)
        daemon.wait(SECONDS)
        daemon.stderr.close()
