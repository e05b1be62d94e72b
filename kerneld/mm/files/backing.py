"""The interface of a real file for the page cache. `kerneld.fs` implements it.

Answers to Linux v6.8 include/linux/fs.h (struct address_space_operations), as far as a file of the host can.
"""

from __future__ import annotations

from typing import Protocol


class Backing(Protocol):
    """The real file that pages of an inode are read from and written to."""

    def size_bytes(self) -> int:
        """Return the file's size now, in bytes."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer at the end of the file. Raises OSError."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises OSError."""

    def punch_hole(self, offset: int, length: int) -> None:
        """Make bytes of the file read as zeros and keep its size. Raises OSError."""

    def fill_hole(self, index: int) -> None:
        """Have the file system give a page the blocks that it does not have. Raises OSError(ENOSPC), or EDQUOT."""

    def mincore(self, first: int, count: int) -> bytes:
        """Return for each of `count` pages from `first` 0 if it is not in the host's memory.

        For a memory file that is a hole.

        If the host does not say, every page counts as in memory.
        """

    def map_writable(self) -> None:
        """Note that the first writable shared mapping begins. Raises OSError(EPERM) if the file is sealed."""

    def unmap_writable(self) -> None:
        """Note that the last writable shared mapping has ended."""

    def release(self) -> bool:
        """Note that no mapping of the inode is left. Return whether its cached pages stay, for a later open."""
