"""A real process of the host that a shadow table follows: looked at again each interval, and its end by a pidfd.

Owns the pidfd and the time of the next look, both only while there is such a process: an idle daemon has no timer.
Knows the shadow table only as what is to be refreshed.

Invariant: looking takes at most a fifth of the daemon's time, whatever the interval: clients come first.
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
"""How many times as long as a look took the next one waits at least."""

log = structlog.get_logger("kerneld.server")


class HostWatch:
    """The loop's side of `ShadowPt.followed_host`."""

    def __init__(self, shadowpt: ShadowPt, epoll: select.epoll, interval_seconds: float) -> None:
        self._shadowpt = shadowpt
        self._epoll = epoll
        self._interval_seconds = interval_seconds
        self._host: HostTarget | None = None
        self._look: Pending | None = None
        """The look that is under way."""
        self._begun = 0.0
        self._due = 0.0
        self.pidfd = NO_PIDFD

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to tend."""
        return self._host is not None or self._shadowpt.followed_host is not None

    def wait_seconds(self, longest: float | None) -> float | None:
        """Return how long to wait at most, `longest` or until the next look; None: for ever."""
        if self._host is None or self._look is not None:
            return longest
        wait = max(0.0, self._due - time.monotonic())
        return wait if longest is None else min(wait, longest)

    def tend(self) -> None:
        """Notice what is followed since, and look again if it is time; called at the end of each turn."""
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
        """The pidfd says that the process has ended."""
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
            # Without one the table still loses every flag when the process has gone, at the next look.
            log.warning("no pidfd for a host target", pid=host.pid, error=error.strerror)
        # The pid may be another process's by now: the target is what the descriptor of its /proc directory says.
        if not host.is_alive():
            self.end()
            return
        self._due = time.monotonic() + self._interval_seconds
