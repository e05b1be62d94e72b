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
from kerneld.server.agent_link import AgentLink, Patience
from kerneld.server.session import Session
from kerneld.server.watch import NO_PIDFD, Watch, open_pidfd
from kerneld.task.task import Inherited
from shared.uapi.ring import NR_CHILDREN

if TYPE_CHECKING:
    from kerneld.server.door import Door
    from kerneld.server.ring import Ring, Rings
    from kerneld.server.watch import Watches
    from kerneld.task.task import Process, Thread
    from shared.uapi.page import Pid


class LentLines:
    """The lines of one server."""

    def __init__(
        self, door: Door, rings: Rings[Session], watches: Watches, welcome: Callable[[Session], bool],
        told: Callable[[AgentLink], None],
    ) -> None:  # fmt: skip
        """`welcome` serves a session from now on, and returns False if it cannot. `told`: see `AgentLink`."""
        self._door = door
        self._told = told
        self._patience = Patience()
        self._rings = rings
        self._watches = watches
        self._welcome = welcome

    def open(self, thread: Thread) -> tuple[int, int]:
        """Make a connection, which counts to the thread's process until another one attaches by it."""
        session, theirs = self._lend(thread.process.pid)
        session.inherited = Inherited.of(thread, thread.pkru)
        return theirs, session.connection.line

    def hire(self, process: Process) -> tuple[AgentLink, int]:
        """Make a connection for an agent of a process."""
        session, theirs = self._lend(process.pid)
        session.connection.line = 0
        link = AgentLink(session.connection, process, lambda: self._watches.kill(process), self._told, self._patience)
        session.on_close, session.on_word = link.lost, link.hear
        return link, theirs

    def expect_child(self, thread: Thread, token: int) -> None:
        """Clear the field of the thread's ring in which it names the child of a token."""
        ring = _ring_of(thread)
        if ring is not None:
            ring.children[token % NR_CHILDREN] = 0

    def find_child(self, thread: Thread, token: int) -> Pid:
        """Return the pid that the thread has named for the child of a token; 0 for none yet."""
        ring = _ring_of(thread)
        return ring.children[token % NR_CHILDREN] if ring is not None else 0

    def admit(self, pid: Pid, make: Callable[[], Process]) -> None:
        """Watch a real process, and make its process; nothing if it has ended, or no descriptor is free."""
        try:
            pidfd = open_pidfd(pid)
        except OSError:
            return
        if pidfd != NO_PIDFD:
            self._watches.add(Watch(make(), pidfd))

    def _lend(self, pid: Pid) -> tuple[Session, int]:
        connection, theirs = self._door.lend(pid)
        session = Session(connection, self._rings)
        if not self._welcome(session):
            os.close(theirs)
            raise SysError(errno.EAGAIN)
        return session, theirs


def _ring_of(thread: Thread) -> Ring | None:
    return thread.session.ring if isinstance(thread.session, Session) else None
