"""A file system that is soon full."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MNT_DETACH = 2


@contextmanager
def small_disk(directory: Path, size_bytes: int = 64 << 10) -> Iterator[Path]:
    """Mount a tmpfs of this size at a directory. Skips the test where nothing can be mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"small", bytes(directory), b"tmpfs", 0, f"size={size_bytes}".encode()) < 0:
        pytest.skip(f"a full file system takes a mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield directory
    finally:
        libc.umount2(bytes(directory), _MNT_DETACH)
