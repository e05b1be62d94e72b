"""The files of a program: each side has its own, made alike when the program first uses one.

Owns descriptors and a folder for the regular ones; `close` gives all back. Knows neither kernel.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from kerneld.referee.program import FILES, file_content
from shared.uapi.page import PAGE_SIZE

_CONTENT = file_content()
_WRITE_AND_WAIT = 7
"""SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER."""
_libc = ctypes.CDLL(None, use_errno=True)


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
        return FILES[number].flags

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
            # A new one for each program: of an old one the host's flusher may write pages back at any moment.
            path = self._folder / "file"
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        # One page at a time, so that the host caches them one by one and not in large folios, which it maps as a whole.
        for start in range(0, len(_CONTENT), PAGE_SIZE):
            os.write(fd, _CONTENT[start : start + PAGE_SIZE])
        if name == "regular":
            # From here on a page is dirty where the program has made it so.
            _libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), _WRITE_AND_WAIT)
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
