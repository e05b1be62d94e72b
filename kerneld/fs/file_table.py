"""The files that processes have passed in. A descriptor becomes a File; all Files of one inode share one page cache.

Owns every descriptor given to it, and their inodes. Of VMAs it knows only what an `AddressSpace` says. Answers
to Linux v6.8 fs/file_table.c, fs/open.c:do_dentry_open() and fs/exec.c:do_open_execat().

Invariants: an inode is in the table exactly while a VMA maps it or a call holds a File of it; two descriptors of one
open file description give one File (VMAs merge by it), two of one inode give Files with one AddressSpace.

Every File that an `open_` method returns is held for the calling request. The request releases it at its end with
`put_unused`, whether it has mapped the File or not (Linux: fput()).

Differs from Linux: devices other than /dev/zero, even those that Linux can map, are ENODEV.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import resource
from collections.abc import Generator

from kerneld.errors import SysError
from kerneld.fs.changes import Changes
from kerneld.fs.file_limits import FileAccounts, FileRules, Payer
from kerneld.fs.fput import fput
from kerneld.fs.inode import Inode
from kerneld.fs.inotify import NO_WATCH, Inotify
from kerneld.fs.kept_files import KeptFiles, Stamp
from kerneld.fs.mapped_files import Key, MappedFiles
from kerneld.fs.mmap_ops import MmapOps, find_mmap_ops
from kerneld.fs.mounts import Mounts
from kerneld.fs.namei import open_look
from kerneld.fs.open_file import (
    OpenFile,
    describe_fd,
    find_path,
    find_same_description,
    find_seals,
    is_in_memory,
    reopen,
)
from kerneld.fs.permission import MAY_EXEC, MAY_READ, check_permission, check_search, owns_or_may_write
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import Frames
from kerneld.mm.space.dying import room_after
from kerneld.mm.space.pace import Steps
from kerneld.mm.space.writeback import writeback_in_pieces
from kerneld.task.task import Cred, Process
from shared.uapi.page import Pid


class FileTable:
    """The files in use of one machine."""

    def __init__(self, frames: Frames, inotify: Inotify | None = None, rules: FileRules | None = None) -> None:
        """Without `inotify` only faults notice a truncation."""
        self._frames = frames
        rules = rules or FileRules()
        self.mounts = Mounts(allow_network=rules.network_files)
        self.accounts = FileAccounts(rules)
        self._payers: dict[File, Payer] = {}
        self._inodes: dict[tuple[int, int], Inode] = {}
        self._inotify = inotify
        self._mapped = MappedFiles(frames.ram)
        self.kept = KeptFiles()
        """The page cache of files that are not in use."""
        self.changes = Changes()
        """Files whose size has changed, and whose change is not handled yet."""
        self._watched: dict[int, Inode] = {}
        """By number of the watch, the inodes in use that have a watch."""

    @property
    def held(self) -> list[AddressSpace]:
        """The page cache of the files that calls hold."""
        return [inode.mapping for inode in self._inodes.values() if inode.nr_holds]

    def __len__(self) -> int:
        """Return the number of inodes in use."""
        return len(self._inodes)

    def open_fd(self, fd: int, owner: Process | None = None) -> File:
        """Return the File of a descriptor. The table owns the descriptor from now on, and closes it on failure.

        Using the descriptor must not block (`kerneld.fs.mounts`). A file that is not in use yet is charged to `owner`.
        A file that cannot be mapped gives a File that says so. Raises SysError(EBADF) for a number that is no
        descriptor, or for one opened with O_PATH; SysError(EMFILE) when the owner has too many files in use;
        SysError(ENFILE) when the daemon has too few descriptors left.
        """
        try:
            opened = describe_fd(fd)
            _check_descriptors_left(fd)
            file = self._find_open(fd, opened)
            if file is not None:
                fput(fd)
                return file
            ops = find_mmap_ops(fd, opened)
            if not opened.is_regular or not ops.exists or ops.refuses or ops.huge_page_bytes:
                return self._open_uncached(fd, opened, ops)
            return self._open_regular(fd, opened, ops, owner)
        except (SysError, OSError) as error:
            fput(fd)
            raise SysError(error.errno or errno.EBADF) from None

    def _find_open(self, fd: int, opened: OpenFile) -> File | None:
        """Return the File of an open file description that is in use, and hold it."""
        inode = self._inodes.get(opened.inode_key)
        file = inode.find_file(fd, opened) if inode is not None else None
        if inode is not None and file is not None:
            inode.nr_holds += 1
            # The file may have been sealed since.
            file.seals = find_seals(fd) if file.mapping.is_shmem else 0
        return file

    def hold_same(self, file: File, number: int, tid: Pid) -> bool:
        """Hold a File for a call, if descriptor `number` of the thread `tid` belongs to its open file description.

        Return False if not, if nothing uses the File any more, or if the host does not say. It is then not held.
        """
        inode = self._find_inode(file)
        fd = inode.fd_of(file) if inode is not None else None
        if inode is None or fd is None or not find_same_description(fd, number, tid):
            return False
        inode.nr_holds += 1
        file.seals = find_seals(fd) if file.mapping.is_shmem else 0
        return True

    def look_at_seals(self, file: File) -> None:
        """Note the seals that a mapped file has now, for a call that maps it again without a descriptor."""
        inode = self._find_inode(file)
        fd = inode.fd_of(file) if inode is not None else None
        if fd is not None and file.mapping.is_shmem:
            file.seals = find_seals(fd)

    def _open_uncached(self, fd: int, opened: OpenFile, ops: MmapOps) -> File:
        """Return the File of a file that has no page cache: it cannot be mapped, or is /dev/zero.

        The table keeps nothing of it.
        """
        file = _new_file(AddressSpace(self._frames, None), find_path(fd), opened, ops)
        file.dev, file.ino = opened.inode_key
        file.seals = find_seals(fd) if ops.huge_page_bytes else 0
        fput(fd)
        return file

    def _open_regular(self, fd: int, opened: OpenFile, ops: MmapOps, owner: Process | None) -> File:
        os.set_inheritable(fd, False)
        payer = None
        if owner is not None:
            room_after(self._frames, lambda: self.accounts.has_room(owner))
            payer = self.accounts.charge(owner)
        key = opened.inode_key
        inode = self._inodes.get(key)
        is_new = inode is None
        if inode is None:
            inode = self._new_inode(key, fd)
        file = _new_file(inode.mapping, find_path(fd), opened, ops)
        file.dev, file.ino = key
        file.seals = find_seals(fd) if file.mapping.is_shmem else 0
        if payer is not None:
            self._payers[file] = payer
        inode.add_file(file, fd, opened)
        if is_new:
            self._begin_watch(inode, fd)
        inode.nr_holds += 1
        return file

    def _new_inode(self, key: Key, fd: int) -> Inode:
        """Put an inode into the table: with its pages of an earlier use, if the file has not changed since."""
        # From now on kerneld makes the calls of native programs that write to the file.
        self._mapped.add(key)
        stamp = Stamp.of(os.fstat(fd))
        kept = self.kept.take(key, stamp)
        inode = self._inodes[key] = Inode(
            self._frames, key, self._forget, self._file_gone, is_shmem=is_in_memory(fd), stamp=stamp, kept=kept
        )
        inode.on_writable = functools.partial(self._may_be_written, inode)
        return inode

    def _file_gone(self, file: File) -> None:
        payer = self._payers.pop(file, None)
        if payer is not None:
            self.accounts.uncharge(payer)

    def _forget(self, inode: Inode) -> None:
        del self._inodes[inode.key]
        self._mapped.remove(inode.key)
        self.changes.forget(inode)
        if inode.is_kept:
            self.kept.keep(inode.key, inode.stamp, inode.mapping)
        if self._inotify is not None and self._watched.pop(inode.watch, None) is not None:
            self._inotify.rm_watch(inode.watch)

    def _may_be_written(self, inode: Inode, is_writable: bool) -> None:
        """The first mapping that can write to an inode has come, or the last one gone."""
        change = self._mapped.add if is_writable else self._mapped.remove
        change(inode.key, writable=True)

    def before_host_call(self, fd: int) -> Steps:
        """A native program is about to read or write a file by a call: the host gets what has been written in memory.

        The descriptor is used before the first piece only. Raises SysError(EBADF). Source: on Linux both are one page
        cache.
        """
        inode = self._inodes.get(describe_fd(fd).inode_key)
        if inode is not None:
            yield from writeback_in_pieces(inode.mapping, 0, inode.mapping.last_index())

    def after_host_write(self, fd: int, offset: int, length: int) -> Steps:
        """It has written `length` bytes at `offset`, or given the file another size: what is cached is the file again.

        The descriptor is used before the first piece only. Raises SysError(EBADF).
        """
        inode = self._inodes.get(describe_fd(fd).inode_key)
        if inode is not None:
            yield from inode.reread(offset, length)
            yield from self._take_size(inode)

    def host_write(self, fd: int, data: bytes, offset: int | None) -> Generator[None, None, int]:
        """Write to a file for a native program, and to what is cached of it. Return the number of bytes written.

        Without an offset, write at the position of the open file description and move it. Yields when other clients
        may be served; the descriptor is used before the first piece only. Raises SysError as write(2).
        Source: Linux v6.8 mm/filemap.c:generic_perform_write(), which also writes to the cached pages.
        """
        _check_offset(offset or 0)
        try:
            written = os.write(fd, data) if offset is None else os.pwrite(fd, data, offset)
            status = os.fstat(fd)
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
                offset = status.st_size - written
            elif offset is None:
                offset = os.lseek(fd, 0, os.SEEK_CUR) - written
        except OSError as error:
            raise SysError(error.errno or errno.EIO) from None
        inode = self._inodes.get((status.st_dev, status.st_ino))
        if inode is not None:
            inode.take_written(offset, data[:written])
            yield from self._take_size(inode)
        return written

    def host_truncate(self, fd: int, size: int) -> Steps:
        """Give a file another size for a native program. Yields as `host_write`. Raises SysError as ftruncate(2)."""
        _check_offset(size)
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            raise SysError(error.errno or errno.EIO) from None
        inode = self._inodes.get(describe_fd(fd).inode_key)
        if inode is not None:
            yield from self._take_size(inode)

    def _take_size(self, inode: Inode) -> Steps:
        if inode.has_other_size():
            self.changes.note(inode)
            yield from self.changes.finish(inode)

    def _begin_watch(self, inode: Inode, fd: int) -> None:
        watch = self._inotify.add_watch(fd) if self._inotify is not None else NO_WATCH
        if watch != NO_WATCH:
            self._watched[watch] = inode
            inode.begin_watch(watch)

    def take_changes(self) -> None:
        """Handle modified files: unmap the pages that a truncation has removed, within the time of this turn.

        Differs from Linux: a file that was truncated and has grown again counts as written to.
        """
        if self._inotify is None:
            return
        changed = self._inotify.read()
        for watch in list(self._watched) if changed is None else changed:
            inode = self._watched.get(watch)
            if inode is not None:
                self.changes.note(inode)
        self.changes.go_on()

    def put_unused(self, file: File) -> None:
        """Release a File that a call has held. If nothing maps it, it is closed and its cached pages are dropped."""
        inode = self._find_inode(file)
        if inode is None:
            return
        inode.nr_holds -= 1
        if not inode.nr_holds and not inode.mapping.i_mmap:
            inode.mapping.evict()

    def _find_inode(self, file: File) -> Inode | None:
        inode = self._inodes.get((file.dev, file.ino))
        return inode if inode is not None and inode.mapping is file.mapping else None

    def open_exec(self, fd: int, cred: Cred, owner: Process | None = None) -> File:
        """Return the File of a program that `cred` may execute, given by descriptor.

        Raises as `open_fd` does, and SysError(EACCES) for a file that is not regular, not open for reading, on a noexec
        mount, or not permitted. Source: Linux v6.8 fs/exec.c:do_open_execat().
        """
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise SysError(error.errno or errno.EBADF) from None
        file = self.open_fd(fd, owner)
        try:
            if self._find_inode(file) is None or not file.readable or file.noexec:
                raise SysError(errno.EACCES)
            check_permission(status, cred, MAY_EXEC)
        except SysError:
            self.put_unused(file)
            raise
        return file

    def open_path(self, path: str, cred: Cred, owner: Process | None = None) -> File:
        """Return the File at an absolute path, which `cred` may read and execute: the interpreter of a program.

        Never blocks. Raises SysError(ENOENT), also for a relative path; SysError(EACCES) as `open_exec` does, for a
        directory on the way that may not be searched, and for a file system that may block; and other errors of the
        host.
        """
        if not path.startswith("/") or "\0" in path:
            raise SysError(errno.ENOENT)
        try:
            # The file is checked before the open: the open of a FIFO would wait for a writer, and that of a device may
            # have any effect.
            look = open_look(path, self.mounts)
        except OSError as error:
            raise SysError(error.errno or errno.ENOENT) from None
        try:
            status = os.fstat(look)
            check_search(find_path(look), cred)
            check_permission(status, cred, MAY_READ | MAY_EXEC)
            if not OpenFile(0, status).is_regular:
                raise SysError(errno.EACCES)
            fd = reopen(look, os.O_RDONLY)
        except OSError as error:
            raise SysError(error.errno or errno.EACCES) from None
        finally:
            os.close(look)
        return self.open_exec(fd, cred, owner)

    def may_read(self, file: File, cred: Cred) -> bool:
        """Return whether `cred` may read a File's inode. The mode in which it is open does not matter."""
        inode = self._find_inode(file)
        fd = inode.fd_of(file) if inode is not None else None
        if fd is None:
            return file.readable
        try:
            check_permission(os.fstat(fd), cred, MAY_READ)
        except SysError:
            return False
        return True

    def may_write(self, file: File, cred: Cred) -> bool:
        """Return whether `cred` owns a File's inode or may write to it.

        A File without a descriptor decides itself. Anybody may write to the inode of a segment of System V: also who
        has attached it for reading. Source: Linux v6.8 mm/shmem.c:__shmem_file_setup() (S_IRWXUGO).
        """
        inode = self._find_inode(file)
        fd = inode.fd_of(file) if inode is not None else None
        return file.writable or file.is_sysv_shm if fd is None else owns_or_may_write(os.fstat(fd), cred)

    def find_path(self, file: File) -> str:
        """Return the current path of a File: a mapped file may be renamed or deleted."""
        inode = self._find_inode(file)
        fd = inode.fd_of(file) if inode is not None else None
        return (find_path(fd) if fd is not None else "") or file.path

    def close(self) -> None:
        """Close the table's own descriptors, and drop the pages of unused files. No file may be in use any more."""
        self.kept.drop_all()
        self.mounts.close()


def _new_file(mapping: AddressSpace, path: str, opened: OpenFile, ops: MmapOps) -> File:
    file = File(mapping, path, readable=opened.readable, writable=opened.writable)
    file.mappable, file.refuses, file.noexec = ops.exists, ops.refuses, ops.noexec
    file.huge_page_bytes, file.max_bytes, file.is_dev_zero = ops.huge_page_bytes, ops.max_bytes, ops.is_dev_zero
    return file


def _check_offset(offset: int) -> None:
    """Raise SysError(EINVAL) for an offset that is negative as loff_t."""
    if offset >> 63:
        raise SysError(errno.EINVAL)


def _check_descriptors_left(fd: int) -> None:
    """Raise SysError(ENFILE) if few descriptors are left, because connections need the last ones.

    The host gives the lowest free number, so a high number means that few are left.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and fd >= limit - limit // 4:
        raise SysError(errno.ENFILE)
