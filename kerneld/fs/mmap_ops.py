"""The mmap operation of a file: which files have none, and which have one that refuses, with which errno.

Knows descriptors, and nothing about page caches. For an unknown file system this process tries to map the file itself,
and takes the answer of the host's kernel. Answers to Linux v6.8 mm/mmap.c:do_mmap() (the
checks of `file->f_op->mmap` and path_noexec()) and to the mmap operations of the file systems below.

| the file                                  | its operation in Linux      | errno, and when                |
|-------------------------------------------|-----------------------------|--------------------------------|
| of ext4, XFS, Btrfs, tmpfs, a memory file | the page cache's            | –                              |
| of hugetlbfs, memfd_create(MFD_HUGETLB)   | hugetlbfs_file_mmap()       | see `kerneld.mm.files.hugetlb`       |
| of sysfs, cgroup, resctrl                 | kernfs_fop_mmap()           | ENODEV, old mapping is removed |
| a socket                                  | sock_no_mmap()              | ENODEV, old mapping is removed |
| of procfs, with proc_ops (meminfo)        | proc_reg_mmap(), pde_mmap() | EIO, old mapping is removed    |
| of procfs, of a process (maps), a sysctl  | none                        | ENODEV, nothing is changed     |
| /dev/zero                                 | mmap_zero()                 | –                              |
| a directory, pipe, device, epoll, timerfd | none, or a device's         | ENODEV, nothing is changed     |
| any other regular file                    | as on the host              | as on the host                 |

Differs from Linux: other devices, files of sysfs for device memory, and TCP sockets cannot be mapped.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from kerneld.fs.host_mmap import try_to_map
from kerneld.fs.open_file import OpenFile, StatFs, fstatfs
from shared.uapi.mman import Map

HUGETLBFS_MAGIC = 0x9584_58F6
_PROC_MAGIC, _MQUEUE_MAGIC, _BINFMTFS_MAGIC = 0x9FA0, 0x1980_0202, 0x4249_4E4D
_KERNFS_MAGICS = frozenset({0x6265_6572, 0x0027_E0EB, 0x6367_7270, 0x0765_5821})
"""sysfs, cgroup, cgroup2, resctrl: the users of Linux v6.8 fs/kernfs."""
_PAGE_CACHE_MAGICS = frozenset({0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994})
"""ext4, XFS, Btrfs, tmpfs: file systems whose mmap operation is known."""
_NOEXEC_MAGICS = _KERNFS_MAGICS | {_PROC_MAGIC, _MQUEUE_MAGIC, _BINFMTFS_MAGIC}
"""File systems whose files are never executed, with any mount options (Linux: SB_I_NOEXEC)."""
_SHORT_OF_SOMETHING = frozenset({errno.ENOMEM, errno.EAGAIN, errno.ENFILE, errno.EMFILE})
"""Errnos that the host may give to the daemon and not to its clients."""
_DEV_ZERO = os.makedev(1, 5)
MAX_LFS_FILESIZE = (1 << 63) - 1
_NO_LIMIT = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class MmapOps:
    """The properties of a file for mmap."""

    exists: bool = True
    """Whether the file can be mapped at all (Linux: file->f_op->mmap)."""
    refuses: int = 0
    """The errno with which the operation refuses every mapping, after the old mapping is removed; 0: it does not
    refuse."""
    noexec: bool = False
    """Whether nothing of the file may be executed (Linux: path_noexec())."""
    huge_page_bytes: int = 0
    """The page size of a file of hugetlbfs; 0 for other files."""
    is_dev_zero: bool = False
    """Whether its mappings are anonymous memory."""
    max_bytes: int = MAX_LFS_FILESIZE
    """The end of all offsets (Linux: file_mmap_size_max())."""


def find_mmap_ops(fd: int, opened: OpenFile) -> MmapOps:
    """Return the properties of a descriptor's file for mmap. Raises OSError if the host does not answer."""
    mode = opened.stat.st_mode
    status = fstatfs(fd)
    noexec = status.flags & os.ST_NOEXEC != 0 or status.type in _NOEXEC_MAGICS
    if stat.S_ISSOCK(mode):
        return MmapOps(refuses=errno.ENODEV, noexec=noexec)
    if stat.S_ISCHR(mode) and opened.stat.st_rdev == _DEV_ZERO:
        return MmapOps(noexec=noexec, is_dev_zero=True, max_bytes=_NO_LIMIT)
    if not opened.is_regular:
        limit = MAX_LFS_FILESIZE if stat.S_ISBLK(mode) else _NO_LIMIT
        return MmapOps(exists=False, noexec=noexec, max_bytes=limit)
    if status.type in _PAGE_CACHE_MAGICS:
        return MmapOps(noexec=noexec)
    if status.type == HUGETLBFS_MAGIC:
        return MmapOps(noexec=noexec, huge_page_bytes=status.block_bytes)
    if status.type in _KERNFS_MAGICS:
        return MmapOps(refuses=errno.ENODEV, noexec=noexec)
    exists, refuses = _ask_host(fd, status) if opened.readable else (True, 0)
    return MmapOps(exists=exists, refuses=refuses, noexec=noexec)


def _ask_host(fd: int, status: StatFs) -> tuple[bool, int]:
    """Return whether a readable regular file has an mmap operation, and the errno with which the operation refuses.

    The test: do_mmap() itself refuses a mapping that grows down, but only if there is an operation.
    """
    if try_to_map(fd, Map.GROWSDOWN.value) == errno.ENODEV:
        return False, 0
    refuses = try_to_map(fd, 0)
    if not refuses and status.type == _PROC_MAGIC:
        # The file is a device's memory (/proc/bus/pci), which this machine does not have.
        return True, errno.ENODEV
    return True, 0 if refuses in _SHORT_OF_SOMETHING else refuses
