"""What the host swaps to is the whole machine's: who gives it a swap file is alone with it, the other runs share."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

SWAPS = Path("/proc/swaps")


def host_has_swap() -> bool:
    """Tell whether the host has something to swap to now."""
    return len(SWAPS.read_text().splitlines()) > 1


@contextlib.contextmanager
def locked_swap(*, alone: bool) -> Iterator[bool]:
    """Keep what the host swaps to as it is; yields whether that can be had.

    `alone` is for who changes it, and is not waited for; the others wait until it is as it was.
    """
    with SWAPS.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            yield False
        else:
            yield True
