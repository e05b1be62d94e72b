"""Rules that come from no release: intended differences of kerneld, the host's configuration, its file system.

They replace kerneld's own rules while the referee runs (`known`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_UNNOTICED
from kerneld.mm.calls import madvise
from kerneld.mm.calls.madvise_pages import MayWrite
from kerneld.mm.fault import cow
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.lru import folio_mark_accessed
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space import truncate
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Steps
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.writeback import writeback_in_pieces
from kerneld.mm.vm_flags import VM_SOFTDIRTY
from kerneld.referee.facts import HostFacts
from kerneld.task.task import Cred
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Vaddr

_wp_page_shared_v6_8 = cow.wp_page_shared
_evict_unused_v6_8 = AddressSpace.evict_unused
_madvise_vma_v6_8 = madvise._madvise_vma
_truncate_in_pieces_v6_8 = truncate.truncate_in_pieces
_pagecache_isize_extended_v6_8 = truncate.pagecache_isize_extended


class Notices:
    """The faults by which kerneld notices the first write to a page of a memory file. Linux does not need them."""

    count = 0


def write_unmapped(_vma: Vma, _start: Vaddr, _end: Vaddr) -> Steps:
    """Source: Linux v6.8 mm/mmap.c:unmap_region(): nothing is written to the file."""
    yield from ()


def write_back(_vma: Vma) -> Iterator[None]:
    """Nothing is written at the end of a process either. Source: Linux v6.8 mm/mmap.c:exit_mmap()."""
    return iter(())


def evict_unused(mapping: AddressSpace) -> None:
    """The cached pages of a file stay when nothing maps it. Those of memory without a name go, as in v6.8."""
    if mapping.backing is None:
        _evict_unused_v6_8(mapping)


def wp_page_shared(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int, entry: int) -> int:
    if entry & PTE_UNNOTICED:
        Notices.count += 1
    return _wp_page_shared_v6_8(mm, vma, vaddr, pte, entry)


def madvise_vma(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, advice: Madv, may_write: MayWrite) -> Steps | None:
    """COLLAPSE finds huge pages turned off. Source: Linux v6.8 mm/khugepaged.c:madvise_collapse()."""
    if advice is Madv.COLLAPSE and mm.sysctl.transparent_hugepage is TransparentHugepage.NEVER:
        raise SysError(errno.EINVAL)
    return _madvise_vma_v6_8(mm, vma, start, end, advice, may_write)


def may_raise_limits(_cred: Cred) -> bool:
    """Nobody may raise hard limits, if the user of the referee may not."""
    return False


def root_raises_no_limits(facts: HostFacts) -> bool:
    """Return whether the user of the referee is a superuser that may not raise hard limits."""
    return facts.is_superuser and not facts.raises_limits


def clear_soft_dirty(_mm: MmStruct, _vma: Vma, _start: Vaddr, _end: Vaddr) -> None:
    """Nothing has soft-dirty bits, and every VMA stays as it was made."""


def without_soft_dirty(earlier: Callable[[int], str]) -> Callable[[int], str]:
    """Without CONFIG_MEM_SOFT_DIRTY there is no VM_SOFTDIRTY. Source: Linux v6.8 include/linux/mm.h."""

    def show_smap_vma_flags(vm_flags: int) -> str:
        return earlier(vm_flags & ~VM_SOFTDIRTY)

    return show_smap_vma_flags


def truncate_in_pieces(mapping: AddressSpace, size: int) -> Iterator[None]:
    """If a file is truncated in the middle of a page, that page is read, and its rest is zeroed.

    Source: Linux v6.8 fs/ext4/inode.c:ext4_truncate().
    """
    yield from _truncate_in_pieces_v6_8(mapping, size)
    _zero_rest_of_block(mapping, size)


def truncated_to_its_size(mapping: AddressSpace | None, size: int) -> None:
    """The same happens to a file that is truncated to its current size.

    Source: Linux v6.8 fs/ext4/inode.c:ext4_setattr().
    """
    if mapping is not None and not mapping.is_shmem and truncate.truncate_in_pieces is truncate_in_pieces:
        for _ in truncate_in_pieces(mapping, size):
            pass


def write_cut(mapping: AddressSpace | None, page: int) -> None:
    """Write a page of a regular file, as sync_file_range does on the host's side (`ProgramFiles.truncate`)."""
    if mapping is not None and not mapping.is_shmem:
        for _ in writeback_in_pieces(mapping, page, page + 1):
            pass


def pagecache_isize_extended(mapping: AddressSpace, old_size: int, size: int, block_bytes: int = PAGE_SIZE) -> Steps:
    """The same happens to a file that is made longer. Source: Linux v6.13 fs/ext4/inode.c:ext4_setattr()."""
    _zero_rest_of_block(mapping, old_size)
    yield from _pagecache_isize_extended_v6_8(mapping, old_size, size, block_bytes)


def _zero_rest_of_block(mapping: AddressSpace, size: int) -> None:
    """Read the page of the file's end and make it dirty. A page of a hole gets into the cache, but is not read.

    The page is then referenced. Source: Linux v6.8 fs/ext4/inode.c:__ext4_block_zero_page_range(), FGP_ACCESSED.
    """
    index, tail = size >> PAGE_SHIFT, size % PAGE_SIZE
    if mapping.is_shmem or not tail:
        return
    is_hole = mapping.host.is_hole(index) and index not in mapping.dirty
    waits = mapping.host.has_reclaim(index)
    mapping.host.make_place(index, is_hole=is_hole)
    try:
        pfn = mapping.ensure_page(index)
    except SysError:
        # The file is open only for writing, so no program can map it.
        return
    folio_mark_accessed(mapping.frames, pfn)
    if is_hole:
        return
    mapping.zero_page_from(pfn, tail)
    mapping.mark_dirty(index, pfn)
    if waits:
        mapping.host.set_reclaim(index)
