"""The table of the first part of fall 2025: it has the addresses of a target's page faults.

Owns the segment that the opener maps, and a sequence page, as `ShadowTable` has. A fault at `vaddr` stores that address
at index (vaddr % size) / sizeof(unsigned long). A later fault with the same index replaces it. Knows no address space.

Invariant: every store is of one aligned 64-bit word, and the sequence number is odd during a change.
"""

from __future__ import annotations

import os

import numpy as np

from kerneld.shadowpt.segment import Segment
from shared.uapi.page import PAGE_SIZE, Vaddr
from shared.uapi.shadowpt import fault_index


class FaultTable:
    """A table of `size_bytes`, whole pages: zeros until the target faults."""

    def __init__(self, size_bytes: int) -> None:
        """Create both segments. Raises OSError if the host cannot provide them; then nothing is left behind."""
        self._size_bytes = size_bytes
        self._segment = Segment(size_bytes)
        try:
            self._sequence_segment = Segment(PAGE_SIZE)
        except BaseException:
            self._segment.close()
            raise
        self._words = self._segment.words
        self._sequence = 0

    def client_fds(self) -> tuple[int, int]:
        """Return new read-only descriptors of the table and of the sequence page; the caller closes them.

        Raises OSError where the process is out of descriptors.
        """
        table_fd = self._segment.client_fd()
        try:
            return table_fd, self._sequence_segment.client_fd()
        except BaseException:
            os.close(table_fd)
            raise

    def record(self, vaddr: Vaddr) -> None:
        """Note a page fault at `vaddr`, any address."""
        self._begin()
        self._words[fault_index(vaddr, self._size_bytes)] = vaddr
        self.publish()

    def empty(self) -> None:
        """Fill the table with zeros."""
        self._begin()
        words = np.frombuffer(self._words, dtype=np.uint64)
        words[np.flatnonzero(words)] = 0

    def publish(self) -> None:
        """End the change."""
        if self._sequence & 1:
            self._sequence += 1
            self._sequence_segment.words[0] = self._sequence

    def close(self) -> None:
        """Unmap both segments. They live on in the clients that map them, and are never used again."""
        del self._words
        self._segment.close()
        self._sequence_segment.close()

    def _begin(self) -> None:
        if not self._sequence & 1:
            self._sequence += 1
            self._sequence_segment.words[0] = self._sequence
