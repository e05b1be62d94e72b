"""Rules for file systems other than ext4. kerneld's own rules are those of ext4.

They replace kerneld's own rules while the referee runs (`known`). Their witnesses use the file system of the programs'
regular files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_SYNC
from kerneld.referee.later_rules import AlignedToPmd
from shared.uapi.page import Vaddr

CallMmap: TypeAlias = "Callable[[File, int, int], int]"
MergeIntoNeighbours: TypeAlias = "Callable[[MmStruct, Vaddr, Vaddr, int, File | None, int], Vma | None]"


def aligns_no_file(earlier: AlignedToPmd) -> AlignedToPmd:
    """Source: a file system whose file_operations have no get_unmapped_area: Linux v6.8 fs/overlayfs/file.c."""

    def aligned_to_pmd(mm: MmStruct, addr: Vaddr, length: int, flags: int, offset: int | None) -> Vaddr | None:
        return earlier(mm, addr, length, flags, offset) if offset is None else None

    return aligned_to_pmd


def merges_no_new_mapping(earlier: MergeIntoNeighbours) -> MergeIntoNeighbours:
    """Source: Linux v6.8 fs/overlayfs/file.c:ovl_mmap(): the VMA has the file below, a new mapping still its own."""

    def merge_into_neighbours(
        mm: MmStruct, start: Vaddr, end: Vaddr, vm_flags: int, file: File | None, pgoff: int
    ) -> Vma | None:
        if file is not None and not file.mapping.is_shmem:
            return None
        return earlier(mm, start, end, vm_flags, file, pgoff)

    return merge_into_neighbours


def knows_no_map_sync(file: File) -> int:
    """Source: a file system whose file_operations have no mmap_supported_flags: Linux v6.8 fs/btrfs/file.c."""
    return 0


def takes_map_sync(earlier: CallMmap) -> CallMmap:
    """Source: one that does not ask what disk it is on: Linux v6.8 fs/btrfs/file.c:btrfs_file_mmap()."""

    def call_mmap(file: File, vm_flags: int, pgoff: int) -> int:
        return earlier(file, vm_flags & ~VM_SYNC, pgoff) | vm_flags & VM_SYNC

    return call_mmap
