"""mmap_lock, held for writing from one piece of a long call to the next.

A call is finished before anything else runs, so the kernel needs no lock; one that comes in pieces is not. Most of them
may be met by anything between two pieces, as on Linux, where they let go of the lock. Some may not: while a mapping
moves, is replaced or is copied, its process's other threads wait there for mmap_lock, and so they do here. Owns who
holds it. That somebody waits is the server's business (`kerneld.server.service`), and that of calls on other
processes' memory.

Answers to Linux v6.8 include/linux/mmap_lock.h:mmap_write_lock().
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.task.task import Thread


class MmapLocks:
    """The address spaces of one machine that a thread holds for itself."""

    def __init__(self) -> None:
        self.holders: dict[MmStruct, Thread] = {}

    @contextlib.contextmanager
    def write(self, thread: Thread) -> Iterator[None]:
        """Hold a thread's own address space, which nobody holds, for as long as the block lasts."""
        mm = thread.process.live_mm
        assert mm not in self.holders
        self.holders[mm] = thread
        try:
            yield
        finally:
            del self.holders[mm]

    def keeps_waiting(self, thread: Thread) -> bool:
        """Tell whether a thread has to wait for another one of its process."""
        mm = thread.process.mm
        return mm is not None and self.holders.get(mm, thread) is not thread

    def wait_for(self, mm: MmStruct, thread: Thread) -> Iterator[None]:
        """Yield for as long as another thread holds an address space that this one is to work with."""
        while self.holders.get(mm, thread) is not thread:
            yield
