"""The memory of a connection's ring, as its client sees it: docs/abi.md, "Ring". Knows no socket and no request.

A forked child does not have this memory (MADV_DONTFORK): it would write requests that kerneld takes for its parent's.
"""

from __future__ import annotations

import os
import weakref

from shared.client import libc, realmem
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.ring import ANSWERS_START, REQUESTS_START, RING_BYTES


class Ring:
    """A mapped ring. It is unmapped when nobody holds the object any more; a view must not be used after that."""

    __slots__ = ("__weakref__", "answers", "requests", "words")

    def __init__(self, fd: int) -> None:
        """Map the ring's file. The caller closes the descriptor. Raises OSError."""
        address = libc.mmap(0, RING_BYTES, Prot.READ | Prot.WRITE, Map.SHARED, fd)
        weakref.finalize(self, _unmap, address, os.getpid())
        libc.madvise(address, RING_BYTES, Madv.DONTFORK)
        view = realmem.view(address, RING_BYTES)
        self.words = view[:REQUESTS_START].cast("Q")
        self.requests = view[REQUESTS_START:ANSWERS_START]
        self.answers = view[ANSWERS_START:]


def _unmap(address: int, owner: int) -> None:
    # In a forked child something else may be mapped there.
    if os.getpid() == owner:
        libc.munmap(address, RING_BYTES)
