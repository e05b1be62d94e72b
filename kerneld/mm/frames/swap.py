"""The swap file: the use counts of its pages, and reading and writing them.

Owns the file and the swap map. A page of the file is a *slot*. A slot is in use while page-table entries or pages of
shared memory refer to it (its count), or while the swap cache holds a frame for it. Knows frames only by their numbers,
and no page table. Answers to Linux v6.8 mm/swapfile.c (swap_map, get_swap_pages, swap_duplicate, swap_free) and
mm/page_io.c.

Invariants: `count[slot]` is the number of entries that refer to the slot; `cache[slot]` is the frame that the swap
cache holds for it, 0 for none; `nr_free` counts the slots for which both are 0. Slot 0 is never used: a real swap
file has its header there. The file has no name, so nothing is left behind, however the daemon ends.

Differs from Linux: there is only one file, without discard and priorities.
"""

from __future__ import annotations

import errno
import os
import tempfile
from typing import IO

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.scalars import u32
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pfn

Slots = npt.NDArray[np.int64]
_HEADER_PAGES = 1
_IOV_MAX = 1024
_SCAN_SLOTS = 8192
_ONE = u32(1)
"""The number of slots that a search of the swap map checks in one step."""


class SwapFile:
    """A swap file of `size_bytes`, whole pages; 0 for a machine without swap (Linux: struct swap_info_struct)."""

    def __init__(self, size_bytes: int = 0) -> None:
        """Make a sparse file. Raises OSError if the host cannot make a temporary file of that size."""
        nr_slots = size_bytes >> PAGE_SHIFT
        self.count = np.zeros(nr_slots, dtype=np.uint32)
        self.cache = np.zeros(nr_slots, dtype=np.uint32)
        self.count_at = self.count.data
        self.cache_at = self.cache.data
        self.shadow = np.zeros(nr_slots, dtype=np.uint32)
        """The shadow of the page in each slot: see `kerneld.mm.frames.workingset`."""
        self.shadow_at = self.shadow.data
        self.total_pages = max(0, nr_slots - _HEADER_PAGES)
        """The number of usable slots (Linux: total_swap_pages)."""
        self.nr_free = self.total_pages
        self._next = _HEADER_PAGES
        self._file: IO[bytes] | None = None
        if self.total_pages:
            # TemporaryFile uses O_TMPFILE if the file system has it; else it removes the name at once.
            self._file = tempfile.TemporaryFile(prefix="kerneld-swap-", buffering=0)  # noqa: SIM115
            os.ftruncate(self._file.fileno(), size_bytes)

    @property
    def is_full(self) -> bool:
        """Whether more than half of the slots are in use. Then pages that are back in memory give up their slots.

        Source: Linux v6.8 include/linux/swap.h:vm_swap_full().
        """
        return self.nr_free * 2 < self.total_pages

    def get_swap_pages(self, count: int) -> Slots:
        """Return up to `count` free slots in order, from the end of the last search; fewer or none if the file is full.

        The caller must give each slot a count or a place in the swap cache at once. Source: Linux v6.8 mm/swapfile.c.
        """
        wanted = min(count, self.nr_free)
        found: list[Slots] = []
        start, left, wrapped = self._next, wanted, False
        while left:
            stop = min(start + _SCAN_SLOTS, len(self.count))
            free = np.flatnonzero((self.count[start:stop] | self.cache[start:stop]) == 0)[:left] + start
            if len(free):
                found.append(free)
                left -= len(free)
                start = int(free[-1]) + 1 if not left else stop
            else:
                start = stop
            if start >= len(self.count):
                if wrapped and left:
                    raise KernelBug(f"{self.nr_free} free slots are noted, {wanted - left} are there")
                start, wrapped = _HEADER_PAGES, True
        self._next = start
        self.nr_free -= wanted
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def swap_duplicate(self, slots: Slots) -> None:
        """Count one more entry for each slot. A slot may be given more than once (Linux: swap_duplicate())."""
        np.add.at(self.count, slots, _ONE)

    def swap_free(self, slot: int) -> bool:
        """Count one entry less for a slot. Return whether it was the last (Linux: swap_free())."""
        count = self.count_at[slot]
        if not count:
            raise KernelBug(f"swap slot {slot} is freed more often than it was taken")
        self.count_at[slot] = count - 1
        if count > 1:
            return False
        if not self.cache_at[slot]:
            self.nr_free += 1
        return True

    def swap_free_many(self, slots: Slots) -> Slots:
        """Count one entry less for each slot. A slot may be given more than once: that of a merged page.

        Return the slots without entries that are still cached.
        """
        counts, times = self.count[slots], np.ones(1, dtype=np.int64)
        if len(counts) and int(counts.max()) > 1:
            slots, times = np.unique(slots, return_counts=True)
            counts = self.count[slots]
        if (counts < times).any():
            raise KernelBug("a swap slot is freed more often than it was taken")
        self.count[slots] = counts - times
        last = slots[counts == times]
        cached: Slots = last[self.cache[last] != 0]
        self.nr_free += len(last) - len(cached)
        return cached

    def set_cache(self, slot: int, pfn: Pfn) -> None:
        """Note the frame that the swap cache holds for a slot."""
        self.cache_at[slot] = pfn

    def clear_cache(self, slot: int) -> None:
        """Note that the swap cache holds no frame for a slot. A slot without a count is then free."""
        self.cache_at[slot] = 0
        if not self.count_at[slot]:
            self.nr_free += 1

    def clear_cache_many(self, slots: Slots) -> None:
        """Do the same as `clear_cache` for many slots, each given once."""
        self.cache[slots] = 0
        self.nr_free += int(np.count_nonzero(self.count[slots] == 0))

    def read_page(self, slot: int) -> bytes:
        """Return the contents of a slot. Raises OSError."""
        assert self._file is not None
        data = os.pread(self._file.fileno(), PAGE_SIZE, slot << PAGE_SHIFT)
        if len(data) != PAGE_SIZE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data

    def write_pages(self, first: int, pages: list[memoryview]) -> None:
        """Write pages to consecutive slots from `first`. Raises OSError if the host's disk fails or is full."""
        assert self._file is not None
        fd = self._file.fileno()
        for start in range(0, len(pages), _IOV_MAX):
            chunk = pages[start : start + _IOV_MAX]
            written = os.pwritev(fd, chunk, first + start << PAGE_SHIFT)
            if written != len(chunk) * PAGE_SIZE:
                # The host's disk is full. The caller writes the pages again one by one, to find which ones fail.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Give the file back to the host."""
        if self._file is not None:
            self._file.close()
            self._file = None
