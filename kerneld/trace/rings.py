"""The rings whose memory may still be there: on whose account each is, and when it is given back.

A ring is paid for from the opening of its trace until its reader has let go of it, whenever the trace ends: what was
written last can still be read then. A reader lets go by closing the pipe, the one thing of its that the host tells the
end of; the server listens to that. Whoever has the file itself open or mapped still keeps an empty one: the memory is
taken out of it.

Owns the accounts. Knows no trace. The superuser's account has no limit, a process has.
Invariant: the pipes that the server watches are those of the rings that are paid for.
Answers to Linux v6.8 kernel/events/core.c: perf_mmap(), perf_mmap_close(), where `user_struct.locked_vm` is charged for
as long as a ring is mapped, whoever has closed its event.
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
"""Of everybody."""
MAX_PROCESS_RINGS = 16
MAX_USER_RINGS = 4
"""Of one user who is not the superuser."""


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
        """Check that a process may have one more. Raises SysError(EMFILE)."""
        wanted = _payer(process)
        payers = self._paid.values()
        of_process = sum(payer.process is process for payer in payers)
        of_user = sum(payer.uid == wanted.uid for payer in payers) if wanted.uid is not None else 0
        if len(payers) >= MAX_RINGS or of_process >= MAX_PROCESS_RINGS or of_user >= MAX_USER_RINGS:
            raise SysError(errno.EMFILE)

    def make(self, process: Process, data_pages: int) -> Ring:
        """Return a new ring, on a process's account. Raises SysError(ENOMEM) where the host has no memory for it."""
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
        """Return the ring whose reader waits on this pipe, or None."""
        return next((ring for ring in self._paid if ring.pipe == pipe), None)

    def free(self, ring: Ring) -> None:
        """Give back the memory of a ring, whoever still holds its file."""
        self._forget(ring)
        ring.empty()
        ring.close()

    def _forget(self, ring: Ring) -> None:
        del self._paid[ring]
        if self._kernel.pipe_watch is not None:
            self._kernel.pipe_watch.remove(ring.pipe)

    def shutdown(self) -> None:
        """Let go of every ring; what is in them is their readers'."""
        for ring in list(self._paid):
            self._forget(ring)
            ring.close()


def _payer(process: Process) -> _Payer:
    cred = process.cred
    return _Payer(process, None if cred.superuser else cred.uid)
