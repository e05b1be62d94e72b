"""remap_file_pages: pages of a shared mapping show another part of its file. Since v4.0 it is mmap over a part of it.

Answers to Linux v6.8 mm/mmap.c:SYSCALL_DEFINE5(remap_file_pages).

EINVAL: rights are given (prot is not 0); no page; the range or the offset wraps; nothing is mapped at the start, or
what is not shared; the range goes on over a hole, or over a mapping of another file or with other flags. Everything
else is as mmap with MAP_SHARED, MAP_FIXED and MAP_POPULATE, with the rights that are there.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import NamedTuple

from kerneld.errors import SysError
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_EXEC, VM_LOCKED, VM_READ, VM_SHARED, VM_WRITE
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, Vaddr

_U64 = (1 << 64) - 1


class Remap(NamedTuple):
    """The mmap that a call comes to."""

    start: Vaddr
    length: int
    prot: int
    flags: int
    file: File


def check_remap(mm: MmStruct, start: Vaddr, size: int, prot: int, pgoff: int, flags: int) -> Remap:
    """Check the arguments, `size` in bytes and `pgoff` in pages, and return the mmap to be made.

    Raises SysError(EINVAL) as the table says.
    """
    start, size = start & PAGE_MASK, size & PAGE_MASK
    if prot or not size or start + size > _U64 or pgoff + (size >> PAGE_SHIFT) > _U64:
        raise SysError(errno.EINVAL)
    vma = mm.vmas.find(start)
    if vma is None or vma.start > start or not vma.vm_flags & VM_SHARED or vma.file is None:
        raise SysError(errno.EINVAL)
    if not _goes_on(mm, vma, start + size):
        raise SysError(errno.EINVAL)
    rights = ((VM_READ, Prot.READ), (VM_WRITE, Prot.WRITE), (VM_EXEC, Prot.EXEC))
    kept = sum(right.value for flag, right in rights if vma.vm_flags & flag)
    flags = flags & Map.NONBLOCK.value | (Map.SHARED | Map.FIXED | Map.POPULATE).value
    if vma.vm_flags & VM_LOCKED:
        flags |= Map.LOCKED.value
    return Remap(start, size, kept, flags, vma.file)


def _goes_on(mm: MmStruct, vma: Vma, end: Vaddr) -> bool:
    """Return whether mappings like `vma` follow it without a hole up to `end`."""
    reached = vma.end
    for following in mm.vmas.overlapping(vma.end, end) if vma.end < end else ():
        if following.start != reached or following.file is not vma.file or following.vm_flags != vma.vm_flags:
            return False
        reached = following.end
    return reached >= end


@contextlib.contextmanager
def held(mapping: AddressSpace) -> Iterator[None]:
    """Keep a file's cache for the time of a `with` block, also if its last VMA goes (Linux: get_file(), fput())."""
    mapping.nr_holds += 1
    try:
        yield
    finally:
        mapping.nr_holds -= 1
        mapping.evict_unused()
