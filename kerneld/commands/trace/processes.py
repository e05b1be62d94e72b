"""Whether the processes that a trace is of have all ended, so that nothing more can come.

A process that lets go of kerneld and lives on may attach again: it has not ended. Owns a pidfd of each.
"""

from __future__ import annotations

import contextlib
import os
import select

from shared.client import KerneldGone, Process


class TracedProcesses:
    """Some processes of kerneld's, by their pids; none are all, which never end."""

    def __init__(self, client: Process, pids: tuple[int, ...]) -> None:
        """Watch `pids`, of which `client` can ask kerneld."""
        self._client = client
        self._pids = pids
        self._pidfds: list[int] = []
        for pid in pids:
            # One of another pid namespace, or one that has ended by now: then kerneld alone can tell.
            with contextlib.suppress(OSError):
                self._pidfds.append(os.pidfd_open(pid))

    def have_ended(self) -> bool:
        """Whether all of them have, here and for kerneld, which hears of it later."""
        if not self._pids:
            return False
        poll = select.poll()
        for fd in self._pidfds:
            poll.register(fd, select.POLLIN)
        for fd, _events in poll.poll(0):
            os.close(fd)
            self._pidfds.remove(fd)
        return not self._pidfds and not any(map(self._is_served, self._pids))

    def _is_served(self, pid: int) -> bool:
        try:
            self._client.read_proc(f"{pid}/stat")
        except KerneldGone:
            # The loop that reads the trace notices the end of kerneld by itself.
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of them."""
        for fd in self._pidfds:
            os.close(fd)
        self._pidfds.clear()
