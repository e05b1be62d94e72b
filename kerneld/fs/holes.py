"""The pages of a mapped file for which its file system may have no blocks yet.

A store to such a page must find out at once that the file system is full: the program gets SIGBUS. At write-back it
would be too late. So the file system is asked for the blocks at the first write fault. All other write faults cost one
look into a set. The set is made once, when the first page is written; after that, what lengthens, cuts or punches the
file keeps it right. It may have pages too many: to ask for blocks that are there changes nothing. If a file has many
pieces, the set has too few, and a failure is seen at write-back.

Answers to Linux v6.8 mm/memory.c:do_page_mkwrite(), fs/ext4/inode.c:ext4_page_mkwrite().
"""

from __future__ import annotations

import errno
import os

from kerneld.fs.open_file import allocate, find_data
from kerneld.mm.files.index_ranges import MAX_INDEX, IndexRanges
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

MOST_EXTENTS = 1024
"""The most pieces of data to look for in a file: this takes a few milliseconds."""


class Holes:
    """The holes of one file, as far as is known."""

    def __init__(self) -> None:
        self._pages: IndexRanges | None = None
        """None: the file system has not been asked."""

    def may_have(self, index: int) -> bool:
        """Return whether a page may be a hole, or have one."""
        return self._pages is None or index in self._pages

    def fill(self, index: int, reader: int, writer: int, size: int) -> None:
        """Let a page have its blocks before it is written. The file has `size` bytes, and two open descriptors.

        Raises OSError(ENOSPC), or EDQUOT. If the file system cannot do this at all, nothing happens.
        """
        if self._pages is None:
            self._pages = _find_holes(reader, size)
        if index not in self._pages:
            return
        offset = index << PAGE_SHIFT
        try:
            allocate(writer, offset, min(PAGE_SIZE, size - offset))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
        self._pages.remove(index, index + 1)

    def add(self, first: int, last: int) -> None:
        """Note that pages may have lost their blocks, or have none yet."""
        if self._pages is not None:
            self._pages.add(first, last)

    def has_data(self, first: int, last: int) -> None:
        """Note that pages have all their blocks."""
        if self._pages is not None:
            self._pages.remove(first, last)

    def cut(self, first: int) -> None:
        """Note that the file ends before a page."""
        self.has_data(first, MAX_INDEX)


def _find_holes(fd: int, size: int) -> IndexRanges:
    """Return the pages of a descriptor's file that have no data, or not everywhere."""
    pages = IndexRanges()
    try:
        if not os.fstatvfs(fd).f_blocks:
            # The file system of memory files has no limit.
            return pages
        found = find_data(fd, 0, size, MOST_EXTENTS)
    except OSError:
        return pages
    end = 0
    for start, stop in [*found, (size, size)]:
        if end < start:
            pages.add(end >> PAGE_SHIFT, start + PAGE_SIZE - 1 >> PAGE_SHIFT)
        end = stop
    return pages
