"""A process that keeps something of the host as a run wants it, as long as the run holds the other end of a pipe."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

READY = "ready"


@contextlib.contextmanager
def keeper(module: str, *args: str) -> Iterator[str]:
    """Run a module of this package as a program and yield the line that it says when it has begun, READY or why not.

    It ends when its standard input does, and is waited for. A Ctrl+C is not for it.
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
            # Who still waits for its turn need not; who has begun ignores it, and puts all back.
            process.send_signal(signal.SIGALRM)
            process.wait()


def keep() -> None:
    """In the keeper: say that it has begun, and wait for the end."""
    print(READY, flush=True)
    sys.stdin.buffer.read()
