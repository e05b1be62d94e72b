"""Tells whether all processes of a trace have ended. Then no more records can come.

A process may leave kerneld, still run, and attach again: it has not ended. Owns a pidfd of each process.
"""

from __future__ import annotations

import contextlib
import os
import select

from shared.client import KerneldGone, Process


class TracedProcesses:
    """Some processes of kerneld, by their pids. No pids mean all processes, which never end."""

    def __init__(self, client: Process, pids: tuple[int, ...]) -> None:
        """Watch `pids`. `client` asks kerneld about them."""
        self._client = client
        self._pids = pids
        self._pidfds: list[int] = []
        for pid in pids:
            # The open fails for a process of another pid namespace, or one that has ended. Then only kerneld can tell.
            with contextlib.suppress(OSError):
                self._pidfds.append(os.pidfd_open(pid))

    def have_ended(self) -> bool:
        """Whether all of them have ended, for the host and for kerneld. kerneld notices the end later."""
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
        """Close the pidfds."""
        for fd in self._pidfds:
            os.close(fd)
        self._pidfds.clear()
