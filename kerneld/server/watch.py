"""The real processes behind the kernel's: one pidfd each, and the connections that are their threads.

A process must end here when the real one does, though a forked child may hold its sockets open: only the pidfd tells.
Invariant: a process has a watch from its first attach until the kernel reports it ended, and one watch per pid exists.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerneld.server.connection import Connection
    from kerneld.task.task import Process

NO_PIDFD = -1


@dataclass(slots=True)
class Watch:
    """One attached process: its pidfd (NO_PIDFD: it was dead before it could be watched) and its connections."""

    process: Process
    pidfd: int
    connections: list[Connection] = field(default_factory=list)


def open_pidfd(pid: int) -> int:
    """Return a pidfd of `pid`, or NO_PIDFD when there is no such process any more. Raises OSError, EMFILE for one."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return NO_PIDFD
