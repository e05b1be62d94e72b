"""Physical memory: one sparse memory file, seen as bytes, as 64-bit words, and as a numpy array.

Owns the memory file and its mapping. Knows no frame states: `kerneld.mm.frames.frames` knows which frames are free. The
page tables are in this memory as real entries. So a foreign page-table walker that gets this file and a CR3 finds the
same translations.

Invariants: a frame that is not in `written` reads as zeros. So code writes page contents only by a method of `Ram`, or
calls `set_written` before. Page tables, which are written as words, are noted when they are allocated. The size never
changes. Only this process can write, unless the machine allows native programs: the file is sealed
(F_SEAL_FUTURE_WRITE) after our own mapping is made. Then even a read-only descriptor that is reopened through /proc
cannot be written or mapped writable.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt

from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pfn

WORDS_SHIFT = PAGE_SHIFT - 3
"""A page is 1 << WORDS_SHIFT words of 64 bits; a frame's first word is at `pfn << WORDS_SHIFT`."""

_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_FUTURE_WRITE = 0x1, 0x2, 0x4, 0x10

_ZEROS = bytes(PAGE_SIZE)
"""Copied to clear a frame. That takes a third of the time of filling a row of the array."""


class Ram:
    """The machine's memory of `size_bytes`, a multiple of PAGE_SIZE."""

    def __init__(self, size_bytes: int, *, is_shared: bool = False) -> None:
        """Create the memory file and map it. Every byte reads as zero and takes no memory until it is written.

        `is_shared`: native programs will map the file writable (`open_writable`), so it is not sealed.
        Raises OSError when the host has no memory files, or no address space for the mapping.
        """
        self.size_bytes = size_bytes
        self.nr_frames = size_bytes >> PAGE_SHIFT
        self._is_shared = is_shared
        self._fd = os.memfd_create("kerneld-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, size_bytes)
        self._map = mmap.mmap(self._fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        os.fchmod(self._fd, 0o400)
        seals = _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL
        fcntl.fcntl(self._fd, _F_ADD_SEALS, seals if is_shared else seals | _F_SEAL_FUTURE_WRITE)
        self._bytes = memoryview(self._map)
        self._readonly = self._bytes.toreadonly()
        self.words = self._bytes.cast("Q")
        """The whole memory as words, for one entry at a time. An index here costs a third of an index in numpy."""
        self.words_np: npt.NDArray[np.uint64] = np.frombuffer(self._map, dtype=np.uint64)
        """The same words as an array: for ranges of entries."""
        self.frames_np = self.words_np.reshape(self.nr_frames, 1 << WORDS_SHIFT)
        """The same words, one row a frame."""
        self.written = np.zeros(self.nr_frames, dtype=np.bool_)
        """For each frame, whether it may hold something other than zeros."""
        self._written = self.written.data.cast("B")

    def page(self, pfn: Pfn) -> memoryview:
        """Return the 4,096 bytes of a frame, read-only."""
        start = pfn << PAGE_SHIFT
        return self._readonly[start : start + PAGE_SIZE]

    def read(self, paddr: int, length: int) -> memoryview:
        """Return `length` bytes at a physical address, read-only."""
        return self._readonly[paddr : paddr + length]

    def write(self, paddr: int, data: bytes | memoryview) -> None:
        """Store bytes at a physical address. They must lie within one frame."""
        self._bytes[paddr : paddr + len(data)] = data
        self._written[paddr >> PAGE_SHIFT] = 1

    def set_written(self, pfn: Pfn) -> None:
        """Note that the caller writes to a frame through `words`, as into a page table."""
        self._written[pfn] = 1

    def clear_page(self, pfn: Pfn) -> None:
        """Clear a frame. A frame that was never written already reads as zeros, and takes no memory of the host."""
        if self._written[pfn]:
            start = pfn << PAGE_SHIFT
            self._bytes[start : start + PAGE_SIZE] = _ZEROS
            self._written[pfn] = 0

    def fill_pages(self, pfns: npt.NDArray[np.int64], data: bytes | memoryview, pages: list[int]) -> None:
        """Fill each frame with a page of `data`, by its number there; what is missing at its end is zeros.

        A frame whose page is all zeros is cleared, which may take no memory of the host. Consecutive pages for
        consecutive frames, none of them of zeros, are one copy.
        """
        rest = -len(data) % PAGE_SIZE
        words = memoryview(bytes(data) + bytes(rest) if rest else data).cast("Q")
        first, count = int(pfns[0]), len(pfns)
        is_run = pages[-1] < count == len(words) >> WORDS_SHIFT and bool((np.diff(pfns) == 1).all())
        if is_run and all(words[at] for at in range(0, len(words), 1 << WORDS_SHIFT)):
            if self._written[first] or not self._write_file(first, words):
                self.words[first << WORDS_SHIFT : first + count << WORDS_SHIFT] = words
            self.written[first : first + count] = True
            return
        rows = np.frombuffer(words, dtype=np.uint64).reshape(-1, 1 << WORDS_SHIFT)
        if not pages[-1] < count == len(rows):
            rows = rows[[page for page in pages if page < len(rows)]]
        is_filled = np.zeros(count, dtype=np.bool_)
        is_filled[: len(rows)] = rows.any(axis=1)
        filled = pfns[is_filled]
        self.frames_np[filled] = rows[is_filled[: len(rows)]]
        self.written[filled] = True
        self.clear_pages(pfns[~is_filled])

    def _write_file(self, first: Pfn, words: memoryview) -> bool:
        """Write to frames that take no memory of the host yet, by the file. Return False where that cannot be done.

        A store takes twice as long: for each page the host also clears it, and maps it in this process.
        """
        if not self._is_shared:
            # The seal is also for us.
            return False
        try:
            return os.pwrite(self._fd, words, first << PAGE_SHIFT) == words.nbytes
        except OSError:
            # RLIMIT_FSIZE is lower than this address, say.
            return False

    def clear_pages(self, pfns: npt.NDArray[np.int64]) -> None:
        """Clear frames. A run of consecutive frames is one memset."""
        pfns = pfns[self.written[pfns]]
        if not len(pfns):
            return
        if int(pfns[-1]) - int(pfns[0]) == len(pfns) - 1 and bool((np.diff(pfns) == 1).all()):
            self.frames_np[int(pfns[0]) : int(pfns[-1]) + 1] = 0
        else:
            self.frames_np[pfns] = 0
        self.written[pfns] = False

    def copy_page(self, to: Pfn, source: Pfn) -> None:
        """Copy a whole frame. Copying a frame that was never written takes no memory of the host."""
        if self._written[source]:
            start, source_start = to << PAGE_SHIFT, source << PAGE_SHIFT
            self._bytes[start : start + PAGE_SIZE] = self._bytes[source_start : source_start + PAGE_SIZE]
            self._written[to] = 1
        else:
            self.clear_page(to)

    def open_readonly(self) -> int:
        """Return a new read-only descriptor of the memory file; the caller closes it."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def open_writable(self) -> int:
        """Return a new descriptor of the memory file that can be mapped writable; the caller closes it.

        Call `set_written` for every frame that somebody maps writable.
        """
        return os.dup(self._fd)

    def close(self) -> None:
        """Give the memory back to the host. No view of it may be used afterwards.

        If some object still holds an array (a dead address space that is not collected yet), the mapping stays until
        that object is collected.
        """
        del self.frames_np, self.words_np
        self.words.release()
        self._readonly.release()
        self._bytes.release()
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(self._fd)
