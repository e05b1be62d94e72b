"""What the host swaps to is the whole machine's: who gives it a swap file is alone with it, the other runs share."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import signal
from collections.abc import Iterator
from pathlib import Path

SWAPS = Path("/proc/swaps")
_GATE = Path("/proc/sys/vm/page-cluster")
"""Locked by who waits to be alone: who comes later waits behind it. Both files are there on every host."""
_WAIT_SECONDS = 60
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def host_has_swap() -> bool:
    """Tell whether the host has something to swap to now."""
    return len(SWAPS.read_text().splitlines()) > 1


@contextlib.contextmanager
def shared_swap() -> Iterator[None]:
    """Keep what the host swaps to as it is; waits until who is changing it has put it back."""
    with SWAPS.open("rb") as swaps:
        with _GATE.open("rb") as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
            fcntl.flock(swaps, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def own_swap() -> Iterator[bool]:
    """Be alone with what the host swaps to; yields whether that could be had in a minute, while the parent lived.

    For a process that does nothing else: it takes SIGALRM.
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
