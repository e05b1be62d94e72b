"""Messages for a pid that kerneld does not know: the pid may belong to a real process.

Reads the host's /proc/PID/status, which takes no process's mmap_lock.
"""

from __future__ import annotations

from pathlib import Path

from shared.terminal import one_line

_MAX_PID = 1 << 22
"""Linux v6.8 include/linux/threads.h: PID_MAX_LIMIT."""


def no_process(pid: int) -> str:
    """Return "kerneld has no process PID", and for the pid of a real process or thread its name."""
    line = f"kerneld has no process {pid}"
    fields = read_status(pid)
    if fields is None:
        return line
    name, leader = one_line(fields.get("Name", "?")), fields.get("Tgid", "")
    if leader != str(pid):
        return f"{line}: it is a real thread of process {leader} ({name})"
    if "VmSize" not in fields:
        return f"{line}: it is a real one without memory ({name}): it has ended, or is the host's kernel's"
    return f"{line}: it is a real one ({name}), whose memory the host has"


def read_status(pid: int) -> dict[str, str] | None:
    """Return the fields of the host's /proc/PID/status; None if the host shows no such process."""
    if not 0 < pid <= _MAX_PID:
        return None
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return {key: value.strip() for key, _, value in pairs}
