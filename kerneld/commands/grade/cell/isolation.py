"""The walls around a submission: namespaces of Linux, as many as the host allows.

Owns unshare(2) and the mounts in the new namespaces. When the first process of a pid namespace ends, Linux kills all
others in it: a fork bomb too. Sources: unshare(2), pid_namespaces(7), user_namespaces(7), mount_setattr(2);
Linux v6.8 kernel/pid_namespace.c:zap_pid_ns_processes().
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x0002_0000, 0x0800_0000, 0x1000_0000
_CLONE_NEWPID, _CLONE_NEWNET = 0x2000_0000, 0x4000_0000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_NR_MOUNT_SETATTR, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, 0x8000, 1
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _SIGKILL = 1, 36, 9
_SCRATCH_BYTES = 256 << 20
_NAMES = (
    ("a user of its own", "another user"), ("its own processes", "a pid namespace"),
    ("its own writable files", "a mount namespace"), ("no network", "a network namespace"),
    ("a limit of processes", "a limit of processes"),
)  # fmt: skip
"""Of the walls, in their order: each where it is there, and where it is missing."""

_libc = ctypes.CDLL(None, use_errno=True)


class Walls(NamedTuple):
    """Which walls there are."""

    user: bool = False
    """The programs of the submission run as a user of their own, who owns nothing else."""
    processes: bool = False
    """They see and reach no process outside."""
    files: bool = False
    """They can write in their own scratch memory only."""
    network: bool = False
    """They have no network."""
    limit: bool = False
    """Linux makes no more processes for them than their limit: a fork bomb ends itself."""

    def words(self) -> tuple[str, ...]:
        """Return the walls that there are, for people."""
        return tuple(there for (there, _), is_there in zip(_NAMES, self, strict=True) if is_there)

    def missing(self) -> tuple[str, ...]:
        """Return the walls that there are not, for people."""
        return tuple(lacking for (_, lacking), is_there in zip(_NAMES, self, strict=True) if not is_there)


class WallError(Exception):
    """A wall that was promised cannot be built."""


def _check(result: int, what: str) -> None:
    if result < 0:
        raise WallError(f"{what}: {os.strerror(ctypes.get_errno())}")


def unshare(wanted: Walls) -> Walls:
    """Leave the namespaces of the host, in this process or for its children, and return the walls that now stand.

    Another user needs root. Without root a user namespace gives the right to make the others. Whether processes are
    counted shows when there are some: `Room.is_counted`.
    """
    is_root = os.geteuid() == 0
    has_rights = is_root
    if not is_root and (wanted.processes or wanted.files or wanted.network):
        has_rights = _unshare_user()
    if not has_rights:
        return Walls()
    found = {
        "files": wanted.files and _libc.unshare(_CLONE_NEWNS) == 0,
        "network": wanted.network and _libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC) == 0,
    }
    # A pid namespace needs its own /proc, and that needs a mount namespace.
    found["processes"] = wanted.processes and found["files"] and _libc.unshare(_CLONE_NEWPID) == 0
    return Walls(user=wanted.user and is_root, limit=wanted.limit, **found)


def _unshare_user() -> bool:
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        return False
    # user_namespaces(7): a group map by an unprivileged process needs "deny" first.
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
    try:
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1\n")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1\n")
    except OSError:
        return False
    return True


def die_with_parent() -> None:
    """Have Linux kill this process when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def user_namespace() -> str:
    """Return the name of this process's user namespace."""
    return os.readlink("/proc/self/ns/user")


def counts_apart(before: str) -> bool:
    """Return whether Linux counts this process and its descendants apart from all others of the same user.

    So it is in a user namespace of their own; `before` is the one before. Linux counts so since 5.14: v6.8
    kernel/ucount.c:is_rlimit_overlimit(), which kernel/fork.c:copy_process() asks.
    """
    major, minor = (int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    return user_namespace() != before and (major, minor) >= (5, 14)


def adopt_orphans() -> None:
    """Make this process the parent of all its descendants whose parents have ended. Source: prctl(2)."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def prepare_files(walls: Walls, keep: Iterable[str]) -> None:
    """Make all files read-only but fresh memory at /tmp, /var/tmp and /dev/shm, and show the new processes in /proc.

    `keep` are directories that must stay visible, also if they are below /tmp: Python's, and kerneld's own. Raises
    WallError.
    """
    if not walls.files:
        return
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    if walls.processes:
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    held = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY)) for path in sorted(set(keep)) if _is_scratch(path)]
    attributes = struct.pack("<QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(_NR_MOUNT_SETATTR, -1, b"/", _AT_RECURSIVE, attributes, len(attributes))
    _check(result, "mount_setattr")
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.path.isdir(place) and not os.path.islink(place):
            _mount("tmpfs", place, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={_SCRATCH_BYTES},nr_inodes=20000,mode=1777")
    for path, fd in held:
        os.makedirs(path, exist_ok=True)
        _mount(f"/proc/self/fd/{fd}", path, None, _MS_BIND | _MS_REC)
        os.close(fd)


def scratch_bytes(walls: Walls) -> int:
    """Return how much the fresh memory for files holds now, in bytes."""
    if not walls.files:
        return 0
    used = 0
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        with contextlib.suppress(OSError):
            status = os.statvfs(place)
            used += (status.f_blocks - status.f_bfree) * status.f_frsize if status.f_blocks else 0
    return used


def _is_scratch(path: str) -> bool:
    return path.startswith(("/tmp/", "/var/tmp/", "/dev/shm/"))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def python_directories() -> list[str]:
    """Return the directories that Python and kerneld are loaded from.

    An editable installation finds a checkout by an import hook: then its directory is not in sys.path.
    """
    checkout = str(Path(__file__).resolve().parents[4])
    return [path for path in (sys.prefix, sys.base_prefix, *sys.path, checkout) if os.path.isdir(path)]
