"""Tells whether the host's list of mounts has changed. To ask takes a hundredth of the time of a reading.

Answers to Linux v6.8 fs/proc_namespace.c:mounts_poll().
"""

from __future__ import annotations

import contextlib
import os
import select


class MountWatch:
    """A descriptor of the list of mounts."""

    def __init__(self) -> None:
        self._fd = -1
        self._poll = select.poll()
        with contextlib.suppress(OSError):
            self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._fd, select.POLLPRI)

    def have_changed(self) -> bool:
        """Return whether mounts have come or gone since the last question; True if this cannot be found out."""
        return self._fd < 0 or bool(self._poll.poll(0))

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
