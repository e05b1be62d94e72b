"""The real processes behind the kernel's: one pidfd each, and the sessions that are their threads.

A process must end here when the real one does, though a forked child may hold its sockets open: only the pidfd tells.
Invariant: a process has a watch from its first attach until the kernel reports it ended, and one watch per pid exists.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from kerneld.server.session import Session
    from kerneld.task.task import Process

NO_PIDFD = -1

log = structlog.get_logger("kerneld.server")


@dataclass(slots=True)
class Watch:
    """One attached process: its pidfd (NO_PIDFD: it was dead before it could be watched) and its sessions."""

    process: Process
    pidfd: int
    sessions: list[Session] = field(default_factory=list)


def open_pidfd(pid: int) -> int:
    """Return a pidfd of `pid`, or NO_PIDFD when there is no such process any more. Raises OSError, EMFILE for one."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return NO_PIDFD


class Watches:
    """Every watch, by pid and by pidfd; the pidfds are in the loop's epoll as long as they are here."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._by_pid: dict[int, Watch] = {}
        self.by_pidfd: dict[int, Watch] = {}

    def find(self, pid: int) -> Watch | None:
        """Return the watch of the process that has this pid now."""
        return self._by_pid.get(pid)

    def find_of(self, process: Process) -> Watch | None:
        """Return the watch of this very process, none of another that has its pid by now."""
        watch = self._by_pid.get(process.pid)
        return watch if watch is not None and watch.process is process else None

    def add(self, watch: Watch) -> None:
        """Watch from now on."""
        self._by_pid[watch.process.pid] = watch
        if watch.pidfd != NO_PIDFD:
            self.by_pidfd[watch.pidfd] = watch
            self._epoll.register(watch.pidfd, select.EPOLLIN)

    def remove(self, watch: Watch) -> None:
        """Watch no longer, and close the pidfd."""
        del self._by_pid[watch.process.pid]
        if watch.pidfd != NO_PIDFD:
            del self.by_pidfd[watch.pidfd]
            # One that could not be registered is not there.
            with contextlib.suppress(OSError):
                self._epoll.unregister(watch.pidfd)
            os.close(watch.pidfd)
        log.debug("process gone", pid=watch.process.pid)

    def kill(self, process: Process) -> None:
        """End the real process: one that ignores its last reply, or never asks for it, must not live on."""
        watch = self.find_of(process)
        if watch is None or watch.pidfd == NO_PIDFD:
            return
        try:
            signal.pidfd_send_signal(watch.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except OSError as error:
            # Another user's, and we are not root: it loses its connections all the same.
            log.warning("process cannot be killed", pid=process.pid, error=error.strerror)

    def close(self) -> None:
        """Close every pidfd."""
        for pidfd in self.by_pidfd:
            os.close(pidfd)
        self.by_pidfd.clear()
        self._by_pid.clear()
