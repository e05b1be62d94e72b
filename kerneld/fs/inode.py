"""One inode of the host as the page cache's backing: where pages are read from and written to.

Owns the descriptors of one inode, from the first open to the moment that nothing maps or holds it. Knows no VMA
but as a user of a File: the page cache says when the inode is unused. Answers to Linux v6.8 include/linux/fs.h (struct
inode).

Invariants: while an inode is in its table at least one descriptor of it is open, so that the host cannot give its
number to another file. Every descriptor is closed exactly once: by `close`, or before that when its File is not used.

Differs from Linux: reads and writes are the daemon's own. A file system that does not answer would hold every process
up, not just the one that asked: files of such are not taken in (`kerneld.fs.mounts`).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from kerneld.fs.changes import Pieces
from kerneld.fs.host_mmap import ResidentPages
from kerneld.fs.inotify import NO_WATCH
from kerneld.fs.open_file import OpenFile, find_data, find_same_description, may_be_sealed, punch_hole, reopen
from kerneld.fs.writable_mapping import WritableMapping
from kerneld.mm.files.filemap import AddressSpace, File
from kerneld.mm.frames.frames import Frames
from kerneld.mm.space.truncate import pagecache_isize_extended, truncate_in_pieces
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, page_align

MOST_EXTENTS = 1024
"""Pieces of data that are looked for in a file that has grown: a few milliseconds."""
_RWF_NOAPPEND = 1 << 5
"""pwritev2(2): write where told in spite of O_APPEND, from Linux 6.9 on."""


class Inode:
    """An inode that is mapped or about to be, with its open file descriptions."""

    def __init__(
        self,
        frames: Frames,
        key: tuple[int, int],
        on_close: Callable[[Inode], None],
        on_file_gone: Callable[[File], None],
        *,
        is_shmem: bool,
    ) -> None:
        """`on_file_gone` is told of each File that is let go of, `on_close` when all descriptors have been closed."""
        self.key = key
        self.mapping = AddressSpace(frames, self, is_shmem=is_shmem)
        self.nr_holds = 0
        """Calls under way that use one of its Files, mapped or not."""
        self._files: dict[File, tuple[int, OpenFile]] = {}
        self._reader = -1
        self._writer = -1
        self._writer_appends = False
        self._real_mapping: WritableMapping | None = None
        self._resident = ResidentPages()
        self._size_bytes = 0
        self._most_bytes: int | None = None
        """The size while a truncation is acted upon: no page beyond comes in."""
        self.watch = NO_WATCH
        """The number of its inotify watch."""
        self._watched_bytes = 0
        """The size when it was last looked at for a truncation: faults ask in between, and must not hide one."""
        self.on_writable: Callable[[bool], None] = lambda is_writable: None
        """Told when the first mapping that can write comes, and when the last one goes."""
        self._is_writable = False
        self._on_close = on_close
        self._on_file_gone = on_file_gone

    def find_file(self, fd: int, opened: OpenFile) -> File | None:
        """Return the File of the open file description that `fd` belongs to, or None.

        Where the host cannot compare descriptions, one with the same access mode and O_APPEND counts as the same.
        """
        for file, (other, described) in self._files.items():
            same = find_same_description(fd, other)
            if same is None:
                same = (described.readable, described.writable, described.appends) == (
                    opened.readable,
                    opened.writable,
                    opened.appends,
                )
            if same:
                return file
        return None

    def add_file(self, file: File, fd: int, opened: OpenFile) -> None:
        """Keep the descriptor of a new open file description: pages are read and written through it from now on."""
        self.close_unused()
        self._files[file] = (fd, opened)
        if opened.readable and self._reader < 0:
            self._reader = self._plain_fd(fd, os.O_RDONLY) if opened.is_direct else fd
        if opened.writable and (self._writer < 0 or self._writer_appends):
            self._set_writer(fd, opened)

    def _set_writer(self, fd: int, opened: OpenFile) -> None:
        writer = self._plain_fd(fd, os.O_WRONLY) if opened.appends or opened.is_direct else fd
        appends = opened.appends and writer == fd
        if self._writer < 0 or not appends:
            replaced, self._writer, self._writer_appends = self._writer, writer, appends
            self._close_if_unused(replaced)

    def _plain_fd(self, fd: int, access: int) -> int:
        """Return a descriptor without O_APPEND and O_DIRECT, or `fd` itself where the host refuses one."""
        try:
            return reopen(fd, access)
        except OSError:
            return fd

    def _fds(self) -> set[int]:
        return {fd for fd, _ in self._files.values()}

    def close_unused(self) -> None:
        """Close the descriptors of Files that no VMA uses any more, while others of the inode are used."""
        if self.nr_holds:
            return
        used = {vma.file for vma in self.mapping.i_mmap}
        for file in [file for file in self._files if file not in used]:
            fd, _ = self._files.pop(file)
            self._close_if_unused(fd)
            self._on_file_gone(file)

    def _close_if_unused(self, fd: int) -> None:
        if fd >= 0 and fd not in (self._reader, self._writer) and fd not in self._fds():
            os.close(fd)

    def fd_of(self, file: File) -> int | None:
        """Return the descriptor that is kept for a File, or None."""
        kept = self._files.get(file)
        return None if kept is None else kept[0]

    def size_bytes(self) -> int:
        """Return the file's size now, in bytes; where the host does not say any more, the last that it said."""
        with contextlib.suppress(OSError):
            self._size_bytes = os.fstat(self._reader if self._reader >= 0 else self._writer).st_size
        if self._most_bytes is not None:
            return min(self._size_bytes, self._most_bytes)
        return self._size_bytes

    def begin_watch(self, watch: int) -> None:
        """Note the size from which on a truncation is to be noticed; the inode has a descriptor by now."""
        self.watch = watch
        self._watched_bytes = self.size_bytes()

    def has_other_size(self) -> bool:
        """Tell whether the file is shorter or longer than when its change was last acted upon."""
        return self.size_bytes() != self._watched_bytes

    def begin_change(self) -> Pieces:
        """Return what lets go of what lies beyond the file's end if it is shorter now, or notes holes if it is longer.

        That yields between pieces. From now until it is done the file is no longer than it is now, however often it
        grows. Source: Linux v6.8 mm/truncate.c:truncate_setsize(), which on Linux whoever truncates calls.
        """
        size, before = self.size_bytes(), self._watched_bytes
        self._watched_bytes = size
        if size < before:
            self._most_bytes = size
            return self._cut_in_pieces(size)
        return self._note_holes(before, size)

    def _cut_in_pieces(self, size: int) -> Pieces:
        try:
            yield from truncate_in_pieces(self.mapping, size)
        finally:
            self._most_bytes = None

    def _note_holes(self, before: int, size: int) -> Pieces:
        """What lies behind MOST_EXTENTS pieces of data counts as data: no file is so large that others wait long."""
        if self.mapping.is_shmem:
            return
        pagecache_isize_extended(self.mapping, before, size)
        with contextlib.suppress(OSError):
            for start, end in find_data(self._reader, page_align(before), size, MOST_EXTENTS):
                self.mapping.host.write(start >> PAGE_SHIFT, end + PAGE_SIZE - 1 >> PAGE_SHIFT)
        yield

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer at the end of the file. Raises OSError.

        Nothing beyond the size is asked for: files that the host makes up (of /proc) have none, and may block.
        """
        length = min(length, self.size_bytes() - offset)
        data = b""
        while len(data) < length:
            chunk = os.pread(self._reader, length - len(data), offset + len(data))
            if not chunk:
                break
            data = data + chunk if data else chunk
        return data

    def map_writable(self) -> None:
        """Keep a memory file from being sealed against writing, as Linux does while such a mapping lives: hold one.

        Raises OSError(EPERM) where it has been. A host that has no room for it lets the file be sealed.
        """
        self._note_writable(True)
        fd = next((fd for fd, opened in self._files.values() if opened.readable and opened.writable), -1)
        if self._real_mapping is not None or not may_be_sealed(fd):
            return
        try:
            self._real_mapping = WritableMapping(fd)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise

    def unmap_writable(self) -> None:
        """The file may be sealed again."""
        self._note_writable(False)
        mapping, self._real_mapping = self._real_mapping, None
        if mapping is not None:
            mapping.close()

    def _note_writable(self, is_writable: bool) -> None:
        if is_writable is not self._is_writable:
            self._is_writable = is_writable
            self.on_writable(is_writable)

    def reread(self, offset: int, length: int) -> None:
        """Read what is cached of a range from the file again: a call has written there."""
        mapping = self.mapping
        first, last = offset >> PAGE_SHIFT, offset + length + PAGE_SIZE - 1 >> PAGE_SHIFT
        indexes = range(first, last) if last - first < len(mapping.pages) else sorted(mapping.pages)
        for index in indexes:
            pfn = mapping.pages.get(index)
            if pfn is not None and first <= index < last:
                with contextlib.suppress(OSError):
                    data = self.read_at(index << PAGE_SHIFT, PAGE_SIZE)
                    mapping.frames.ram.write(pfn << PAGE_SHIFT, data.ljust(PAGE_SIZE, b"\0"))

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`, past a seal too that is younger than the mapping. Raises OSError."""
        try:
            self._write_at(offset, data)
        except PermissionError:
            if self._real_mapping is None:
                raise
            self._real_mapping.write_at(offset, data)

    def _write_at(self, offset: int, data: memoryview) -> None:
        flags = _RWF_NOAPPEND if self._writer_appends else 0
        while len(data):
            written = os.pwritev(self._writer, [data], offset, flags)
            if not written:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            offset += written
            data = data[written:]

    def punch_hole(self, offset: int, length: int) -> None:
        """Make bytes read as zeros and keep the size. Raises OSError where the file system cannot."""
        punch_hole(self._writer, offset, length)

    def mincore(self, first: int, count: int) -> bytes:
        """Return for each of `count` pages from `first` 0 where the host has it not in memory, if it says so."""
        try:
            return self._resident.mincore(self._reader, first, count)
        except OSError:
            return b"\1" * count

    def release(self) -> None:
        """Nothing maps the inode: close everything, unless a call is about to map it (MAP_FIXED over its last VMA)."""
        if not self.nr_holds:
            self.close()

    def close(self) -> None:
        """Close every descriptor; the inode is over."""
        self._resident.close()
        self.unmap_writable()
        fds = self._fds() | {self._reader, self._writer}
        files = list(self._files)
        self._files.clear()
        self._reader = self._writer = -1
        for fd in fds - {-1}:
            os.close(fd)
        for file in files:
            self._on_file_gone(file)
        self._on_close(self)
