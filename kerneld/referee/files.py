"""The files of a program. Each side has its own files with the same contents, made at their first use.

Owns descriptors and a folder for the regular files. `close` releases them. Knows neither kernel.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import tempfile
from pathlib import Path

from kerneld.referee.program import FILES, file_content
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

_CONTENT = file_content()
_WRITE_AND_WAIT = 7
"""SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER."""
_JOURNALS = ("-8", "")
"""What follows a device's name in that of its journal: ext4's inode, or nothing for a journal on another device."""
_MFD_ALLOW_SEALING, _MFD_HUGETLB = 2, 4
_MADE_UP = {"sysfs": "/sys/kernel/mm/transparent_hugepage/enabled", "procfs": "/proc/meminfo"}
"""Generated files of the host. Every host has these."""
_libc = ctypes.CDLL(None, use_errno=True)


class ProgramFiles:
    """One side's files of one program."""

    def __init__(self, folder: Path) -> None:
        """`folder` exists, and only this side uses it."""
        self._folder = folder
        self._inodes: dict[str, int] = {}
        self._opens: dict[int, int] = {}

    def get_fd(self, number: int) -> int:
        """Return the descriptor of a file of the program, opened on first use."""
        if number not in self._opens:
            kind = FILES[number]
            self._opens[number] = os.open(f"/proc/self/fd/{self._inode(kind.inode)}", self.get_flags(number))
        return self._opens[number]

    def get_flags(self, number: int) -> int:
        """Return the O_ flags with which a file of the program is opened."""
        return FILES[number].flags

    def _inode(self, name: str) -> int:
        if name not in self._inodes:
            self._inodes[name] = self._create(name)
        return self._inodes[name]

    def _create(self, name: str) -> int:
        if name == "directory":
            return os.open(self._folder, os.O_RDONLY)
        if name in _MADE_UP:
            return os.open(_MADE_UP[name], os.O_RDONLY)
        if name == "huge":
            return os.memfd_create("huge", _MFD_HUGETLB | _MFD_ALLOW_SEALING)
        if name in ("memfd", "sealable"):
            fd = os.memfd_create("memory", _MFD_ALLOW_SEALING if name == "sealable" else 0)
        elif name == "tmpfs":
            fd = _open_in_tmpfs()
        else:
            # Each program gets a new file: the host's flusher may write back pages of an old file at any moment.
            path = self._folder / "file"
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        # The pages are written one by one. In one write the host would cache large folios, and map them as a whole.
        for start in range(0, len(_CONTENT), PAGE_SIZE):
            os.write(fd, _CONTENT[start : start + PAGE_SIZE])
        if name == "regular":
            # After this a page is dirty only if the program has made it dirty.
            _write_range(fd, 0, 0)
        else:
            _forget_uses(fd)
        return fd

    def truncate(self, number: int, length: int, *, writes_cut: bool = False) -> int:
        """Set a file's size in bytes, and with `writes_cut` write its `cut_page`. Return 0 or -errno."""
        fd = self.get_fd(number)
        page = cut_page(os.fstat(fd).st_size, length)
        try:
            os.ftruncate(fd, length)
        except OSError as error:
            return -(error.errno or 0)
        if writes_cut and page is not None:
            _write_range(fd, page << PAGE_SHIFT, PAGE_SIZE)
        return 0

    def add_seals(self, number: int, seals: int) -> int:
        """Seal a file, as another process would do. Return 0 or -errno."""
        try:
            fcntl.fcntl(self.get_fd(number), fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            return -(error.errno or 0)
        return 0

    def close(self) -> None:
        """Close everything."""
        for fd in (*self._opens.values(), *self._inodes.values()):
            os.close(fd)
        self._opens.clear()
        self._inodes.clear()


def has_journal(folder: Path, proc: Path = Path("/proc/fs/jbd2"), devices: Path = Path("/sys/dev/block")) -> bool:
    """Return whether the file system of a folder has a journal that writes data before its commits, as ext4's.

    Source: Linux v6.8 fs/jbd2/journal.c:jbd2_stats_proc_init(): the journal is called after its device and inode.
    """
    device = os.stat(folder).st_dev
    name = (devices / f"{os.major(device)}:{os.minor(device)}").resolve().name
    return any((proc / f"{name}{journal}").exists() for journal in _JOURNALS)


def cut_page(size: int, length: int) -> int | None:
    """Return the index of the page whose rest a change of a file's size from `size` bytes to `length` fills with zeros.

    None if the end is a page's. Source: Linux v6.8 fs/ext4/inode.c:ext4_block_truncate_page().
    """
    end = min(size, length)
    return end >> PAGE_SHIFT if end % PAGE_SIZE else None


def _write_range(fd: int, start: int, nr_bytes: int) -> None:
    """Write the dirty pages of a range of a file, up to its end for 0 bytes, and wait. They are clean then."""
    _libc.sync_file_range(fd, ctypes.c_long(start), ctypes.c_long(nr_bytes), _WRITE_AND_WAIT)


def _open_in_tmpfs() -> int:
    """Return a new file of a tmpfs. If /dev/shm is no tmpfs, return a memory file, which differs only by its name."""
    try:
        with tempfile.TemporaryDirectory(prefix="kerneld-referee-", dir="/dev/shm") as folder:
            fd = os.open(f"{folder}/file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except OSError:
        fd = os.memfd_create("no tmpfs")
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno == errno.EINVAL:
            os.close(fd)
            fd = os.memfd_create("no tmpfs")
    return fd


def _forget_uses(fd: int) -> None:
    """Clear the referenced state of a memory file's pages: write(2) has set it, not the program.

    Source: Linux v6.8 mm/shmem.c:shmem_get_folio_gfp() (SGP_WRITE), mm/madvise.c:madvise_cold_or_pageout_pte_range().
    """
    with mmap.mmap(fd, len(_CONTENT), flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as pages:
        for start in range(0, len(_CONTENT), PAGE_SIZE):
            pages[start]
        pages.madvise(Madv.COLD)
