"""Checks access to a file by its mode bits.

Answers to Linux v6.8 fs/namei.c: generic_permission(). Differs from Linux: supplementary groups and access control
lists are not known. A user who has a right only by one of them is refused.
"""

from __future__ import annotations

import errno
import os
import stat

from kerneld.errors import SysError
from kerneld.task.task import Cred

MAY_EXEC, MAY_WRITE, MAY_READ = stat.S_IXOTH, stat.S_IWOTH, stat.S_IROTH
"""The same values as the lowest three mode bits."""
_ANY_EXEC = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


def check_permission(status: os.stat_result, cred: Cred, wanted: int) -> None:
    """Check MAY_READ, MAY_WRITE and MAY_EXEC of one file or directory. Raises SysError(EACCES).

    The superuser reads and writes everything, and executes a file that anybody may execute.
    """
    mode = status.st_mode
    if cred.superuser:
        allowed = not wanted & MAY_EXEC or stat.S_ISDIR(mode) or mode & _ANY_EXEC != 0
    else:
        shift = 6 if status.st_uid == cred.uid else 3 if status.st_gid == cred.gid else 0
        allowed = mode >> shift & wanted == wanted
    if not allowed:
        raise SysError(errno.EACCES)


def owns_or_may_write(status: os.stat_result, cred: Cred) -> bool:
    """Return whether a file belongs to the caller, or the caller may write to it.

    Source: Linux v6.8 mm/madvise.c:can_do_file_pageout().
    """
    try:
        check_permission(status, cred, MAY_WRITE)
    except SysError:
        return status.st_uid == cred.uid
    return True


def check_search(path: str, cred: Cred) -> None:
    """Check that every directory on the way to an absolute path without links may be searched. Raises SysError."""
    if cred.superuser:
        return
    directory = os.path.dirname(path)
    while True:
        try:
            check_permission(os.stat(directory), cred, MAY_EXEC)
        except OSError as error:
            raise SysError(error.errno or errno.ENOENT) from None
        parent = os.path.dirname(directory)
        if parent == directory:
            return
        directory = parent
