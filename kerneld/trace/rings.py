"""The rings that still use memory: the account of each ring, and when its memory is freed.

A ring is charged to an account from the opening of its trace until its reader closes the pipe. The end of the trace may
come earlier: the last records can still be read then. The pipe is the reader's only object whose end the host reports,
and the server watches it. If the reader still has the file open or mapped, the file becomes empty: its memory is freed.

Owns the accounts. Knows no trace. The superuser has no limit as a user; each process has a limit.
Invariant: the server watches exactly the pipes of the charged rings.
Answers to Linux v6.8 kernel/events/core.c: perf_mmap(), perf_mmap_close(): `user_struct.locked_vm` is charged as long
as a ring is mapped, also after its event is closed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from kerneld.errors import SysError
from kerneld.trace.ring import Ring

if TYPE_CHECKING:
    from kerneld.syscalls.kernel import Kernel
    from kerneld.task.task import Process

MAX_RINGS = 32
"""The most rings of all users together."""
MAX_PROCESS_RINGS = 16
MAX_USER_RINGS = 4
"""The most rings of one user without privilege."""


class _Payer(NamedTuple):
    process: Process
    uid: int | None
    """None for the superuser."""


class Rings:
    """The rings of one machine's traces."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._paid: dict[Ring, _Payer] = {}

    def check_room(self, process: Process) -> None:
        """Check that a process may have one more ring. Raises SysError(EMFILE)."""
        wanted = _payer(process)
        payers = self._paid.values()
        of_process = sum(payer.process is process for payer in payers)
        of_user = sum(payer.uid == wanted.uid for payer in payers) if wanted.uid is not None else 0
        if len(payers) >= MAX_RINGS or of_process >= MAX_PROCESS_RINGS or of_user >= MAX_USER_RINGS:
            raise SysError(errno.EMFILE)

    def make(self, process: Process, data_pages: int) -> Ring:
        """Return a new ring, charged to a process. Raises SysError(ENOMEM) if the host has no memory for it."""
        try:
            ring = Ring(data_pages)
            try:
                if self._kernel.pipe_watch is not None:
                    self._kernel.pipe_watch.add(ring.pipe)
            except OSError:
                ring.close()
                raise
        except OSError:
            raise SysError(errno.ENOMEM) from None
        self._paid[ring] = _payer(process)
        return ring

    def find(self, pipe: int) -> Ring | None:
        """Return the ring of this pipe, or None."""
        return next((ring for ring in self._paid if ring.pipe == pipe), None)

    def free(self, ring: Ring) -> None:
        """Free the memory of a ring, also if somebody still holds its file."""
        self._forget(ring)
        ring.empty()
        ring.close()

    def give_up(self, ring: Ring) -> None:
        """Free a ring that nobody has got, unless the machine has closed it already."""
        if ring in self._paid:
            self.free(ring)

    def _forget(self, ring: Ring) -> None:
        del self._paid[ring]
        if self._kernel.pipe_watch is not None:
            self._kernel.pipe_watch.remove(ring.pipe)

    def shutdown(self) -> None:
        """Close every ring. Readers can still read the contents."""
        for ring in list(self._paid):
            self._forget(ring)
            ring.close()


def _payer(process: Process) -> _Payer:
    cred = process.cred
    return _Payer(process, None if cred.superuser else cred.uid)
