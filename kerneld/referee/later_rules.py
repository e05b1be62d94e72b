"""Rules of newer kernels, one function each, that replace kerneld's own while the referee runs (`known`)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from typing import TypeAlias

import numpy as np

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_ACCESSED, PTE_SPECIAL, PTRS_PER_TABLE, pte_present
from kerneld.mm.calls import madvise, madvise_pages, mmap
from kerneld.mm.calls.madvise_pages import MayWrite
from kerneld.mm.fault import around, fault
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import READ_AROUND_PAGES
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import split_range
from kerneld.mm.space.overcommit import accountable_mapping, check_enough_memory
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.wait import Wait
from kerneld.mm.vm_flags import VM_EXEC, VM_HUGEPAGE, VM_RAND_READ, VM_SEQ_READ, VM_SHARED, VM_WRITE, is_shared_maywrite
from kerneld.task.ptrace import ptrace_may_access
from kerneld.task.task import Process
from shared.uapi.fcntl import F_SEAL_WRITE
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, TASK_SIZE, Vaddr

AlignedToPmd: TypeAlias = "Callable[[MmStruct, Vaddr, int, int, int | None], Vaddr | None]"

_check_file_v6_8 = mmap._check_file
_seal_check_write_v6_8 = mmap.seal_check_write
_mmap_region_v6_8 = mmap.mmap_region
_handle_mm_fault_v6_8 = fault.handle_mm_fault
_map_pages_around_v6_8 = around.map_pages_around
_madvise_pageout_v6_8 = madvise_pages.madvise_pageout
_madvise_dontneed_v6_8 = madvise.madvise_dontneed
_window_to_read_v6_8 = fault.window_to_read


def never(_mm: MmStruct, _length: int, _flags: int) -> bool:
    """Never run in pieces: a rule that runs at once replaces one that runs in pieces."""
    return False


def mmap_region(mm: MmStruct, addr: Vaddr, length: int, vm_flags: int, file: File | None, pgoff: int) -> Vma:
    """Source: Linux v6.12 mm/mmap.c:mmap_region(): limits and memory are checked before anything is unmapped."""
    # The ends of the old mapping are split off before the checks, and stay split.
    split_range(mm, addr, addr + length)
    if accountable_mapping(file, vm_flags):
        check_enough_memory(mm, length >> PAGE_SHIFT)
    return _mmap_region_v6_8(mm, addr, length, vm_flags, file, pgoff)


def check_file(file: File, prot: int, flags: int, vm_flags: int, pgoff: int, length: int) -> int:
    """Source: Linux v6.12 mm/mmap.c:do_mmap(), mm/memfd.c:memfd_check_seals_mmap()."""
    return mmap.seal_check_write(file, _check_file_v6_8(file, prot, flags, vm_flags, pgoff, length))


def check_file_write_seal(file: File, prot: int, flags: int, vm_flags: int, pgoff: int, length: int) -> int:
    """Source: Linux v6.1.119 mm/mmap.c:mmap_region(), mapping_map_writable(); from v6.1.192 on a mapping that is not
    writable cannot become so, as in v6.8: do_mmap(), is_readonly_sealed()."""
    vm_flags = _check_file_v6_8(file, prot, flags, vm_flags, pgoff, length)
    counts = vm_flags & VM_WRITE or mmap.seal_check_write is seal_check_write
    if file.seals > 0 and file.seals & F_SEAL_WRITE and is_shared_maywrite(vm_flags) and counts:
        raise SysError(errno.EPERM)
    return vm_flags


def seal_check_write(file: File, vm_flags: int) -> int:
    """A shared mapping counts as writable. Source: Linux v6.1 mm/mmap.c:mmap_region(), mapping_map_writable()."""
    if file.seals > 0 and file.seals & F_SEAL_WRITE and vm_flags & VM_SHARED:
        raise SysError(errno.EPERM)
    return _seal_check_write_v6_8(file, vm_flags)


def access_ok(vaddr: Vaddr, length: int) -> bool:
    """Source: Linux v6.12 arch/x86/include/asm/uaccess_64.h:__access_ok()."""
    return vaddr + length <= TASK_SIZE


def aligns_whole_huge_pages_alone(earlier: AlignedToPmd) -> AlignedToPmd:
    """Source: Linux v6.12 mm/mmap.c:__get_unmapped_area()."""

    def aligned_to_pmd(mm: MmStruct, addr: Vaddr, length: int, flags: int, offset: int | None) -> Vaddr | None:
        if offset is None and length % PMD_SIZE:
            return None
        return earlier(mm, addr, length, flags, offset)

    return aligned_to_pmd


def aligns_nothing_with_a_hint(earlier: AlignedToPmd) -> AlignedToPmd:
    """Source: Linux v6.13 mm/mmap.c:__get_unmapped_area()."""

    def aligned_to_pmd(mm: MmStruct, addr: Vaddr, length: int, flags: int, offset: int | None) -> Vaddr | None:
        return None if offset is None and addr else earlier(mm, addr, length, flags, offset)

    return aligned_to_pmd


def check_process_madvise(caller: Process, process: Process, advice: int) -> None:
    """Source: Linux v6.13 mm/madvise.c:SYSCALL_DEFINE5(process_madvise)."""
    if not ptrace_may_access(caller, process):
        raise SysError(errno.EACCES)
    if process is not caller and advice not in madvise.PROCESS_ADVICE:
        raise SysError(errno.EINVAL)
    if process is not caller and not caller.cred.superuser:
        raise SysError(errno.EPERM)


def madvise_dontneed(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """The leaf tables in the range are freed too. Source: Linux v6.14 mm/memory.c:zap_pte_range(), reclaim_pt."""
    _madvise_dontneed_v6_8(mm, vma, start, end)
    for leaf in list(mm.page_table.walk.leaves(start, end)):
        if leaf.end - leaf.start == PMD_SIZE:
            mm.page_table.free_empty_table(leaf.start)


def madvise_pageout(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, may_write: MayWrite) -> None:
    """Pages that stay keep their accessed bit, also those of a huge page that is split on the way.

    Source: Linux v6.9 mm/madvise.c:madvise_cold_or_pageout_pte_range(), mm/migrate.c:remove_migration_pte().
    """
    words = mm.frames.ram.words_np
    young: list[Vaddr] = []
    for leaf in mm.page_table.walk.leaves(start, end):
        places = np.flatnonzero(words[leaf.low : leaf.high] & np.uint64(PTE_ACCESSED))
        if leaf.huge and len(places):
            places = np.arange((leaf.end - leaf.start) >> PAGE_SHIFT)
        young += (leaf.start + (places << PAGE_SHIFT)).tolist()
    _madvise_pageout_v6_8(mm, vma, start, end, may_write)
    for vaddr in young:
        _make_young(mm, vaddr)


def _make_young(mm: MmStruct, vaddr: Vaddr) -> None:
    """Set the accessed bit of the page at an address, unless the zero page is mapped there or nothing."""
    words = mm.frames.ram.words
    pmd = mm.page_table.find_huge_pmd(vaddr)
    if pmd is not None:
        mm.pages.update_huge_pmd(pmd, vaddr & -PMD_SIZE, words[pmd] | PTE_ACCESSED)
        return
    pte = mm.page_table.find_pte(vaddr)
    if pte is not None and pte_present(words[pte]) and not words[pte] & PTE_SPECIAL:
        mm.pages.update_pte(pte, vaddr, words[pte] | PTE_ACCESSED)


class _Fault:
    """The current fault."""

    has_table = True
    """Whether the page's leaf table existed before the fault."""


def handle_mm_fault(mm: MmStruct, vma: Vma, address: Vaddr, write: bool) -> int:
    _Fault.has_table = mm.page_table.find_pte(address) is not None
    return _handle_mm_fault_v6_8(mm, vma, address, write)


def map_pages_around(mm: MmStruct, vma: Vma, vaddr: Vaddr, pte: int) -> None:
    """Source: Linux v6.18 mm/filemap.c:filemap_map_pages(), can_map_large: no table is put in for the last page."""
    assert vma.file is not None
    mapping = vma.file.mapping
    table = pte & -PTRS_PER_TABLE
    is_new = not _Fault.has_table and not mm.frames.ram.words_np[table : table + PTRS_PER_TABLE].any()
    if is_new and not mapping.is_shmem:
        low, high = around.window_around(vma, vaddr)
        last = mapping.last_index()
        cached = (i for i in range(low, min(high, last)) if mapping.host.is_uptodate(i))
        if next(cached, 0) == last - 1:
            return
    _map_pages_around_v6_8(mm, vma, vaddr, pte)


def window_to_read(vma: Vma, index: int) -> tuple[int, int]:
    """An executable mapping is read ahead, not around. Source: Linux v6.16 mm/filemap.c:do_sync_mmap_readahead()."""
    first, last = _window_to_read_v6_8(vma, index)
    if vma.vm_flags & (VM_EXEC | VM_RAND_READ | VM_SEQ_READ | VM_HUGEPAGE) == VM_EXEC:
        return index, min(index + READ_AROUND_PAGES, vma.pgoff + vma.nr_pages)
    return first, last


def madvise_populate_in_pieces(
    mm: MmStruct, start: Vaddr, length: int, advice: int
) -> Generator[Wait | None, None, int]:
    """Source: Linux v6.9 mm/madvise.c:madvise_populate(): it is one range, and ends at a hole."""
    end = madvise._range_end(start, length)
    yield from madvise.faultin_range(mm, start, end, advice == Madv.POPULATE_WRITE, Pace())
    return 0
