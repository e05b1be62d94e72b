"""The table that a client maps: the segment of entries, the sequence page, and the order of the stores.

Owns two shared-memory segments. Knows no address space: the caller passes flags and frames. Answers to docs/abi.md,
"Shadow page table"; Linux has no such file.

Invariants:
- Every store writes one aligned 64-bit word. The stores happen in program order: x86 does not reorder stores, and each
  step below is a separate call that no compiler can merge.
- An entry has MAPPED only while its pfn is valid: MAPPED is cleared before the pfn changes, and set after it.
- A row that does not change is not written.
- The sequence number is odd from the first change until `publish()`, else even, and grows with each change. It is
  counted in this process and never read back, so no store of another process could confuse it.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from kerneld.shadowpt.segment import Segment
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr
from shared.uapi.shadowpt import SHADOW_PTE, Spte, table_bytes

Words = npt.NDArray[np.uint64]

_PTE_WORDS = SHADOW_PTE.size // 8
_VADDR, _PFN, _FLAGS = range(_PTE_WORDS)


class ShadowTable:
    """The shadow table of the pages in [start, end), page-aligned: zeros until something is written."""

    def __init__(self, start: Vaddr, end: Vaddr, mapped: int = int(Spte.PTE_MAPPED)) -> None:
        """Create both segments; `mapped` is the layout's flag of that name.

        Raises OSError if the host cannot provide them. Then nothing is left behind.
        """
        self._start = start
        self._mapped = mapped
        self.nr_pages = (end - start) >> PAGE_SHIFT
        self._entries_segment = Segment(table_bytes(start, end))
        try:
            self._sequence_segment = Segment(PAGE_SIZE)
        except BaseException:
            self._entries_segment.close()
            raise
        self._words = self._entries_segment.words
        words: Words = np.frombuffer(self._words, dtype=np.uint64)
        rows = words[: self.nr_pages * _PTE_WORDS].reshape(self.nr_pages, _PTE_WORDS)
        self._vaddrs, self._pfns, self._flags = rows[:, _VADDR], rows[:, _PFN], rows[:, _FLAGS]
        self._sequence = 0

    def client_fds(self) -> tuple[int, int]:
        """Return new read-only descriptors of the table and of the sequence page; the caller closes them.

        Raises OSError where the process is out of descriptors.
        """
        table_fd = self._entries_segment.client_fd()
        try:
            return table_fd, self._sequence_segment.client_fd()
        except BaseException:
            os.close(table_fd)
            raise

    def write_vaddrs(self) -> None:
        """Write each entry's vaddr; flags and frames stay as they are."""
        self._begin()
        last = self._start + (self.nr_pages << PAGE_SHIFT)
        self._vaddrs[:] = np.arange(self._start, last, PAGE_SIZE, dtype=np.uint64)

    def update(self, first_index: int, flags: Words, pfns: Words) -> None:
        """Set the entries from `first_index` on to `flags` and `pfns`, arrays of one length; pfn is 0 unless MAPPED."""
        last = first_index + len(flags)
        now_flags, now_pfns = self._flags[first_index:last], self._pfns[first_index:last]
        moved = now_pfns != pfns
        changed = np.flatnonzero(moved | (now_flags != flags))
        if not len(changed):
            return
        self._begin()
        moving = np.flatnonzero(moved)
        leaving = moving[(now_flags[moving] & self._mapped) != 0]
        now_flags[leaving] = flags[leaving] & ~np.uint64(self._mapped)
        now_pfns[moving] = pfns[moving]
        now_flags[changed] = flags[changed]

    def update_one(self, index: int, flags: int, pfn: Pfn) -> None:
        """Do the same as update() for one entry. Most faults change one page, and this costs a tenth."""
        words = self._words
        at_pfn, at_flags = index * _PTE_WORDS + _PFN, index * _PTE_WORDS + _FLAGS
        now = words[at_flags]
        moved = words[at_pfn] != pfn
        if not moved and now == flags:
            return
        if not self._sequence & 1:
            self._begin()
        if moved:
            if now & self._mapped:
                words[at_flags] = flags & ~self._mapped
            words[at_pfn] = pfn
        words[at_flags] = flags

    def is_equal(self, flags: Words, pfns: Words) -> bool:
        """Return whether every row has these flags and frames, and its own address. Used by the invariants."""
        last = self._start + (self.nr_pages << PAGE_SHIFT)
        vaddrs = np.arange(self._start, last, PAGE_SIZE, dtype=np.uint64)
        return bool((self._vaddrs == vaddrs).all() and (self._flags == flags).all() and (self._pfns == pfns).all())

    def clear_flags(self) -> None:
        """Clear flags and frame of every entry. The vaddrs stay."""
        nothing = np.zeros(self.nr_pages, dtype=np.uint64)
        self.update(0, nothing, nothing)

    def empty(self) -> None:
        """Fill every entry with zeros."""
        self.clear_flags()
        self._begin()
        self._vaddrs[:] = 0

    def publish(self) -> None:
        """End the change.

        For a reader of the sequence page all stores since the last publish() happen at one moment.
        """
        if self._sequence & 1:
            self._sequence += 1
            self._sequence_segment.words[0] = self._sequence

    def close(self) -> None:
        """Unmap both segments. They live on in the clients that map them, and are never used again."""
        del self._vaddrs, self._pfns, self._flags, self._words
        self._entries_segment.close()
        self._sequence_segment.close()

    def _begin(self) -> None:
        if not self._sequence & 1:
            self._sequence += 1
            self._sequence_segment.words[0] = self._sequence
