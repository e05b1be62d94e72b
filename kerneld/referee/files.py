"""The files of a program: each side has its own, made alike when the program first uses one.

Owns descriptors and a folder for the regular ones; `close` gives all back. Knows neither kernel.
"""

from __future__ import annotations

import os
from pathlib import Path

from kerneld.referee.program import FILES, file_content
from shared.uapi.page import PAGE_SIZE

_CONTENT = file_content()
_ACCESS = {"rw": os.O_RDWR, "r": os.O_RDONLY, "w": os.O_WRONLY}


class ProgramFiles:
    """One side's files of one program."""

    def __init__(self, folder: Path) -> None:
        """`folder` exists, and is this side's alone."""
        self._folder = folder
        self._inodes: dict[str, int] = {}
        self._opens: dict[int, int] = {}

    def get_fd(self, number: int) -> int:
        """Return the descriptor of a file of the program, opened on first use."""
        if number not in self._opens:
            kind = FILES[number]
            self._opens[number] = os.open(f"/proc/self/fd/{self._inode(kind.inode)}", self.get_flags(number))
        return self._opens[number]

    def get_flags(self, number: int) -> int:
        """Return the O_ flags with which a file of the program is opened."""
        return _ACCESS[FILES[number].access]

    def _inode(self, name: str) -> int:
        if name not in self._inodes:
            self._inodes[name] = self._create(name)
        return self._inodes[name]

    def _create(self, name: str) -> int:
        if name == "directory":
            return os.open(self._folder, os.O_RDONLY)
        if name == "memfd":
            fd = os.memfd_create("memory")
        else:
            fd = os.open(self._folder / "file", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        # One page at a time, so that the host caches them one by one and not in large folios, which it maps as a whole.
        for start in range(0, len(_CONTENT), PAGE_SIZE):
            os.write(fd, _CONTENT[start : start + PAGE_SIZE])
        return fd

    def truncate(self, number: int, length: int) -> int:
        """Set a file's size, in bytes; returns 0 or -errno."""
        try:
            os.ftruncate(self.get_fd(number), length)
        except OSError as error:
            return -(error.errno or 0)
        return 0

    def close(self) -> None:
        """Close everything."""
        for fd in (*self._opens.values(), *self._inodes.values()):
            os.close(fd)
        self._opens.clear()
        self._inodes.clear()
