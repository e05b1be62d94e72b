"""The page cache of files that nothing maps any more. It stays until the file changes or memory is short.

Owns the cached pages of each such inode between the end of its last mapping and its next open. It holds no descriptor:
the file may be deleted, and its file system unmounted. So an inode counts as unchanged if its size and both of its
times are the same at the next open. Reclaim takes the pages like all others. Answers to Linux v6.8
fs/inode.c: iput_final(), inode_add_lru(), which keep an inode without users, with its pages.

Only files are kept that had not changed for `OLD_SECONDS` when they were opened. The host may give two changes within
some milliseconds the same time. And a program of the host that writes through a mapping changes the times only at its
first write to a page, and again after the host has written the page to the disk, half a minute later
(vm.dirty_expire_centisecs).

Differs from Linux: files in memory are not kept, because the host has their pages in memory; nor is a file that could
be written through a mapping here.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from kerneld.fs.mapped_files import Key
from kerneld.mm.files.filemap import AddressSpace

OLD_SECONDS = 60
MOST_KEPT = 1024
"""The most inodes that are kept. When there are more, the pages of the inode that was used longest ago are dropped."""
_NS = 1_000_000_000


class Stamp(NamedTuple):
    """What changes with the contents of a file."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return the stamp of a file at this moment."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_old(self) -> bool:
        """Whether the file has not changed for a time. If the clock was set back, it counts as changed."""
        return self.ctime_ns + OLD_SECONDS * _NS < time.time_ns()


class KeptFiles:
    """The kept inodes of one machine, the one that was used longest ago first."""

    def __init__(self) -> None:
        self._kept: dict[Key, tuple[Stamp, AddressSpace]] = {}

    @property
    def mappings(self) -> list[AddressSpace]:
        """The caches of all kept inodes."""
        return [mapping for _, mapping in self._kept.values()]

    @property
    def nr_pages(self) -> int:
        """The number of pages of all kept inodes."""
        return sum(len(mapping.pages) for mapping in self.mappings)

    def keep(self, key: Key, stamp: Stamp, mapping: AddressSpace) -> None:
        """Keep the pages of an inode. It is not in `self`, and its file has this stamp."""
        mapping.backing = None
        self._kept[key] = stamp, mapping
        if len(self._kept) > MOST_KEPT:
            _, oldest = self._kept.pop(next(iter(self._kept)))
            oldest.evict()

    def take(self, key: Key, stamp: Stamp) -> AddressSpace | None:
        """Return the pages of an inode that is opened. None if there are none, or if its file has another stamp now."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        if kept[0] == stamp:
            return kept[1]
        kept[1].evict()
        return None

    def drop_all(self) -> None:
        """Drop all pages. Source: Linux v6.8 fs/drop_caches.c:drop_pagecache_sb()."""
        while self._kept:
            _, (_, mapping) = self._kept.popitem()
            mapping.evict()
