"""Where the files of /proc are read: this machine's, or a kerneld's (`inside`). Knows nothing about what they say."""

from __future__ import annotations

import os
from typing import Protocol


class ProcFile(Protocol):
    """An open file."""

    def pread(self, length: int, offset: int) -> bytes:
        """Return up to `length` bytes from `offset`; b"" at the end of the file. Raises OSError."""
        ...

    def close(self) -> None:
        """Close it."""


class ProcSource(Protocol):
    """One /proc."""

    def open(self, name: str) -> ProcFile:
        """Open a file by its name under /proc. Raises OSError."""
        ...


class _HostFile:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        os.close(self._fd)


class HostProc:
    """This machine's."""

    def open(self, name: str) -> ProcFile:
        """Open a file."""
        return _HostFile(f"/proc/{name}")


def read_whole(file: ProcFile) -> bytes:
    """Return all of a file."""
    data = file.pread(1 << 16, 0)
    chunk = data
    while chunk:
        chunk = file.pread(1 << 16, len(data))
        data += chunk
    return data


def read_file(source: ProcSource, name: str) -> bytes:
    """Return all of the file of a name. Raises OSError."""
    file = source.open(name)
    try:
        return read_whole(file)
    finally:
        file.close()
