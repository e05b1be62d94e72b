"""Where the files of /proc are read: this machine's, or a kerneld's (`inside`). Knows nothing about what they say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class ProcFile(Protocol):
    """An open file."""

    def pread(self, length: int, offset: int) -> bytes:
        """Return up to `length` bytes from `offset`; b"" at the end of the file. Raises OSError."""
        ...

    def close(self) -> None:
        """Close it."""


class Part(NamedTuple):
    """A part of an open file."""

    file: ProcFile
    length: int
    """In bytes, at most MOST_BYTES."""
    offset: int


MOST_BYTES = 1 << 16
"""The longest part."""


class ProcSource(Protocol):
    """One /proc."""

    def open(self, name: str) -> ProcFile:
        """Open a file by its name under /proc. Raises OSError."""
        ...

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        """Return the bytes of several parts, as `pread` does: a source that is far off asks for them at once."""
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

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        """Return the bytes of several parts."""
        return [part.file.pread(part.length, part.offset) for part in parts]


def read_whole(file: ProcFile) -> bytes:
    """Return all of a file."""
    return read_on(file, file.pread(MOST_BYTES, 0))


def read_on(file: ProcFile, data: bytes) -> bytes:
    """Return all of a file, whose first part is `data`."""
    chunk = data
    while chunk:
        chunk = file.pread(MOST_BYTES, len(data))
        data += chunk
    return data


def read_file(source: ProcSource, name: str) -> bytes:
    """Return all of the file of a name. Raises OSError."""
    file = source.open(name)
    try:
        return read_whole(file)
    finally:
        file.close()
