"""Mappings of huge pages out of the pool, which is empty on this machine: what they are refused with, and when.

Answers to Linux v6.8 fs/hugetlbfs/inode.c: hugetlb_get_unmapped_area(), hugetlbfs_file_mmap().

Differs from Linux: with MAP_NORESERVE, too, there is nothing to map; Linux makes the mapping, and its first access is
SIGBUS.
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.files.filemap import AddressSpace, File
from kerneld.mm.frames.frames import Frames
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SHIFT, TASK_SIZE, Vaddr

_U64 = (1 << 64) - 1
_FIXED = Map.FIXED.value


def hugetlb_file_setup(frames: Frames, huge_page_bytes: int) -> File:
    """Return the file behind an anonymous mapping of huge pages."""
    file = File(AddressSpace(frames, None), "/anon_hugepage (deleted)", readable=True, writable=True)
    file.huge_page_bytes = huge_page_bytes
    return file


def align_to_huge_pages(length: int, huge_page_bytes: int) -> int:
    """Return a length, in bytes, rounded up to huge pages; one that wraps is 0. Source: mm/mmap.c:ksys_mmap_pgoff()."""
    return length + huge_page_bytes - 1 & -huge_page_bytes & _U64


def check_hugetlb_area(file: File, addr: Vaddr, length: int, flags: int) -> None:
    """Check where MAP_FIXED would have a mapping of huge pages. Raises SysError(EINVAL) where that is none's boundary.

    Source: fs/hugetlbfs/inode.c:hugetlb_get_unmapped_area() and prepare_hugepage_range().
    """
    if length <= TASK_SIZE and flags & _FIXED and addr % file.huge_page_bytes:
        raise SysError(errno.EINVAL)


def hugetlbfs_file_mmap(file: File, pgoff: int) -> None:
    """Reserve the pages of a new mapping, seals having been checked: there are none.

    Raises SysError(EINVAL) where the offset, in pages of 4 KiB, is inside a huge page, else SysError(ENOMEM).
    """
    if (pgoff << PAGE_SHIFT) % file.huge_page_bytes:
        raise SysError(errno.EINVAL)
    raise SysError(errno.ENOMEM)
