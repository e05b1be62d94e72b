"""Finds whether this process is a superuser for the host's kernel. The uid 0 is not enough.

The root of a container, or of `unshare -Ur`, has uid 0, but not the capabilities in the first user namespace, which the
kernel checks. Answers to Linux v6.8 kernel/capability.c:capable() and user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from shared.uapi.syscalls import Nr
from shared.uapi.userfaultfd import UFFD_USER_MODE_ONLY

_WANTED = {"CAP_IPC_LOCK": 14, "CAP_SYS_RAWIO": 17, "CAP_SYS_ADMIN": 21, "CAP_SYS_NICE": 23}
"""The capabilities that memory management checks: for mlock, low addresses, overcommit and frames, process_madvise. On
some machines root has no CAP_SYS_RESOURCE. That matters only for hard limits (`may_raise_limits`)."""
_CAP_SYS_RESOURCE = 24
_EVERYBODY = ["0", "0", "4294967295"]


def is_host_superuser() -> bool:
    """Return whether this process has all capabilities that memory management checks."""
    return _has(*_WANTED.values())


def may_raise_limits() -> bool:
    """Return whether the host allows this process to raise a hard limit."""
    return _has(_CAP_SYS_RESOURCE)


def sees_frames() -> bool:
    """Return whether the host shows frame numbers to this process.

    Source: Linux v6.8 fs/proc/task_mmu.c:pagemap_open().
    """
    return _has(_WANTED["CAP_SYS_ADMIN"])


def has_own_ipc() -> bool:
    """Return whether this process may make a namespace for System V shared memory, which goes with its last process."""
    return sees_frames() and Path("/proc/self/ns/ipc").exists()


def has_userfaultfd() -> bool:
    """Return whether the host has userfaultfd(2), and lets this process use it for its own accesses."""
    fd: int = ctypes.CDLL(None).syscall(int(Nr.USERFAULTFD), UFFD_USER_MODE_ONLY)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _has(*bits: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    wanted = sum(1 << bit for bit in bits)
    # The first namespace maps all users to themselves. Only its root can make another namespace with the same map.
    return effective & wanted == wanted and Path("/proc/self/uid_map").read_text().split() == _EVERYBODY
