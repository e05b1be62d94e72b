"""Mappings of huge pages from the pool, which is empty on this machine: the errnos of the refusals, in Linux's order.

Answers to Linux v6.8 fs/hugetlbfs/inode.c: hugetlb_get_unmapped_area(), hugetlbfs_file_mmap().

Differs from Linux: a mapping with MAP_NORESERVE is refused too. Linux makes the mapping, and its first access is
SIGBUS.
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import Frames
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SHIFT, TASK_SIZE, Vaddr

_U64 = (1 << 64) - 1
_FIXED = Map.FIXED.value


def hugetlb_file_setup(frames: Frames, huge_page_bytes: int) -> File:
    """Return a file for an anonymous mapping of huge pages."""
    file = File(AddressSpace(frames, None), "/anon_hugepage (deleted)", readable=True, writable=True)
    file.huge_page_bytes = huge_page_bytes
    return file


def align_to_huge_pages(length: int, huge_page_bytes: int) -> int:
    """Return a length in bytes, rounded up to huge pages.

    A length that wraps becomes 0. Source: mm/mmap.c:ksys_mmap_pgoff().
    """
    return length + huge_page_bytes - 1 & -huge_page_bytes & _U64


def check_hugetlb_area(file: File, addr: Vaddr, length: int, flags: int) -> None:
    """Check the address of a MAP_FIXED mapping of huge pages. Raises SysError(EINVAL) unless it is aligned to them.

    Source: fs/hugetlbfs/inode.c:hugetlb_get_unmapped_area() and prepare_hugepage_range().
    """
    if length <= TASK_SIZE and flags & _FIXED and addr % file.huge_page_bytes:
        raise SysError(errno.EINVAL)


def hugetlbfs_file_mmap(file: File, pgoff: int) -> None:
    """Reserve the pages of a new mapping, which always fails. The caller has checked the seals.

    Raises SysError(EINVAL) if the offset, in pages of 4 KiB, is inside a huge page, else SysError(ENOMEM).
    """
    if (pgoff << PAGE_SHIFT) % file.huge_page_bytes:
        raise SysError(errno.EINVAL)
    raise SysError(errno.ENOMEM)
