"""Connections that the kernel lends to native programs: for a thread, for a child, for the agent of an address space.

A process that has another user or another root directory now could not connect to the socket itself. Implements
`kerneld.syscalls.kernel.Lines`. Owns nothing: the server welcomes each session and drops it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from kerneld.errors import SysError
from kerneld.server.agent_link import AgentLink
from kerneld.server.session import Session

if TYPE_CHECKING:
    from kerneld.server.door import Door
    from kerneld.server.ring import Rings
    from kerneld.server.watch import Watches
    from kerneld.task.task import Process
    from shared.uapi.page import Pid


class LentLines:
    """The lines of one server."""

    def __init__(self, door: Door, rings: Rings[Session], watches: Watches, welcome: Callable[[Session], bool]) -> None:
        """`welcome` serves a session from now on, and returns False if it cannot."""
        self._door = door
        self._rings = rings
        self._watches = watches
        self._welcome = welcome

    def open(self, pid: Pid) -> tuple[int, int]:
        """Make a connection, which counts to a process until another one attaches by it."""
        session, theirs = self._lend(pid)
        return theirs, session.connection.line

    def hire(self, process: Process) -> tuple[AgentLink, int]:
        """Make a connection for an agent of a process."""
        session, theirs = self._lend(process.pid)
        session.connection.line = 0
        link = AgentLink(session.connection, lambda: self._watches.kill(process))
        session.on_close = link.lost
        return link, theirs

    def _lend(self, pid: Pid) -> tuple[Session, int]:
        connection, theirs = self._door.lend(pid)
        session = Session(connection, self._rings)
        if not self._welcome(session):
            os.close(theirs)
            raise SysError(errno.EAGAIN)
        return session, theirs
