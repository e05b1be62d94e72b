"""The table that a client maps: the entries segment and the sequence page, and the order in which words are written.

Owns two shared-memory segments. Knows no address space: flags and frames come ready. Answers to docs/abi.md, "Shadow
page table"; there is no such file in Linux.

Invariants:
- Every store is of one aligned 64-bit word. Memory order is the program's order: x86 does not reorder stores, and each
  step below is a call of its own that no compiler looks through.
- An entry says MAPPED only while its pfn is the mapped one: MAPPED is cleared before the pfn changes and set after.
- A row that does not change is not written.
- The sequence word is odd from the first change until `publish()`, even otherwise, and larger after each change. It is
  counted here, never read back: nobody else's store could confuse it.
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

        Raises OSError where the host cannot give them; nothing is left behind then.
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
        """Make the entries from `first_index` on say `flags` and `pfns` (arrays of one length; pfn 0 unless MAPPED)."""
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
        """Do what update() does, for one entry: most accesses that fault change one page, and this costs a tenth."""
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
        """Tell whether every row has these flags and frames, and its own address; for the invariants."""
        last = self._start + (self.nr_pages << PAGE_SHIFT)
        vaddrs = np.arange(self._start, last, PAGE_SIZE, dtype=np.uint64)
        return bool((self._vaddrs == vaddrs).all() and (self._flags == flags).all() and (self._pfns == pfns).all())

    def clear_flags(self) -> None:
        """Take flags and frame from every entry; vaddrs stay."""
        nothing = np.zeros(self.nr_pages, dtype=np.uint64)
        self.update(0, nothing, nothing)

    def empty(self) -> None:
        """Make every entry all zeros."""
        self.clear_flags()
        self._begin()
        self._vaddrs[:] = 0

    def publish(self) -> None:
        """End the change: what was written since the last publish() is one moment to a reader of the sequence page."""
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
