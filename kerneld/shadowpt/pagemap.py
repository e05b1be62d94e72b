"""The entries of a real process's page table, through a descriptor of its /proc/PID/pagemap.

Owns nothing but what the host was found to offer. PAGEMAP_SCAN (Linux 6.7) finds the pages that are there without a
word for each that is not; frame numbers are in the file alone. Answers to Linux v6.8 fs/proc/task_mmu.c:pagemap_read()
and do_pagemap_scan().
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from functools import cache

import numpy as np
import numpy.typing as npt

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

Words = npt.NDArray[np.uint64]


def read_entries(fd: int, start: Vaddr, end: Vaddr, only_present: bool) -> Words:
    """Return the entry of each page in [start, end), page-aligned; with `only_present` no bit but PM_PRESENT counts.

    Zeros where the process has no memory any more. Raises OSError.
    """
    regions = _scan(fd, start, end)
    if regions is None:
        return _read(fd, start, end)
    entries = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
    if not len(regions):
        return entries
    if only_present:
        for first, last in ((regions - np.uint64(start)) >> np.uint64(PAGE_SHIFT)).tolist():
            entries[first:last] = PM_PRESENT
        return entries
    low, high = int(regions[0, 0]), int(regions[-1, 1])
    first = (low - start) >> PAGE_SHIFT
    entries[first : first + ((high - low) >> PAGE_SHIFT)] = _read(fd, low, high)
    return entries


def _read(fd: int, start: Vaddr, end: Vaddr) -> Words:
    length = ((end - start) >> PAGE_SHIFT) * PM_ENTRY_BYTES
    raw = os.pread(fd, length, (start >> PAGE_SHIFT) * PM_ENTRY_BYTES)
    return np.frombuffer(raw.ljust(length, b"\0"), dtype=np.uint64)


def _scan(fd: int, start: Vaddr, end: Vaddr) -> Words | None:
    """Return the runs of present pages as rows of (start, end); None where the host has no PAGEMAP_SCAN."""
    if not _has_scan():
        return None
    # Runs are at least a page apart.
    nr_regions = (((end - start) >> PAGE_SHIFT) + 1) // 2
    rows = np.zeros((nr_regions, 3), dtype=np.uint64)
    vec = rows.ctypes.data
    argument = bytearray(
        PM_SCAN_ARG.pack(PM_SCAN_ARG.size, 0, start, end, 0, vec, nr_regions, 0, 0, PAGE_IS_PRESENT, 0, PAGE_IS_PRESENT)
    )
    try:
        found = fcntl.ioctl(fd, PAGEMAP_SCAN, argument)
    except OSError as error:
        if error.errno == errno.ESRCH:
            # Its address space is gone, as a read of no bytes says.
            return rows[:0, :2]
        raise
    return rows[:found, :2]


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
    """Tell whether the host shows this daemon frame numbers, which takes CAP_SYS_ADMIN: a look at a page of its own."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page, open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        page[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        entry = int(_read(pagemap.fileno(), address, address + mmap.PAGESIZE)[0])
    return entry & PM_PFRAME_MASK != 0
