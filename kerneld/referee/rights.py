"""Whether the host's kernel takes this process for its superuser: what uid 0 alone does not say.

A container's root, or `unshare -Ur`, is uid 0 without capabilities that count: the kernel asks for them in the first
user namespace. Answers to Linux v6.8 kernel/capability.c:capable() and user_namespaces(7).
"""

from __future__ import annotations

from pathlib import Path

_WANTED = {"CAP_IPC_LOCK": 14, "CAP_SYS_RAWIO": 17, "CAP_SYS_ADMIN": 21, "CAP_SYS_NICE": 23}
"""What memory management asks for: mlock, low addresses, overcommit and frames, process_madvise. A root
without CAP_SYS_RESOURCE, as some machines have it, is as good as any but for hard limits (`may_raise_limits`)."""
_CAP_SYS_RESOURCE = 24
_EVERYBODY = ["0", "0", "4294967295"]


def is_host_superuser() -> bool:
    """Tell whether this process has now all that memory management asks the superuser for."""
    return _has(*_WANTED.values())


def may_raise_limits() -> bool:
    """Tell whether the host lets this process raise a hard limit."""
    return _has(_CAP_SYS_RESOURCE)


def sees_frames() -> bool:
    """Tell whether the host shows this process frame numbers. Source: Linux v6.8 fs/proc/task_mmu.c:pagemap_open()."""
    return _has(_WANTED["CAP_SYS_ADMIN"])


def _has(*bits: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    wanted = sum(1 << bit for bit in bits)
    # The first namespace maps all users to themselves. One below it that does the same needs root there to be made.
    return effective & wanted == wanted and Path("/proc/self/uid_map").read_text().split() == _EVERYBODY
