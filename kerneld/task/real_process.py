"""Facts about the real process of a process: name, parent, user, and whether the pid still belongs to it.

Reads only files that the host answers at once. /proc/PID/stat may block: newer kernels (for example 6.18.44) take
exec_update_lock for it. An execve holds that lock while it waits for the mmap_lock of the old address space, whose
holder may wait for a file system that never answers. /proc/PID/status, comm and task take neither lock.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from shared.uapi.page import Pid


class RealProcess:
    """One real process. A later process with the same pid is not mistaken for it. Owns a pidfd."""

    __slots__ = ("_pidfd",)

    def __init__(self, pid: Pid) -> None:
        """Raises OSError (EMFILE). For a process that has ended it raises nothing."""
        self._pidfd = -1
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)

    def has_its_pid(self) -> bool:
        """Whether the process still exists, also as a zombie. Then no other process has its pid."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # The process exists and belongs to another user.
        return True

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)


def find_comm(pid: Pid) -> str:
    """Return the real process's name, or an empty string if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def find_ppid(pid: Pid) -> Pid | None:
    """Return the pid of the real process's parent, or None if the process has ended."""
    status = _status(pid)
    return int(_words(status, b"PPid")[0]) if status else None


def find_effective_ids(pid: Pid) -> tuple[int, int] | None:
    """Return the effective user and group of a real process, or None if it has ended."""
    status = _status(pid)
    return (int(_words(status, b"Uid")[1]), int(_words(status, b"Gid")[1])) if status else None


def find_real_creds(pid: Pid, tid: Pid) -> tuple[int, int, int] | None:
    """Return the effective user, group and capabilities of a thread of a real process, or None if it has ended."""
    status = _status(f"{pid}/task/{tid}")
    if not status:
        return None
    return int(_words(status, b"Uid")[1]), int(_words(status, b"Gid")[1]), int(_words(status, b"CapEff")[0], 16)


def find_tid(pid: Pid, number: int) -> Pid | None:
    """Return the tid of a thread of a real process that has this number in its own PID namespace; None if none has it.

    Source: Linux v6.8 fs/proc/array.c:task_state(), the line NSpid.
    """
    if _own_number(f"{pid}/task/{number}") == number:
        return number
    own = _own_number(str(pid))
    if not own:
        # It has ended since it said so. Its first thread is known without a look.
        return pid if number == pid else None
    if own == pid:
        return None
    try:
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return None
    return next((tid for tid in tids if _own_number(f"{pid}/task/{tid}") == number), None)


def _own_number(directory: str) -> int:
    """Return the number of a process or thread in its innermost PID namespace, 0 if it has ended."""
    status = _status(directory)
    if not status:
        return 0
    return int(_words(status, b"NSpid" if b"\nNSpid:" in status else b"Pid")[-1])


def _status(directory: Pid | str) -> bytes:
    """Return the file `status` of a real process or thread, or nothing if it has ended."""
    try:
        with open(f"/proc/{directory}/status", "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""


def _words(status: bytes, name: bytes) -> list[bytes]:
    """Return the words of a line. A process's name, in the first line, has no line's end in it: the host writes \\n."""
    start = status.index(b"\n" + name + b":\t") + len(name) + 3
    return status[start : status.index(b"\n", start)].split()
