"""One inode of the host, from which the page cache reads pages and to which it writes pages.

Owns the descriptors of one inode, from the first open until no mapping and no call uses it. Knows VMAs only as users of
a File: the page cache says when the inode is unused. Answers to Linux v6.8 include/linux/fs.h (struct
inode).

Invariants: as long as an inode is in its table, at least one descriptor of it is open, so that the host cannot give its
number to another file. Every descriptor is closed exactly once: by `close`, or earlier when its File is unused.

Differs from Linux: the daemon itself reads and writes. A file system that does not answer would block every process,
not only the caller. So files of such file systems are refused (`kerneld.fs.mounts`).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from kerneld.fs.changes import Pieces
from kerneld.fs.fput import fput
from kerneld.fs.holes import MOST_EXTENTS, Holes
from kerneld.fs.host_mmap import ResidentPages
from kerneld.fs.inotify import NO_WATCH
from kerneld.fs.kept_files import Stamp
from kerneld.fs.open_file import OpenFile, find_data, find_same_description, may_be_sealed, punch_hole, reopen
from kerneld.fs.writable_mapping import WritableMapping
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import Frames
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.truncate import pagecache_isize_extended, truncate_in_pieces
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, page_align

_RWF_NOAPPEND = 1 << 5
"""pwritev2(2): write at the given offset in spite of O_APPEND, from Linux 6.9 on."""


class Inode:
    """An inode that is mapped or will be mapped, with its open file descriptions."""

    def __init__(
        self,
        frames: Frames,
        key: tuple[int, int],
        on_close: Callable[[Inode], None],
        on_file_gone: Callable[[File], None],
        *,
        is_shmem: bool,
        stamp: Stamp,
        kept: AddressSpace | None = None,
    ) -> None:
        """`on_file_gone` is called for each File that is dropped, `on_close` when all descriptors are closed.

        `stamp` is that of the file now. `kept` has the pages of an earlier use.
        """
        self.key = key
        self.stamp = stamp
        self.is_kept = False
        """Whether its pages stay after the end of its use: see `kerneld.fs.kept_files`."""
        self._has_been_writable = False
        self.mapping = AddressSpace(frames, self, is_shmem=is_shmem) if kept is None else kept
        self.mapping.backing = self
        self._holes = Holes()
        self.nr_holds = 0
        """The number of unfinished calls that use one of its Files, mapped or not."""
        self._files: dict[File, tuple[int, OpenFile]] = {}
        self._reader = -1
        self._writer = -1
        self._writer_appends = False
        self._real_mapping: WritableMapping | None = None
        self._resident = ResidentPages()
        self._reads_exactly = False
        self._size_bytes = 0
        self._most_bytes: int | None = None
        """The size during the handling of a truncation: no page beyond it is read in."""
        self.watch = NO_WATCH
        """The number of its inotify watch."""
        self._watched_bytes = 0
        """The size at the last check for a truncation. Faults also ask for the size, and must not hide a truncation."""
        self.on_writable: Callable[[bool], None] = lambda is_writable: None
        """Told when the first mapping that can write comes, and when the last one goes."""
        self._is_writable = False
        self._on_close = on_close
        self._on_file_gone = on_file_gone

    def find_file(self, fd: int, opened: OpenFile) -> File | None:
        """Return the File of the open file description that `fd` belongs to, or None.

        If the host cannot compare descriptions, one with the same access mode and O_APPEND counts as the same.
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
        """Keep the descriptor of a new open file description. Pages are read and written through it from now on."""
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
        """Return a descriptor without O_APPEND and O_DIRECT, or `fd` itself if the host refuses it."""
        try:
            return reopen(fd, access)
        except OSError:
            return fd

    def _fds(self) -> set[int]:
        return {fd for fd, _ in self._files.values()}

    def close_unused(self) -> None:
        """Close the descriptors of Files that no VMA uses, while other Files of the inode are used."""
        if self.nr_holds:
            return
        used = {vma.file for vma in self.mapping.i_mmap}
        for file in [file for file in self._files if file not in used]:
            fd, _ = self._files.pop(file)
            self._close_if_unused(fd)
            self._on_file_gone(file)

    def _close_if_unused(self, fd: int) -> None:
        if fd >= 0 and fd not in (self._reader, self._writer) and fd not in self._fds():
            fput(fd)

    def fd_of(self, file: File) -> int | None:
        """Return the descriptor that is kept for a File, or None."""
        kept = self._files.get(file)
        return None if kept is None else kept[0]

    def size_bytes(self) -> int:
        """Return the file's size in bytes. If the host does not answer any more, return the last known size."""
        try:
            size = os.fstat(self._reader if self._reader >= 0 else self._writer).st_size
        except OSError:
            size = self._size_bytes
        self._size_bytes = size
        if self._most_bytes is not None:
            return min(self._size_bytes, self._most_bytes)
        return self._size_bytes

    def begin_watch(self, watch: int) -> None:
        """Note the current size, so that a later truncation is noticed. The inode must have a descriptor."""
        self.watch = watch
        self._watched_bytes = self.size_bytes()

    def has_other_size(self) -> bool:
        """Return whether the file's size differs from the size at the last handled change."""
        return self.size_bytes() != self._watched_bytes

    def begin_change(self) -> Pieces:
        """Return a generator that drops the pages beyond a shorter file's end, or notes the holes of a longer file.

        It yields between pieces. Until it is done the file counts as no longer than now, even if it grows again.
        Source: Linux v6.8 mm/truncate.c:truncate_setsize(), which on Linux the truncating process calls.
        """
        size, before = self.size_bytes(), self._watched_bytes
        self._watched_bytes = size
        if size < before:
            self._most_bytes = size
            self._holes.cut(page_align(size) >> PAGE_SHIFT)
            return self._cut_in_pieces(size)
        return self._note_holes(before, size)

    def _cut_in_pieces(self, size: int) -> Pieces:
        try:
            yield from truncate_in_pieces(self.mapping, size)
        finally:
            self._most_bytes = None

    def _note_holes(self, before: int, size: int) -> Pieces:
        """Note the holes of the new part.

        After MOST_EXTENTS pieces of data the rest counts as data, to limit the time.
        """
        self._holes.add(before >> PAGE_SHIFT, page_align(size) >> PAGE_SHIFT)
        if self.mapping.is_shmem:
            return
        yield from pagecache_isize_extended(self.mapping, before, size, self._block_bytes())
        with contextlib.suppress(OSError):
            for start, end in find_data(self._reader, page_align(before), size, MOST_EXTENTS):
                self.mapping.host.write(start >> PAGE_SHIFT, end + PAGE_SIZE - 1 >> PAGE_SHIFT)
                self._holes.has_data(start + PAGE_SIZE - 1 >> PAGE_SHIFT, end >> PAGE_SHIFT)
        yield

    def _block_bytes(self) -> int:
        """Return the size of the file's blocks (Linux: i_blocksize()); that of a page if the host does not say."""
        try:
            return os.fstat(self._reader).st_blksize
        except OSError:
            return PAGE_SIZE

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer at the end of the file. Raises OSError.

        Nothing beyond the size is read: generated files of the host (/proc) have size 0, and reading them may block.
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
        """Hold a real writable mapping of a memory file. While it exists, nobody can seal the file against writing.

        Raises OSError(EPERM) if the file is sealed. If the daemon has no address space for it, the file can be sealed.
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
        """Drop the real writable mapping: the file may be sealed again."""
        self._note_writable(False)
        mapping, self._real_mapping = self._real_mapping, None
        if mapping is not None:
            mapping.close()

    def _note_writable(self, is_writable: bool) -> None:
        self._has_been_writable |= is_writable
        if is_writable is not self._is_writable:
            self._is_writable = is_writable
            self.on_writable(is_writable)

    def reread(self, offset: int, length: int) -> Pieces:
        """Read what is cached of a range from the file again: a call has written there.

        Only the bytes of the range are read: what programs have written beside it through mappings stays. Yields
        between pages, when other clients may be served.
        """
        mapping, pace = self.mapping, Pace()
        for index in mapping.pages.between(offset >> PAGE_SHIFT, offset + length + PAGE_SIZE - 1 >> PAGE_SHIFT):
            pfn = mapping.pages.get(index)
            if pfn is not None:
                start = max(offset, index << PAGE_SHIFT)
                room = min(offset + length, index + 1 << PAGE_SHIFT) - start
                with contextlib.suppress(OSError):
                    data = self.read_at(start, room).ljust(room, b"\0")
                    mapping.frames.ram.write((pfn << PAGE_SHIFT) + start % PAGE_SIZE, data)
            if pace.is_over():
                yield
                pace.begin()

    def take_written(self, offset: int, data: bytes) -> None:
        """Put data that was written to the file at an offset into the cached pages: clean or dirty, they stay so."""
        mapping, end = self.mapping, offset + len(data)
        first, last = offset >> PAGE_SHIFT, end + PAGE_SIZE - 1 >> PAGE_SHIFT
        mapping.host.write(first, last)
        for index in range(first, last):
            pfn = mapping.pages.get(index)
            if pfn is not None:
                start = max(offset, index << PAGE_SHIFT)
                piece = data[start - offset : min(end, index + 1 << PAGE_SHIFT) - offset]
                mapping.frames.ram.write((pfn << PAGE_SHIFT) + start % PAGE_SIZE, piece)

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`, even if the file was sealed after it was mapped. Raises OSError."""
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
        """Make a range read as zeros and keep the size. Raises OSError if the file system cannot do that."""
        punch_hole(self._writer, offset, length)
        self._holes.add(offset >> PAGE_SHIFT, page_align(offset + length) >> PAGE_SHIFT)

    def fill_hole(self, index: int) -> None:
        """Let a page have its blocks, before it is written. Raises OSError(ENOSPC), or EDQUOT."""
        if self._holes.may_have(index):
            self._holes.fill(index, self._reader, self._writer, self.size_bytes())

    def mincore(self, first: int, count: int) -> bytes:
        """Return for each of `count` pages from `first` 0 if the host says that it is not in memory, else 1."""
        try:
            resident = self._resident.mincore(self._reader, first, count)
        except OSError:
            return b"\1" * count
        if not self.mapping.is_shmem:
            # It is seldom asked for: it shall not take one of the daemon's mappings.
            self._resident.close()
            if b"\0" in resident:
                self._read_exactly()
        return resident

    def _read_exactly(self) -> None:
        """Have the host read no page that it is not asked for: what a fault reads ahead, the page cache decides.

        Else the host would soon have pages in memory that Linux would not have. Source: Linux v6.8
        mm/readahead.c:page_cache_sync_ra(), FMODE_RANDOM.
        """
        if not self._reads_exactly:
            self._reads_exactly = True
            reader = self._plain_fd(self._reader, os.O_RDONLY)
            if reader != self._reader:
                os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_RANDOM)
                replaced, self._reader = self._reader, reader
                self._close_if_unused(replaced)

    def release(self) -> bool:
        """Close everything, because nothing maps the inode. Return whether its pages stay.

        But not while a call holds it (MAP_FIXED over its last VMA).
        """
        if self.nr_holds:
            return False
        self.is_kept = self._may_be_kept()
        self.close()
        return self.is_kept

    def _may_be_kept(self) -> bool:
        """Return whether all cached pages are what the file has, and will be until its stamp changes."""
        if self.mapping.is_shmem or self._has_been_writable or not self.mapping.pages or not self.stamp.is_old:
            return False
        try:
            status = os.fstat(self._reader)
        except OSError:
            return False
        return status.st_nlink > 0 and Stamp.of(status) == self.stamp

    def close(self) -> None:
        """Close every descriptor, at the end of the inode."""
        self._resident.close()
        self.unmap_writable()
        fds = self._fds() | {self._reader, self._writer}
        files = list(self._files)
        self._files.clear()
        self._reader = self._writer = -1
        for fd in fds - {-1}:
            fput(fd)
        for file in files:
            self._on_file_gone(file)
        self._on_close(self)
