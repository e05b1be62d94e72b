"""Writing shared dirty pages back to their file, and making the entries that map them clean.

Knows which address spaces map an inode from `AddressSpace.i_mmap`. Answers to Linux v6.8 mm/page-writeback.c
(folio_clear_dirty_for_io), mm/rmap.c:folio_mkclean() and mm/msync.c.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from operator import attrgetter

import numpy as np

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_DIRTY, PTE_PFN_MASK, PTE_RW, PTE_UNNOTICED, present_mask, pte_present
from kerneld.hw.scalars import u64
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps, run_at_once
from kerneld.mm.space.pagewalk import FEW_ENTRIES, Leaf
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED, VM_SHARED
from shared.uapi.mman import Ms
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, Vaddr, page_align

_ALL_FLAGS = (Ms.ASYNC | Ms.INVALIDATE | Ms.SYNC).value
_ASYNC, _INVALIDATE, _SYNC = Ms.ASYNC.value, Ms.INVALIDATE.value, Ms.SYNC.value


def write_range(mapping: AddressSpace, first: int, last: int) -> None:
    """Do the same as `write_range_in_pieces`, at once."""
    run_at_once(write_range_in_pieces(mapping, first, last))


def write_range_in_pieces(mapping: AddressSpace, first: int, last: int) -> Steps:
    """Write the dirty pages of [first, last) to the file. A page that an entry maps stays dirty, and its entries stay.

    For who only wants the file to have them, such as an unmap: on Linux it writes nothing, and whoever else maps the
    page sees no change. Yields between pages, when other clients may be served.
    """
    if mapping.backing is None:
        return
    pace, mapcount = Pace(), mapping.frames.mapcount_at
    for index in mapping.unwritten.between(first, last):
        if index in mapping.unwritten:
            pfn = mapping.find_page(index)
            mapping.write_page(index, mapping.size_bytes(), stays_dirty=pfn is not None and mapcount[pfn] > 0)
        if pace.is_over():
            yield
            pace.begin()


def writeback_in_pieces(mapping: AddressSpace, first: int, last: int) -> Iterator[None]:
    """Write the dirty pages of [first, last) to the file; the next store to such a page faults again.

    Yields between pages, and between the mappings of one page, when other clients may be served and may write too. A
    page that a fault makes dirty while its entries are being cleaned stays dirty, and so does one that is lent
    (`frames/loans.py`): a native program may still write to it. Linux locks the page instead: mm/page-writeback.c,
    folio_clear_dirty_for_io().
    """
    if mapping.backing is None:
        return
    pace = Pace()
    for index in mapping.unwritten.between(first, last):
        if index in mapping.unwritten:
            with mapping.note_dirtying(index) as dirtied:
                yield from mkclean_in_pieces(mapping, index, pace)
            if index in mapping.unwritten:
                stays_dirty = bool(dirtied) or _is_lent(mapping, index)
                mapping.write_page(index, mapping.size_bytes(), stays_dirty=stays_dirty)
        if pace.is_over():
            yield
            pace.begin()


def _is_lent(mapping: AddressSpace, index: int) -> bool:
    pfn = mapping.find_page(index)
    return pfn is not None and mapping.frames.is_lent(pfn)


def sync_mm(mm: MmStruct) -> None:
    """Write the dirty pages of an address space's shared mappings to their files: it will not be taken down."""
    for vma in mm.vmas:
        if vma.file is not None and vma.vm_flags & VM_SHARED and vma.file.mapping.backing is not None:
            mapping = vma.file.mapping
            for run in mm.page_table.walk.runs(vma.start, vma.end):
                entries = mm.page_table.walk.page_entries(run)
                for entry in entries[present_mask(entries) & ((entries & u64(PTE_DIRTY)) != 0)].tolist():
                    pfn = (entry & PTE_PFN_MASK) >> PAGE_SHIFT
                    mapping.mark_dirty(mm.frames.index_at[pfn], pfn)
            write_range(mapping, vma.pgoff, vma.pgoff + vma.nr_pages)


def mkclean_in_pieces(mapping: AddressSpace, index: int, pace: Pace) -> Iterator[None]:
    """Clear the dirty and the write bit of every entry that maps a page of the file. Of a file in memory, which stays
    dirty, only the write bit is cleared: Linux's entry keeps it.

    Yields between some VMAs and the next, when other clients may be served: an entry that is writable at the end was
    made so by a fault meanwhile, which has marked the page as dirty. Source: mm/rmap.c:folio_mkclean().
    """
    bits = PTE_RW if mapping.is_shmem else PTE_RW | PTE_DIRTY
    for vmas in mapping.i_mmap.walk(index, index + 1):
        _mkclean([vma for vma in vmas if vma.vm_flags & VM_SHARED], index, bits)
        if pace.is_over():
            yield
            pace.begin()


def _mkclean(vmas: list[Vma], index: int, bits: int) -> None:
    if len(vmas) > FEW_ENTRIES:
        _mkclean_many(vmas, index, bits)
        return
    for vma in vmas:
        mm = vma.vm_mm
        assert mm is not None
        vaddr = vma.start + ((index - vma.pgoff) << PAGE_SHIFT)
        pte = mm.page_table.find_pte(vaddr)
        if pte is not None:
            entry = mm.frames.ram.words[pte]
            if pte_present(entry):
                unnoticed = entry & PTE_RW and not bits & PTE_DIRTY
                mm.pages.update_pte(pte, vaddr, entry & ~bits | (PTE_UNNOTICED if unnoticed else 0))


def _mkclean_many(vmas: list[Vma], index: int, bits: int) -> None:
    """Do the same, a leaf table at a time: one process may map the page 60,000 times.

    No address is computed for itself: that takes longer than the rest.
    """
    for mm, group in itertools.groupby(vmas, attrgetter("vm_mm")):
        theirs = list(group)
        starts, pgoffs = (np.fromiter(map(attrgetter(name), theirs), np.int64) for name in ("start", "pgoff"))
        vaddrs = np.sort(starts + ((index - pgoffs) << PAGE_SHIFT))
        bounds = np.flatnonzero(np.diff(vaddrs >> PMD_SHIFT)) + 1
        for here in np.split(vaddrs, bounds):
            start, end = int(here[0]), int(here[-1]) + PAGE_SIZE
            low = mm.page_table.find_pte(start)
            if low is not None:
                run = Leaf(start, end, low, low + ((end - start) >> PAGE_SHIFT))
                entries = mm.page_table.walk.read(run).copy()
                at = (here - start) >> PAGE_SHIFT
                at = at[present_mask(entries[at])]
                changed = entries[at]
                if not bits & PTE_DIRTY:
                    changed |= ((changed & u64(PTE_RW)) != u64(0)) * u64(PTE_UNNOTICED)
                entries[at] = changed & u64(~bits)
                mm.pages.update_ptes(run, entries)


def do_msync(mm: MmStruct, start: Vaddr, length: int, flags: int) -> None:
    """Do the same as `msync_in_pieces`, at once."""
    run_at_once(msync_in_pieces(mm, start, length, flags))


def msync_in_pieces(mm: MmStruct, start: Vaddr, length: int, flags: int) -> Steps:
    """Write the shared file pages of [start, start + length) back (MS_SYNC); the other flags only check the range.

    Raises SysError(EINVAL) for unknown or contradicting flags or an unaligned start, SysError(ENOMEM) for a range
    with a hole (the mapped pages are written anyway), SysError(EBUSY) for MS_INVALIDATE of locked memory, and
    the errno of a write-back that failed. Yields when other clients may be served.
    Source: Linux v6.8 mm/msync.c.
    """
    if flags & ~_ALL_FLAGS or start & ~PAGE_MASK or (flags & _ASYNC and flags & _SYNC):
        raise SysError(errno.EINVAL)
    end = start + page_align(length) % (1 << 64)
    if end >= 1 << 64:
        raise SysError(errno.ENOMEM)
    has_hole = False
    pace = Pace()
    while start < end:
        vma = mm.vmas.find(start)
        if vma is None or (start < vma.start and flags == _ASYNC):
            raise SysError(errno.ENOMEM)
        if start < vma.start:
            has_hole = True
            start = vma.start
            if start >= end:
                break
        if flags & _INVALIDATE and vma.vm_flags & VM_LOCKED:
            raise SysError(errno.EBUSY)
        stop = min(end, vma.end)
        if flags & _SYNC and vma.file is not None and vma.vm_flags & VM_SHARED:
            first = vma.page_index(start)
            mapping = vma.file.mapping
            yield from writeback_in_pieces(mapping, first, first + ((stop - start) >> PAGE_SHIFT))
            error = mapping.take_error()
            if error:
                raise SysError(error)
        start = stop
        if start < end and pace.is_over():
            yield
            pace.begin()
    if has_hole:
        raise SysError(errno.ENOMEM)
