"""Reads the mappings of a real process in a window of its address space, from a descriptor of its /proc/PID/maps.

PROCMAP_QUERY (Linux 6.11) returns only the window. Without it, the file is read from its beginning to the end of the
window: with thousands of mappings below the window that takes milliseconds. Owns only the knowledge whether the host
has PROCMAP_QUERY. Needs nothing but Python: it runs in a helper process (`kerneld.server.host_reader`), which must
start quickly. Answers to Linux fs/proc/task_mmu.c: show_map_vma()
and do_procmap_query().
"""

from __future__ import annotations

import array
import bisect
import errno
import fcntl
import os
from functools import cache
from typing import NamedTuple

from shared.uapi.page import PAGE_SIZE, Vaddr
from shared.uapi.procmap import (
    PROCMAP_QUERY,
    PROCMAP_QUERY_ARG,
    PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
    PROCMAP_QUERY_VMA_EXECUTABLE,
    PROCMAP_QUERY_VMA_READABLE,
    PROCMAP_QUERY_VMA_SHARED,
    PROCMAP_QUERY_VMA_WRITABLE,
)

_ANONYMOUS_NAMES = (b"", b"[heap]", b"[stack]")
_ANON_VMA_NAME = b"[anon:"
"""The start of a name set by prctl(PR_SET_VMA_ANON_NAME). For a shared mapping it is "[anon_shmem:"."""
_DEV_ZERO = b"/dev/zero"
_ANON_SHMEM_NAME = b"[anon_shmem:"
_CHUNK_BYTES = 1 << 16
_NAME_BYTES = 4096


class HostMapping(NamedTuple):
    """One line of /proc/PID/maps: [start, end) in bytes."""

    start: Vaddr
    end: Vaddr
    perms: bytes
    dev: bytes
    inode: int
    name: bytes

    @property
    def is_private_anonymous(self) -> bool:
        """Return whether it is private memory without a file, and not one of the kernel's special mappings.

        A private mapping of /dev/zero counts too: Linux v6.8 drivers/char/mem.c:mmap_zero(), vma_set_anonymous().
        """
        nameless = self.name in _ANONYMOUS_NAMES or self.name.startswith(_ANON_VMA_NAME)
        of_no_file = self.inode == 0 and self.dev == b"00:00" and nameless
        return self.perms[3:4] == b"p" and (of_no_file or (self.name == _DEV_ZERO and self.inode != 0))

    @property
    def is_anonymous_memory(self) -> bool:
        """Return whether it is memory without a file, private or shared (Linux v6.8 mm/shmem.c:shmem_zero_setup())."""
        is_shared = self.perms[3:4] == b"s" and self.inode != 0
        named = self.name == _DEV_ZERO + b" (deleted)" or self.name.startswith(_ANON_SHMEM_NAME)
        return self.is_private_anonymous or (is_shared and named)


def parse_mapping(line: bytes) -> HostMapping:
    """Parse one line of /proc/PID/maps, without its newline.

    A name may hold any character except a newline (the kernel writes an escape for it). So the name is the rest of the
    line after the fifth field and its padding. Raises ValueError on any other line.
    """
    addresses, perms, _offset, dev, inode, *rest = line.split(b" ", 5)
    start, _, end = addresses.partition(b"-")
    name = rest[0].lstrip(b" ") if rest else b""
    return HostMapping(int(start, 16), int(end, 16), perms, dev, int(inode), name)


def mappings_in(fd: int, start: Vaddr, end: Vaddr) -> list[HostMapping]:
    """Return the mappings that overlap [start, end), in order. Raises OSError."""
    return _query(fd, start, end) if has_query() else _search(fd, start, end)


def _query(fd: int, start: Vaddr, end: Vaddr) -> list[HostMapping]:
    found = []
    while start < end:
        mapping = _query_one(fd, start)
        if mapping is None or mapping.start >= end:
            break
        found.append(mapping)
        start = mapping.end
    return found


def _query_one(fd: int, vaddr: Vaddr) -> HostMapping | None:
    """Return the mapping that covers an address, or else the next one above it; None if there is none."""
    name = array.array("B", bytes(_NAME_BYTES))
    argument = bytearray(
        PROCMAP_QUERY_ARG.pack(
            PROCMAP_QUERY_ARG.size, PROCMAP_QUERY_COVERING_OR_NEXT_VMA, vaddr, 0, 0, 0, 0, 0, 0, 0, 0, _NAME_BYTES, 0,
            name.buffer_info()[0], 0,
        )
    )  # fmt: skip
    try:
        fcntl.ioctl(fd, PROCMAP_QUERY, argument)
    except OSError as error:
        # ESRCH: the address space is gone. An empty file means the same.
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return None
        raise
    _, _, _, start, end, flags, _, _, inode, major, minor, name_bytes, *_ = PROCMAP_QUERY_ARG.unpack(argument)
    letters = (
        (PROCMAP_QUERY_VMA_READABLE, b"r-"),
        (PROCMAP_QUERY_VMA_WRITABLE, b"w-"),
        (PROCMAP_QUERY_VMA_EXECUTABLE, b"x-"),
        (PROCMAP_QUERY_VMA_SHARED, b"sp"),
    )
    perms = b"".join(pair[:1] if flags & flag else pair[1:] for flag, pair in letters)
    # The size counts the NUL at the end. It is 0 without a name. A newline is not escaped here.
    text = name.tobytes()[: max(0, name_bytes - 1)].replace(b"\n", b"\\012")
    return HostMapping(start, end, perms, f"{major:02x}:{minor:02x}".encode(), inode, text)


def _search(fd: int, start: Vaddr, end: Vaddr) -> list[HostMapping]:
    lines = _lines_below(fd, end)
    # The lines are sorted by address, so a binary search finds the first one.
    first = bisect.bisect_right(lines, start, key=_end_of)
    found = []
    for line in lines[first:]:
        mapping = parse_mapping(line)
        if mapping.start >= end:
            break
        found.append(mapping)
    return found


def _lines_below(fd: int, end: Vaddr) -> list[bytes]:
    """Return the lines of the file up to the first of a mapping at or above `end`, and a few more."""
    chunks = []
    while chunk := os.read(fd, _CHUNK_BYTES):
        chunks.append(chunk)
        # A read ends with a whole line.
        if int(chunk.rsplit(b"\n", 2)[-2].split(b"-", 1)[0], 16) >= end:
            break
    return b"".join(chunks).split(b"\n")[:-1]


def _end_of(line: bytes) -> Vaddr:
    return int(line[: line.index(b" ")].partition(b"-")[2], 16)


@cache
def has_query() -> bool:
    """Return whether the host has PROCMAP_QUERY."""
    with open("/proc/self/maps", "rb", buffering=0) as maps:
        try:
            return _query_one(maps.fileno(), PAGE_SIZE) is not None
        except OSError:
            return False
