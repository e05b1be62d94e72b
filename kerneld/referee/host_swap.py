"""Gives the host a swap file for the time of a run. A separate process keeps it (`swap_keeper`)."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from kerneld.referee.errors import HostError
from kerneld.referee.keeper import READY, keeper
from kerneld.referee.outcome import PM_SWAP
from kerneld.referee.rights import is_host_superuser
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE

SWAP_BYTES = 256 << 20
"""Much more than a program needs, because the kernel gives up slots early when a swap file is half full."""


@contextlib.contextmanager
def host_swap(folder: Path) -> Iterator[None]:
    """Give the host a swap file in `folder`. Raises HostError with the reason if that is not possible."""
    if not is_host_superuser():
        raise HostError("the swap mode needs root: only root may give the host a swap file")
    with keeper("swap_keeper", str(folder / "swap"), str(SWAP_BYTES)) as answer:
        if answer != READY:
            raise HostError(f"no swap: {answer or 'its keeper has died'}")
        if not _is_swapped_out():
            raise HostError("no swap: what is paged out stays in memory here (a limit of the control group?)")
        yield


def _is_swapped_out() -> bool:
    """Return whether a page that is paged out is in the swap file at once, and not in memory any more."""
    with mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[:1] = b"x"
        page.madvise(Madv.PAGEOUT)
        byte = ctypes.c_char.from_buffer(page)
        vaddr = ctypes.addressof(byte)
        del byte  # This reference would keep the mapping from being closed.
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            word = int.from_bytes(os.pread(pagemap.fileno(), 8, vaddr // PAGE_SIZE * 8), sys.byteorder)
    return word & PM_SWAP != 0
