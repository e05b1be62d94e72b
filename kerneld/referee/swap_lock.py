"""A lock for the host's swap. A run that adds a swap file holds it alone; all other runs share it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import signal
from collections.abc import Iterator
from pathlib import Path

SWAPS = Path("/proc/swaps")
_GATE = Path("/proc/sys/vm/page-cluster")
"""A run that waits to be alone locks this file, so that later runs wait behind it. Every host has both files."""
_WAIT_SECONDS = 60
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def host_has_swap() -> bool:
    """Return whether the host has swap now."""
    return len(SWAPS.read_text().splitlines()) > 1


@contextlib.contextmanager
def shared_swap() -> Iterator[None]:
    """Keep the host's swap unchanged. Wait first until another run has restored it."""
    with SWAPS.open("rb") as swaps:
        with _GATE.open("rb") as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
            fcntl.flock(swaps, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def own_swap() -> Iterator[bool]:
    """Hold the host's swap alone. Yield whether that succeeded within a minute, while the parent lived.

    It uses SIGALRM, so it is for a process that does nothing else.
    """
    with SWAPS.open("rb") as swaps:
        with _GATE.open("rb") as gate:
            signal.signal(signal.SIGALRM, _stop_waiting)
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGALRM)
            signal.alarm(_WAIT_SECONDS)
            try:
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(swaps, fcntl.LOCK_EX)
                is_ours = True
            except TimeoutError:
                is_ours = False
            finally:
                signal.alarm(0)
                _libc.prctl(_PR_SET_PDEATHSIG, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        yield is_ours


def _stop_waiting(_signo: int, _frame: object) -> None:
    raise TimeoutError
