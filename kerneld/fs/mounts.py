"""Tells whether using a descriptor can block the daemon, without a question to the descriptor's file system.

Owns the list of mounts of the host. fstat, statfs and close of a file may each ask a server that never answers (FUSE,
NFS). So this module asks only what the host's kernel answers itself: name_to_handle_at without room for a handle,
/proc/self/fdinfo, mountinfo and the link of the descriptor. Of a mount of another mount namespace it asks the list of
mounts of the process that has passed the descriptor: numbers of mounts are the same in all namespaces. In a chroot that
list may be empty; then it asks statx for the device, with AT_STATX_DONT_SYNC. Answers to Linux v6.8
fs/proc_namespace.c and fs/proc/fd.c.

| the descriptor is                                                  | result                                   |
|--------------------------------------------------------------------|------------------------------------------|
| a pipe, an anonymous inode (pidfd, eventfd …), a memory file       | harmless                                 |
| a regular file or directory of a local file system                 | harmless                                 |
| on a file system that another machine or a process serves          | may block, unless the options allow it   |
| on a mount of another mount namespace, of a file system of our own | as on ours                               |
| on another mount there: a file system that nobody serves           | harmless                                 |
| any other mount that is not in the list                            | may block: any user may mount FUSE there |
| on the mount of our own root, in the list or not (chroot)          | depends on the file system               |
| a socket, or a device (except /dev/null and similar ones)          | may block: its last close may take long  |
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from kerneld.fs.open_file import find_device, find_mount_id, fstatfs, is_in_memory
from shared.uapi.page import Pid

SERVED = frozenset({
    "9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "fuse", "fuseblk", "gfs2", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "vboxsf",
})  # fmt: skip
"""File systems that another machine or a process serves. virtiofs is not one: its server is the host of this
machine."""
_SERVED_MAGICS = {
    0x6573_5546: "fuse", 0x6969: "nfs", 0x0102_1997: "9p", 0xFF53_4D42: "cifs", 0xFE53_4D42: "smb3", 0x517B: "smbfs",
    0x00C3_6400: "ceph", 0x0187: "autofs", 0x5346_414F: "afs", 0x7375_7245: "coda", 0x7461_636F: "ocfs2",
    0x0116_1970: "gfs2", 0x786F_4256: "vboxsf", 0x0BD0_0BD0: "lustre", 0x2003_0528: "orangefs", 0x564C: "ncpfs",
    0x4750_4653: "gpfs", 0x1983_0326: "beegfs",
}  # fmt: skip
"""The same file systems by their numbers: Linux v6.8 include/uapi/linux/magic.h, statfs(2)."""
_UNSERVED = frozenset({
    "bcachefs", "btrfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs",
    "hugetlbfs", "iso9660", "mqueue", "proc", "ramfs", "squashfs", "sysfs", "tmpfs", "vfat", "xfs", "zfs",
})  # fmt: skip
"""File systems of another mount namespace that nobody serves. overlay is not one: any user may mount it there, over
FUSE."""
_MEM_MAJOR = 1
"""Linux v6.8 include/uapi/linux/major.h: MEM_MAJOR."""
_USERFAULTFD = "/dev/userfaultfd"


class Mounts:
    """The mounts of this process's namespace, from the last `look`."""

    def __init__(self, *, allow_network: bool = False) -> None:
        """With `allow_network` files of every file system count as harmless."""
        self._allow_network = allow_network
        self._fstypes: dict[int, str] = {}
        self._fstypes_by_device: dict[str, str] = {}
        self._own_root = _find_own_root()
        self._spare = _open_spare()
        self._is_known = False
        self.have_changed: Callable[[], bool] = lambda: True
        """Tells whether mounts have come or gone since it was asked last. The server knows
        (`kerneld.server.mount_watch`)."""

    def look(self) -> None:
        """Read the list of mounts, if it has changed. Call it after a descriptor has come: its mount cannot go while it
        is open.

        If the list cannot be read, no mount is known.
        """
        if self._is_known and not self.have_changed():
            return
        self._is_known = True
        try:
            text = _read_mountinfo()
        except OSError:
            with self._with_spare():
                try:
                    text = _read_mountinfo()
                except OSError:
                    text = ""
                    self._is_known = False
        mounts = list(_parse(text))
        self._fstypes = self._own_root | {number: fstype for number, _, fstype in mounts}
        self._fstypes_by_device = {device: fstype for _, device, fstype in mounts}

    def find_fstype(self, fd: int) -> str | None:
        """Return the type of a descriptor's file system, or None for a mount that is not in the list."""
        return self._fstypes.get(_find_mount(fd))

    def may_wait(self, fd: int, pid: Pid) -> bool:
        """Return whether using or closing a descriptor may block, as the table above says.

        `pid` is the process that has passed it. It may block if nothing can be found out.
        """
        try:
            return self._may_wait(fd, pid)
        except OSError:
            pass
        # A client may have sent so many descriptors that only the spare one is left for this check.
        with self._with_spare():
            try:
                return self._may_wait(fd, pid)
            except OSError:
                return True

    @contextlib.contextmanager
    def _with_spare(self) -> Iterator[None]:
        """Close the spare descriptor for a moment, and open it again. If that fails, a later call tries again."""
        self.close()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._spare = _open_spare()

    def _may_wait(self, fd: int, pid: Pid) -> bool:
        fstype = self.find_fstype(fd)
        if fstype is not None and not self.is_served(fstype):
            return _lingers(os.fstat(fd))
        link = os.readlink(f"/proc/self/fd/{fd}")
        if link.startswith(("pipe:", "anon_inode:")):
            return False
        if fstype is None and link.startswith("/"):
            fstype = self._find_fstype_elsewhere(fd, pid)
            if fstype is not None and not self.is_served(fstype):
                return _lingers(os.fstat(fd))
        return link.startswith("socket:") or not (self._allow_network or is_in_memory(fd))

    def _find_fstype_elsewhere(self, fd: int, pid: Pid) -> str | None:
        """Return the type of a file system that is mounted in a process's namespace, if it can be trusted, or None.

        Nothing of this list is kept: the number of a mount may be another's as soon as no descriptor is on it.
        """
        mount = _find_mount(fd)
        try:
            text = _read_mountinfo(pid)
        except OSError:
            text = ""
        for number, device, fstype in _parse(text):
            if number == mount:
                return self._fstypes_by_device.get(device, fstype if fstype in _UNSERVED else None)
        return self._fstypes_by_device.get(find_device(fd))

    def is_served(self, fstype: str) -> bool:
        """Return whether files of this type of file system must not be used."""
        return not self._allow_network and fstype.partition(".")[0] in SERVED

    def close(self) -> None:
        """Close the spare descriptor."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)


def _read_mountinfo(pid: Pid | str = "self") -> str:
    return Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")


def _parse(text: str) -> Iterator[tuple[int, str, str]]:
    """Give the number, device and type of each mount.

    proc(5), /proc/pid/mountinfo: the number is the first word, the device the third, the type behind the lone dash.
    """
    for line in text.splitlines():
        number, _, device = line.split(" ", 3)[:3]
        yield int(number), device, line.partition(" - ")[2].split(" ", 1)[0]


def _find_own_root() -> dict[int, str]:
    """Return the number and the type of the mount of our root directory.

    In a chroot the host's list may not have this mount. It is still known to be usable, because every program here is
    loaded from it.
    """
    try:
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        return {_find_mount(root): _SERVED_MAGICS.get(fstatfs(root).type, "root")}
    except OSError:
        return {}
    finally:
        os.close(root)


def _open_spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _lingers(status: os.stat_result) -> bool:
    """Return whether the last close of a local file may take long.

    For /dev/null and similar devices it does not, nor for /dev/userfaultfd.
    """
    mode = status.st_mode
    if stat.S_ISCHR(mode):
        return os.major(status.st_rdev) != _MEM_MAJOR and not is_userfaultfd_device(status)
    return stat.S_ISBLK(mode) or stat.S_ISSOCK(mode)


def is_userfaultfd_device(status: os.stat_result) -> bool:
    """Return whether a status is that of the host's /dev/userfaultfd, whose number the host chooses."""
    if not stat.S_ISCHR(status.st_mode):
        return False
    try:
        return os.stat(_USERFAULTFD).st_rdev == status.st_rdev
    except OSError:
        return False


def _find_mount(fd: int) -> int:
    """Return the number of the mount of a descriptor's file; -1 if the host does not answer."""
    number = find_mount_id(fd)
    if number >= 0:
        return number
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 4096)
    finally:
        os.close(info)
    _, found, words = text.partition(b"mnt_id:")
    return int(words.split(None, 1)[0]) if found else -1
