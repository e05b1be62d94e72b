"""mmap_lock, held for writing from one piece of a long call to the next.

A call that runs at once needs no lock. A call that runs in pieces may. In most of these calls Linux releases the lock,
so other calls may come between two pieces. In some it does not: while a mapping is moved, replaced or copied, the other
threads of the process wait for mmap_lock, and they wait here too. Owns the holders of the lock. The server
(`kerneld.server.service`) makes threads wait; so do calls on the memory of other processes.

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
    """The locked address spaces of one machine, with the threads that hold them."""

    def __init__(self) -> None:
        self.holders: dict[MmStruct, Thread | None] = {}
        """None: the machine itself holds it, for nobody's call."""
        self.unsettled: set[MmStruct] = set()
        """Those whose native program may still use what was taken from it: `kerneld.tlb.debts`. Nobody else waits."""

    @contextlib.contextmanager
    def write(self, thread: Thread | None, mm: MmStruct | None = None) -> Iterator[None]:
        """Hold an address space during a with block: by default that of the thread. Nobody may hold it before."""
        if mm is None:
            assert thread is not None
            mm = thread.process.live_mm
        assert mm not in self.holders
        self.holders[mm] = thread
        try:
            yield
        finally:
            del self.holders[mm]

    def keeps_waiting(self, thread: Thread) -> bool:
        """Return whether a thread has to wait for another thread of its process, or for its agent."""
        mm = thread.process.mm
        return mm is not None and self.is_held(mm, thread)

    def is_locked(self, mm: MmStruct, thread: Thread) -> bool:
        """Return whether another thread holds an address space. Who only changes entries need not wait for its
        agent."""
        return self.holders.get(mm, thread) is not thread

    def is_held(self, mm: MmStruct, thread: Thread) -> bool:
        """Return whether another thread holds the address space that `thread` needs, or it is unsettled."""
        return self.is_locked(mm, thread) or mm in self.unsettled

    def are_held(self, mm: MmStruct) -> bool:
        """Return whether anybody holds an address space, or it is unsettled."""
        return mm in self.holders or mm in self.unsettled
