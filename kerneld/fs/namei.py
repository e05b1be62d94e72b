"""Walks a path one name at a time, and asks no file system that may not answer.

Owns the walk. Answers to Linux v6.8 fs/namei.c:link_path_walk(). Differs from Linux: the magic links of /proc (`cwd`,
`root`, `exe`) are followed by their text.
"""

from __future__ import annotations

import errno
import os
import stat

from kerneld.errors import SysError
from kerneld.fs.mounts import Mounts
from kerneld.fs.open_file import open_cached

_MAX_LINKS = 40
"""Linux v6.8 include/linux/namei.h: MAXSYMLINKS."""
_MAX_NAMES = 4096
"""The most names in a walk: as many as in the longest path with one long link. A name costs as much as a hundred in
Linux."""
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_look(path: str, mounts: Mounts) -> int:
    """Return an O_PATH descriptor of the file at an absolute path. The file itself is not opened.

    If the host has all names in memory and the path stays on the mount of the root directory, one call of the host
    finds the file, and no file system is asked.

    Raises SysError(EACCES) if a part of the path lies on a file system that may block, SysError(ELOOP) for too many
    links or names, and OSError for other errors of the host.
    """
    mounts.look()
    found = open_cached(path, os.O_PATH | os.O_CLOEXEC)
    if found is not None:
        fstype = mounts.find_fstype(found)
        if fstype is not None and not mounts.is_served(fstype):
            return found
        os.close(found)
    return _walk(path, mounts)


def _walk(path: str, mounts: Mounts) -> int:
    at = os.open("/", _LOOK)
    names = path.split("/")[::-1]
    nr_links = nr_names = 0
    try:
        while names:
            name = names.pop()
            if name in ("", "."):
                continue
            nr_names += 1
            if nr_names > _MAX_NAMES:
                raise SysError(errno.ELOOP)
            found = os.open(name, _LOOK, dir_fd=at)
            try:
                fstype = mounts.find_fstype(found)
                if fstype is None or mounts.is_served(fstype):
                    raise SysError(errno.EACCES)
                is_link = stat.S_ISLNK(os.fstat(found).st_mode)
                target = os.readlink("", dir_fd=found) if is_link else ""
            except BaseException:
                os.close(found)
                raise
            if not is_link:
                os.close(at)
                at = found
                continue
            os.close(found)
            nr_links += 1
            if nr_links > _MAX_LINKS:
                raise SysError(errno.ELOOP)
            names += target.split("/")[::-1]
            if target.startswith("/"):
                os.close(at)
                at = os.open("/", _LOOK)
    except BaseException:
        os.close(at)
        raise
    return at
