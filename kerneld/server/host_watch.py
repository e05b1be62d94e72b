"""Follows a real process of the host for a shadow table: reads it again in each interval, and sees its end by a pidfd.

Owns the pidfd and the time of the next reading, only while there is such a process: an idle daemon has no timer. Of the
shadow table it knows only how to refresh it.

Invariant: this reading takes at most a fifth of the daemon's time, for any interval: clients come first.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import structlog

from kerneld.server.watch import NO_PIDFD, open_pidfd

if TYPE_CHECKING:
    from kerneld.shadowpt.asking import Pending
    from kerneld.shadowpt.host import HostTarget
    from kerneld.shadowpt.session import ShadowPt

HOST_INTERVAL_SECONDS = 0.001
_REST = 4
"""After a reading, the next one waits at least this many times its duration."""

log = structlog.get_logger("kerneld.server")


class HostWatch:
    """The loop's side of `ShadowPt.followed_host`."""

    def __init__(self, shadowpt: ShadowPt, epoll: select.epoll, interval_seconds: float) -> None:
        self._shadowpt = shadowpt
        self._epoll = epoll
        self._interval_seconds = interval_seconds
        self._host: HostTarget | None = None
        self._look: Pending | None = None
        """The reading that has begun and is not finished."""
        self._begun = 0.0
        self._due = 0.0
        self.pidfd = NO_PIDFD

    @property
    def is_needed(self) -> bool:
        """Whether `tend` has something to do."""
        return self._host is not None or self._shadowpt.followed_host is not None

    def wait_seconds(self, longest: float | None) -> float | None:
        """Return the longest wait in seconds: `longest`, or the time until the next reading. None: for ever."""
        if self._host is None or self._look is not None:
            return longest
        wait = max(0.0, self._due - time.monotonic())
        return wait if longest is None else min(wait, longest)

    def tend(self) -> None:
        """Notice a change of the followed process, and read again if it is time. Called at the end of each turn."""
        if self._shadowpt.followed_host is not self._host:
            self._change(self._shadowpt.followed_host)
        now = time.monotonic()
        if self._look is None:
            if self._host is None or now < self._due:
                return
            self._begun, self._look = now, self._shadowpt.look_again()
        if self._look is None or self._look.is_over:
            self._look = None
            after = time.monotonic()
            self._due = after + max(self._interval_seconds - (after - self._begun), _REST * (after - self._begun))

    def end(self) -> None:
        """Handle the end of the process, which the pidfd reports."""
        self._shadowpt.host_exited()
        self._change(None)

    def close(self) -> None:
        """Close the pidfd."""
        if self.pidfd != NO_PIDFD:
            self._epoll.unregister(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = NO_PIDFD

    def _change(self, host: HostTarget | None) -> None:
        self.close()
        if self._look is not None:
            self._shadowpt.asking.reader.give_up(self._look)
            self._look = None
        self._host = host
        if host is None:
            return
        try:
            self.pidfd = open_pidfd(host.pid)
            if self.pidfd != NO_PIDFD:
                self._epoll.register(self.pidfd, select.EPOLLIN)
        except OSError as error:
            # Without a pidfd the table still loses every flag after the end of the process, at the next reading.
            log.warning("no pidfd for a host target", pid=host.pid, error=error.strerror)
        # The pid may belong to another process by now. The descriptor of the /proc directory still names the target.
        if not host.is_alive():
            self.end()
            return
        self._due = time.monotonic() + self._interval_seconds
