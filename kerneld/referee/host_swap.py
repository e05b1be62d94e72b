"""Swap for the host, as long as a run lasts; who keeps it is a process of its own (`swap_keeper`)."""

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
"""Much more than a program needs: a swap file that is half full gives slots up early."""


@contextlib.contextmanager
def host_swap(folder: Path) -> Iterator[None]:
    """Give the host a swap file in `folder`. Raises HostError, in words, where it cannot have one."""
    if not is_host_superuser():
        raise HostError("the swap mode needs root: only root may give the host a swap file")
    with keeper("swap_keeper", str(folder / "swap"), str(SWAP_BYTES)) as answer:
        if answer != READY:
            raise HostError(f"no swap: {answer or 'its keeper has died'}")
        if not _is_swapped_out():
            raise HostError("no swap: what is paged out stays in memory here (a limit of the control group?)")
        yield


def _is_swapped_out() -> bool:
    """Tell whether a page of ours that is paged out is in the swap file at once, and nowhere else."""
    with mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[:1] = b"x"
        page.madvise(Madv.PAGEOUT)
        byte = ctypes.c_char.from_buffer(page)
        vaddr = ctypes.addressof(byte)
        del byte  # It keeps the mapping from being closed.
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            word = int.from_bytes(os.pread(pagemap.fileno(), 8, vaddr // PAGE_SIZE * 8), sys.byteorder)
    return word & PM_SWAP != 0
