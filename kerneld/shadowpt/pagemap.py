"""Reads the entries of a real process's page table, from a descriptor of its /proc/PID/pagemap.

Owns only the knowledge whether the host has PAGEMAP_SCAN. PAGEMAP_SCAN (Linux 6.7) finds the present pages without
reading a word for each other page. Only the file has frame numbers. Needs nothing but Python, as `host_maps`. Answers
to
Linux v6.8 fs/proc/task_mmu.c:pagemap_read() and do_pagemap_scan().
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import mmap
import os
from functools import cache

from shared.uapi.page import PAGE_SHIFT, Vaddr
from shared.uapi.pagemap import (
    PAGE_IS_PRESENT,
    PAGE_REGION,
    PAGEMAP_SCAN,
    PM_ENTRY_BYTES,
    PM_PFRAME_MASK,
    PM_PRESENT,
    PM_SCAN_ARG,
)

_PRESENT = PM_PRESENT.to_bytes(PM_ENTRY_BYTES, "little")


def read_present(fd: int, start: Vaddr, end: Vaddr, *, only_present: bool) -> bytes:
    """Return the entry of each page in [start, end), page-aligned, 8 bytes each, 0 for a page that is not present.

    With `only_present` only the bit PM_PRESENT counts. All entries are 0 if the process has no memory any more. Raises
    OSError.
    """
    regions = _scan(fd, start, end)
    if regions is None:
        return read_entries(fd, start, end).ljust((end - start) >> PAGE_SHIFT << 3, b"\0")
    entries = bytearray((end - start) >> PAGE_SHIFT << 3)
    if not regions:
        return bytes(entries)
    if only_present:
        for low, high in regions:
            first, count = (low - start) >> PAGE_SHIFT << 3, (high - low) >> PAGE_SHIFT
            entries[first : first + count * PM_ENTRY_BYTES] = _PRESENT * count
        return bytes(entries)
    low, high = regions[0][0], regions[-1][1]
    found, first = read_entries(fd, low, high), (low - start) >> PAGE_SHIFT << 3
    entries[first : first + len(found)] = found
    return bytes(entries)


def read_entries(fd: int, start: Vaddr, end: Vaddr) -> bytes:
    """Return the entries of [start, end) from the file; fewer if the process is ending."""
    return os.pread(fd, (end - start) >> PAGE_SHIFT << 3, start >> PAGE_SHIFT << 3)


def _scan(fd: int, start: Vaddr, end: Vaddr) -> list[tuple[Vaddr, Vaddr]] | None:
    """Return the runs of present pages; None on a host without PAGEMAP_SCAN."""
    if not _has_scan():
        return None
    # Runs are at least a page apart.
    most = (((end - start) >> PAGE_SHIFT) + 1) // 2
    rows = array.array("Q", bytes(most * PAGE_REGION.size))
    vec = rows.buffer_info()[0]
    argument = bytearray(
        PM_SCAN_ARG.pack(PM_SCAN_ARG.size, 0, start, end, 0, vec, most, 0, 0, PAGE_IS_PRESENT, 0, PAGE_IS_PRESENT)
    )
    try:
        found = fcntl.ioctl(fd, PAGEMAP_SCAN, argument)
    except OSError as error:
        if error.errno == errno.ESRCH:
            # The address space is gone. An empty read means the same.
            return []
        raise
    return [(rows[at], rows[at + 1]) for at in range(0, 3 * found, 3)]


@cache
def _has_scan() -> bool:
    argument = bytearray(
        PM_SCAN_ARG.pack(PM_SCAN_ARG.size, 0, 0, 0, 0, 0, 0, 0, 0, PAGE_IS_PRESENT, 0, PAGE_IS_PRESENT)
    )
    assert PAGE_REGION.size == 3 * PM_ENTRY_BYTES
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        try:
            fcntl.ioctl(pagemap, PAGEMAP_SCAN, argument)
        except OSError as error:
            return error.errno not in (errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EINVAL)
    return True


@cache
def can_see_pfns() -> bool:
    """Return whether the host shows frame numbers to this daemon (CAP_SYS_ADMIN).

    It reads a page of its own to find out.
    """
    with mmap.mmap(-1, mmap.PAGESIZE) as page, open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        page[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        entry = int.from_bytes(read_entries(pagemap.fileno(), address, address + mmap.PAGESIZE), "little")
    return entry & PM_PFRAME_MASK != 0
