"""Open files, which VMAs hold, and the file of shared anonymous memory.

Owns `File` alone; the cached pages of its inode are an `AddressSpace`.
"""

from __future__ import annotations

import itertools

from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import Frames
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE


class File:
    """One open file description of an inode. VMAs of one File may merge (Linux: struct file)."""

    __slots__ = (
        "dev",
        "huge_page_bytes",
        "ino",
        "is_anon_shmem",
        "is_dev_zero",
        "is_sysv_shm",
        "mappable",
        "mapping",
        "max_bytes",
        "noexec",
        "path",
        "readable",
        "refuses",
        "seals",
        "writable",
    )

    def __init__(
        self, mapping: AddressSpace, path: str, *, readable: bool, writable: bool, dev: int = 0, ino: int = 0
    ) -> None:
        self.mapping = mapping
        self.path = path
        """The path in /proc/PID/maps."""
        self.readable = readable
        self.writable = writable
        self.dev = dev
        self.ino = ino
        self.mappable = True
        """Whether the file can be mapped at all (Linux: file->f_op->mmap)."""
        self.max_bytes = (1 << 63) - 1
        """The end of its offsets (Linux: file_mmap_size_max(), MAX_LFS_FILESIZE)."""
        self.huge_page_bytes = 0
        """The page size of a file of hugetlbfs; 0 for other files (Linux: is_file_hugepages())."""
        self.is_dev_zero = False
        """Whether it is /dev/zero: its mappings are anonymous memory (Linux: drivers/char/mem.c:mmap_zero())."""
        self.is_sysv_shm = False
        """Whether shmat made it, so that shmdt finds its mappings (Linux: vm_ops is shm_vm_ops)."""
        self.is_anon_shmem = False
        """Whether it is shared anonymous memory, which may have a name (Linux: vma_is_anon_shmem())."""
        self.noexec = False
        """Whether it lies on a file system whose files are never executed (Linux: path_noexec())."""
        self.refuses = 0
        """The errno with which its mmap operation refuses every mapping; 0: it does not refuse (Linux: call_mmap())."""
        self.seals = 0
        """The F_SEAL_ flags at the start of the call that maps it (Linux: shmem_inode_info.seals)."""


_get_next_ino = itertools.count(1).__next__


def shmem_zero_setup(frames: Frames, size_bytes: int, *, noreserve: bool = False) -> File:
    """Return a new file for shared anonymous memory of this size. All of it is charged at once unless `noreserve`.

    The caller checks the limit of promised memory. Source: Linux v6.8 mm/shmem.c:shmem_zero_setup().
    """
    mapping = AddressSpace(frames, None, size_bytes)
    if noreserve:
        mapping.accounts_blocks = True
    else:
        mapping.account(size_bytes + PAGE_SIZE - 1 >> PAGE_SHIFT)
    file = File(mapping, "/dev/zero (deleted)", readable=True, writable=True, dev=1, ino=_get_next_ino())
    file.is_anon_shmem = True
    return file
