"""Whether to use a descriptor can make the daemon wait for somebody: told without asking the file system that it is of.

Owns the list of mounts, as the host shows it. fstat, statfs and close of a file may each be a question to a server that
never answers (FUSE, NFS); what is asked here is answered by the host's kernel alone: /proc/self/fdinfo, mountinfo and
the descriptor's link. Answers to Linux v6.8 fs/proc_namespace.c and fs/proc/fd.c.

| the descriptor is of                                               | it is                                    |
|--------------------------------------------------------------------|------------------------------------------|
| a pipe, an anonymous inode (pidfd, eventfd …), a memory file       | harmless                                 |
| a regular file or directory of a local file system                 | harmless                                 |
| anything on a file system that another machine or a process serves | one to wait for, unless that is allowed  |
| a file of a mount that we do not see: another mount namespace's    | likewise: anybody may mount FUSE there   |
| a file of the mount that our own root is on, seen or not (chroot)  | as its file system is                    |
| a socket, a device but /dev/null and the like                      | one to wait for: its last close may take |
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kerneld.fs.open_file import fstatfs, is_in_memory

SERVED = frozenset({
    "9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "fuse", "fuseblk", "gfs2", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "vboxsf",
})  # fmt: skip
"""File systems whose answers come from elsewhere. Not virtiofs: who serves that is the host of this very machine."""
_SERVED_MAGICS = {
    0x6573_5546: "fuse", 0x6969: "nfs", 0x0102_1997: "9p", 0xFF53_4D42: "cifs", 0xFE53_4D42: "smb3", 0x517B: "smbfs",
    0x00C3_6400: "ceph", 0x0187: "autofs", 0x5346_414F: "afs", 0x7375_7245: "coda", 0x7461_636F: "ocfs2",
    0x0116_1970: "gfs2", 0x786F_4256: "vboxsf", 0x0BD0_0BD0: "lustre", 0x2003_0528: "orangefs", 0x564C: "ncpfs",
    0x4750_4653: "gpfs", 0x1983_0326: "beegfs",
}  # fmt: skip
"""The same by their numbers: Linux v6.8 include/uapi/linux/magic.h, statfs(2)."""
_MOUNTINFO = Path("/proc/self/mountinfo")
_MEM_MAJOR = 1
"""Linux v6.8 include/uapi/linux/major.h: MEM_MAJOR."""


class Mounts:
    """The mounts of this process's namespace, as they were when last looked at."""

    def __init__(self, *, allow_network: bool = False) -> None:
        """With `allow_network` files of every file system are harmless: whoever said so answers for it."""
        self._allow_network = allow_network
        self._fstypes: dict[int, str] = {}
        self._own_root = _find_own_root()
        self._spare = _open_spare()

    def look(self) -> None:
        """See what is mounted now: to be called when a descriptor has come, whose mount cannot go from then on.

        Where that cannot be seen no mount is known.
        """
        try:
            text = _read_mountinfo()
        except OSError:
            with self._with_spare():
                try:
                    text = _read_mountinfo()
                except OSError:
                    text = ""
        # proc(5), /proc/pid/mountinfo: the mount's number comes first, its type behind the lone dash.
        self._fstypes = self._own_root | {
            int(line.split(" ", 1)[0]): line.partition(" - ")[2].split(" ", 1)[0] for line in text.splitlines()
        }

    def find_fstype(self, fd: int) -> str | None:
        """Return the type of the file system that a descriptor's file is on, or None for a mount that was not seen."""
        return self._fstypes.get(_find_mount(fd))

    def may_wait(self, fd: int) -> bool:
        """Tell whether to use or to close a descriptor may make its user wait, as the table above says.

        So it may where nothing can be found out.
        """
        try:
            return self._may_wait(fd)
        except OSError:
            pass
        # A client has sent so many that there is none left to look with, but for this one.
        with self._with_spare():
            try:
                return self._may_wait(fd)
            except OSError:
                return True

    @contextlib.contextmanager
    def _with_spare(self) -> Iterator[None]:
        """Let go of the spare descriptor for a moment; where it does not come back there is none until it does."""
        self.close()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._spare = _open_spare()

    def _may_wait(self, fd: int) -> bool:
        fstype = self.find_fstype(fd)
        if fstype is not None and not self.is_served(fstype):
            return _lingers(os.fstat(fd))
        link = os.readlink(f"/proc/self/fd/{fd}")
        if link.startswith(("pipe:", "anon_inode:")):
            return False
        return link.startswith("socket:") or not (self._allow_network or is_in_memory(fd))

    def is_served(self, fstype: str) -> bool:
        """Tell whether files of this type of file system are to be left alone."""
        return not self._allow_network and fstype.partition(".")[0] in SERVED

    def close(self) -> None:
        """Close what is kept for looking."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)


def _read_mountinfo() -> str:
    return _MOUNTINFO.read_text(errors="surrogateescape")


def _find_own_root() -> dict[int, str]:
    """Return the number and the type of the mount that our root directory is on.

    In a chroot whose directory is no mount's own root it is not among those that the host shows us: it is seen all the
    same, as every program of ours is loaded from it.
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
    """Tell whether the last close of a file that is here may take time: /dev/null and its like are always there."""
    mode = status.st_mode
    is_memory = stat.S_ISCHR(mode) and os.major(status.st_rdev) == _MEM_MAJOR
    return stat.S_ISBLK(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and not is_memory)


def _find_mount(fd: int) -> int:
    """Return the number of the mount that a descriptor's file is on; -1 where the host does not say."""
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 4096)
    finally:
        os.close(info)
    _, found, number = text.partition(b"mnt_id:")
    return int(number.split(None, 1)[0]) if found else -1
