"""What the host says of the real process behind one of the kernel's: name, parent, user, and whether it is the same.

Asks only what the host answers at once. /proc/PID/stat is not of that kind: newer kernels (6.18.44, for one) take
exec_update_lock for it, which an execve holds while it waits for the mmap_lock of the old address space, and that for a
file system that may never answer. /proc/PID/status, comm and task take neither.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from shared.uapi.page import Pid


class RealProcess:
    """One real process, which no other that has its pid later is taken for. Owns a pidfd."""

    __slots__ = ("_pidfd",)

    def __init__(self, pid: Pid) -> None:
        """Raises OSError (EMFILE), but for a process that has gone."""
        self._pidfd = -1
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)

    def has_its_pid(self) -> bool:
        """Whether it is there, a zombie too: nobody else has its pid."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # It is there, and another user's.
        return True

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)


def find_comm(pid: Pid) -> str:
    """Return the real process's name, or an empty string when it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def find_ppid(pid: Pid) -> Pid | None:
    """Return the pid of the real process's parent, or None when it has gone."""
    fields = _status(pid)
    return int(fields["PPid"][0]) if fields else None


def find_effective_ids(pid: Pid) -> tuple[int, int] | None:
    """Return the effective user and group of a real process, or None when it has gone."""
    fields = _status(pid)
    return (int(fields["Uid"][1]), int(fields["Gid"][1])) if fields else None


def _status(pid: Pid) -> dict[str, list[str]]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: words.split() for name, _, words in (line.partition(":") for line in lines)}
