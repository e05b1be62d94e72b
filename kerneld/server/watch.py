"""The real processes of the kernel's processes: one pidfd for each, and the sessions of their threads.

When a real process ends, its process in the kernel must end too. A forked child may still hold its sockets open, so
only the pidfd shows the end.

Invariants: a process has a watch from its first attach until the kernel reports its end; there is one watch for each
pid.
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
    """One attached process: its pidfd and its sessions. NO_PIDFD: the process was dead before it could be watched."""

    process: Process
    pidfd: int
    sessions: list[Session] = field(default_factory=list)


def open_pidfd(pid: int) -> int:
    """Return a pidfd of `pid`, or NO_PIDFD if the process has ended. Raises OSError, for example EMFILE."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return NO_PIDFD


class Watches:
    """All watches, by pid and by pidfd. The pidfds are in the loop's epoll as long as they are here."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._by_pid: dict[int, Watch] = {}
        self.by_pidfd: dict[int, Watch] = {}

    def find(self, pid: int) -> Watch | None:
        """Return the watch of the process that has this pid now, or None."""
        return self._by_pid.get(pid)

    def find_of(self, process: Process) -> Watch | None:
        """Return the watch of this process, not of a later process with the same pid."""
        watch = self._by_pid.get(process.pid)
        return watch if watch is not None and watch.process is process else None

    def add(self, watch: Watch) -> None:
        """Start watching a process."""
        self._by_pid[watch.process.pid] = watch
        if watch.pidfd != NO_PIDFD:
            self.by_pidfd[watch.pidfd] = watch
            self._epoll.register(watch.pidfd, select.EPOLLIN)

    def remove(self, watch: Watch) -> None:
        """Stop watching a process, and close the pidfd."""
        del self._by_pid[watch.process.pid]
        if watch.pidfd != NO_PIDFD:
            del self.by_pidfd[watch.pidfd]
            # A pidfd that could not be registered is not in epoll.
            with contextlib.suppress(OSError):
                self._epoll.unregister(watch.pidfd)
            os.close(watch.pidfd)
        log.debug("process gone", pid=watch.process.pid)

    def kill(self, process: Process) -> None:
        """Kill the real process. It must not live on if it ignores its last reply, or never reads it."""
        watch = self.find_of(process)
        if watch is None or watch.pidfd == NO_PIDFD:
            return
        try:
            signal.pidfd_send_signal(watch.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except OSError as error:
            # The process belongs to another user, and the daemon is not root. It still loses its connections.
            log.warning("process cannot be killed", pid=process.pid, error=error.strerror)

    def close(self) -> None:
        """Close every pidfd."""
        for pidfd in self.by_pidfd:
            os.close(pidfd)
        self.by_pidfd.clear()
        self._by_pid.clear()
