"""What the page cache asks of a real file: `kerneld.fs` answers.

Answers to Linux v6.8 include/linux/fs.h (struct address_space_operations), as far as a file of the host can.
"""

from __future__ import annotations

from typing import Protocol


class Backing(Protocol):
    """Where the pages of an inode come from and go to."""

    def size_bytes(self) -> int:
        """Return the file's size now, in bytes."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer at the end of the file. Raises OSError."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises OSError."""

    def punch_hole(self, offset: int, length: int) -> None:
        """Make bytes of the file read as zeros and keep its size. Raises OSError."""

    def mincore(self, first: int, count: int) -> bytes:
        """Return for each of `count` pages from `first` 0 where the host has it not in memory: of a file there, a hole.

        Where the host does not say, every page counts as there.
        """

    def map_writable(self) -> None:
        """A shared mapping begins that may be written to, the first one. Raises OSError(EPERM) where it is sealed."""

    def unmap_writable(self) -> None:
        """The last one has gone."""

    def release(self) -> None:
        """No mapping of the inode is left."""
