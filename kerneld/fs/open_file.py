"""Facts about an open file, from the host. None of these questions blocks.

Owns the translation of the host's fstat, fcntl and kcmp into values. Knows no page cache and no table. Answers to Linux
v6.8 fs/fcntl.c, kernel/kcmp.c and mm/memfd.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import stat
import struct
from dataclasses import dataclass
from typing import NamedTuple

from kerneld.errors import SysError
from shared.uapi.fcntl import F_SEAL_SEAL
from shared.uapi.page import Pid

O_ACCMODE = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
_NR_KCMP = 312
"""kcmp(2) on x86-64; libc has no function for it."""
_KCMP_FILE = 0


@dataclass(frozen=True, slots=True)
class OpenFile:
    """The host's facts about a descriptor at its arrival."""

    status_flags: int
    """O_ACCMODE and the rest of F_GETFL."""
    stat: os.stat_result

    @property
    def readable(self) -> bool:
        """Whether the file is open for reading."""
        return self.status_flags & O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def writable(self) -> bool:
        """Whether the file is open for writing."""
        return self.status_flags & O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    @property
    def appends(self) -> bool:
        """Whether each write goes to the end of the file, at any offset (O_APPEND)."""
        return self.status_flags & os.O_APPEND != 0

    @property
    def is_direct(self) -> bool:
        """Whether reads and writes must be aligned (O_DIRECT)."""
        return self.status_flags & os.O_DIRECT != 0

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file, which never blocks for long, and not a pipe or a device."""
        return stat.S_ISREG(self.stat.st_mode)

    @property
    def inode_key(self) -> tuple[int, int]:
        """st_dev and st_ino: they identify the inode as long as it is open."""
        return self.stat.st_dev, self.stat.st_ino


def describe_fd(fd: int) -> OpenFile:
    """Return the host's facts about a descriptor. Raises SysError(EBADF), also for one opened with O_PATH."""
    try:
        status_flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        status = os.fstat(fd)
    except OSError as error:
        raise SysError(error.errno or errno.EBADF) from None
    if status_flags & os.O_PATH:
        raise SysError(errno.EBADF)
    return OpenFile(status_flags, status)


def find_path(fd: int) -> str:
    """Return a descriptor's path as Linux shows it, with ` (deleted)` after a deleted file; empty without /proc."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000
"""Linux v6.8 include/uapi/linux/fcntl.h."""
_NR_STATX = 332
"""statx(2) on x86-64; older libcs have no function for it."""
_STATX = struct.Struct("=136x2I112x")
"""Linux v6.8 include/uapi/linux/stat.h: struct statx: stx_dev_major, stx_dev_minor."""
_handle, _mount_id = (ctypes.c_uint * 2)(), ctypes.c_int()
"""A struct file_handle without room for a handle: handle_bytes, handle_type."""


def find_mount_id(fd: int) -> int:
    """Return the number of the mount of a descriptor's file by name_to_handle_at(2); -1 if the host does not tell it.

    It takes a quarter of the time of a read of /proc/self/fdinfo. The host tells the number although the handle has no
    room, so a file system says no more than how long its handles are, and asks no server. Those that have no handles
    (pipes, /proc) do not tell. Source: Linux v6.8 fs/fhandle.c:do_sys_name_to_handle(), fs/fuse/inode.c and
    fs/nfs/export.c: fuse_encode_fh(), nfs_encode_fh().
    """
    _handle[0] = 0
    failed = _libc().name_to_handle_at(fd, b"", _handle, ctypes.byref(_mount_id), _AT_EMPTY_PATH)
    return _mount_id.value if failed and ctypes.get_errno() == errno.EOVERFLOW else -1


def find_device(fd: int) -> str:
    """Return the device of a descriptor's file system as "major:minor", by statx(2); "" if the host does not tell it.

    AT_STATX_DONT_SYNC: no server is asked (FUSE, NFS, SMB, Ceph). Source: Linux v6.8 fs/stat.c:vfs_getattr_nosec(),
    fs/fuse/dir.c:fuse_update_get_attr().
    """
    buffer = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc().syscall(_NR_STATX, fd, b"", flags, 0, buffer) < 0:
        return ""
    return "{}:{}".format(*_STATX.unpack(buffer.raw))


class StatFs(NamedTuple):
    """The result of statfs(2) for the file system of a file."""

    type: int
    """Its magic number: Linux v6.8 include/uapi/linux/magic.h."""
    block_bytes: int
    flags: int
    """ST_ flags of the mount."""


_STATFS = struct.Struct("=qq64xq32x")
"""Linux v6.8 include/uapi/asm-generic/statfs.h: struct statfs64 on x86-64: f_type, f_bsize, f_flags."""


def fstatfs(fd: int) -> StatFs:
    """Return the facts about a descriptor's file system: fstatfs(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS.size)
    if _libc().fstatfs(fd, buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return StatFs._make(_STATFS.unpack(buffer.raw))


def find_seals(fd: int) -> int:
    """Return the F_SEAL_ flags of a descriptor's file; -1 if it cannot have seals. Only files in memory can."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return -1


def may_be_sealed(fd: int) -> bool:
    """Return whether seals may still be added to a descriptor's file."""
    return find_seals(fd) & F_SEAL_SEAL == 0


def is_in_memory(fd: int) -> bool:
    """Return whether the file is in memory only, as memory files and files of a tmpfs: only these have seals."""
    return find_seals(fd) >= 0


_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def find_same_description(fd: int, other: int, tid: Pid | None = None) -> bool | None:
    """Return whether two descriptors belong to one open file description; None if the host does not say.

    `other` is a number of the thread `tid`, or ours. A host without kcmp(2), or a sandbox that forbids it, does not
    say; nor does the host about a process that we may not trace.
    """
    pid = os.getpid()
    order = _libc().syscall(*map(ctypes.c_long, (_NR_KCMP, pid, pid if tid is None else tid, _KCMP_FILE, fd, other)))
    return None if order < 0 else order == 0


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Deallocate bytes of a descriptor's file and keep its size: fallocate(2). Raises OSError."""
    _fallocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, length)


def allocate(fd: int, offset: int, length: int) -> None:
    """Give blocks to the bytes of a file that have none, and keep its size: fallocate(2). Raises OSError."""
    _fallocate(fd, _FALLOC_KEEP_SIZE, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc().fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def find_data(fd: int, start: int, end: int, most: int) -> list[tuple[int, int]]:
    """Return the ranges of [start, end), in bytes, of a descriptor's file that hold data: lseek(2), SEEK_DATA.

    If there are more than `most`, the last range extends to the end. The offset of the file description is not changed.
    Raises OSError if the host does not say.
    """
    own = reopen(fd, os.O_RDONLY)
    found: list[tuple[int, int]] = []
    try:
        while start < end:
            if len(found) >= most:
                found.append((start, end))
                break
            start = os.lseek(own, start, os.SEEK_DATA)
            stop = os.lseek(own, start, os.SEEK_HOLE)
            found.append((start, min(stop, end)))
            start = stop
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    finally:
        os.close(own)
    return found


def reopen(fd: int, flags: int) -> int:
    """Open a descriptor's regular file again with these O_ flags. A lease on the file cannot block this.

    Raises OSError if the host refuses.
    """
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


_NR_OPENAT2 = 437
"""openat2(2) on x86-64; libc has no function for it."""
_AT_FDCWD = -100
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_CACHED = 0x01, 0x02, 0x20
"""Linux v6.8 include/uapi/linux/openat2.h."""
_OPEN_HOW = struct.Struct("=QQQ")
"""struct open_how: flags, mode, resolve."""


def open_cached(path: str, flags: int) -> int | None:
    """Open a file at an absolute path that stays on one mount, if the host finds all of its names in memory.

    None if not: then the host has asked no file system, has crossed no mount, and has waited for nothing. Magic links
    are not followed. Source: Linux v6.8 fs/namei.c: LOOKUP_CACHED, LOOKUP_NO_XDEV.
    """
    how = _OPEN_HOW.pack(flags, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_CACHED)
    fd: int = _libc().syscall(_NR_OPENAT2, _AT_FDCWD, os.fsencode(path), how, ctypes.c_long(len(how)))
    return fd if fd >= 0 else None
