"""Starts a keeper: a process that changes a setting of the host, and restores it when the run's end of a pipe
closes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

READY = "ready"


@contextlib.contextmanager
def keeper(module: str, *args: str) -> Iterator[str]:
    """Run a module of this package as a program. Yield its first line: READY, or the reason of a failure.

    It ends when its standard input ends, and is waited for. It does not get a Ctrl+C.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.{module}", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            # A keeper that still waits for its turn ends. A keeper that has begun ignores the signal, and restores all.
            process.send_signal(signal.SIGALRM)
            process.wait()


def keep() -> None:
    """In the keeper: print that it has begun, and wait for the end of standard input."""
    print(READY, flush=True)
    sys.stdin.buffer.read()
