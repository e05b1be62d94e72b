"""Closing a file's descriptor, when that may take long: another thread does it, and the event loop goes on.

The last close of a file without a name frees all that it has: 80 ms for each GiB of a memory file, or of pages that the
host has read of a file on a disk, also where this has holes. Only the host knows which close is the last one, so every
close of such a file counts as one if the file is large.

Owns the descriptors that wait to be closed. One thread closes them one after the other; it touches no other object of
the kernel. Answers to Linux v6.8 fs/file_table.c: fput(), and delayed_fput() for a caller that must not wait.
"""

from __future__ import annotations

import contextlib
import os
import threading
from queue import Queue

LONG_BYTES = 32 << 20
"""A file without a name that has at least this many bytes, or occupies them, is closed by the thread."""
_BLOCK_BYTES = 512

delayed: Queue[int] = Queue()
"""The descriptors that wait. `delayed.join()` waits until all are closed."""
_closers: list[threading.Thread] = []


def fput(fd: int) -> None:
    """Close a descriptor of a file that answers (`kerneld.fs.mounts`). If that takes long, it is closed soon.

    Errors are ignored, as a full disk: nobody is left to hear of them.
    """
    if _takes_long(fd) and _has_closer():
        delayed.put(fd)
    else:
        with contextlib.suppress(OSError):
            os.close(fd)


def _takes_long(fd: int) -> bool:
    try:
        stat = os.fstat(fd)
    except OSError:
        return False
    return stat.st_nlink == 0 and max(stat.st_size, stat.st_blocks * _BLOCK_BYTES) >= LONG_BYTES


def _has_closer() -> bool:
    """Start the thread at its first use. Return False if the host allows no thread (RLIMIT_NPROC)."""
    if not _closers:
        closer = threading.Thread(target=_close_all, daemon=True)
        with contextlib.suppress(RuntimeError):
            closer.start()
            _closers.append(closer)
    return bool(_closers)


def _close_all() -> None:
    while True:
        fd = delayed.get()
        with contextlib.suppress(OSError):
            os.close(fd)
        delayed.task_done()
