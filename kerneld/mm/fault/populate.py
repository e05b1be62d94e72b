"""Faulting in many pages at once: MAP_POPULATE, locked memory, and the processor's `touch`.

Does the work of `kerneld.mm.fault.fault` for a range, one leaf table at a time if the pages are anonymous. Faults other
than a plain first fault go through `handle_mm_fault` itself, and huge pages through `thp`. Answers to
Linux v6.8 mm/gup.c: __mm_populate(), populate_vma_page_range().
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_MKDIRTY, PTE_PRESENT, PTE_RW, PTE_SPECIAL, make_pte
from kerneld.hw.scalars import u64
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.foll_touch import touch_leaf
from kerneld.mm.fault.retry import take_userfault
from kerneld.mm.fault.thp import fault_in_huge, may_have_huge_pages
from kerneld.mm.fault.vm_fault import (
    VM_FAULT_ERROR,
    VM_FAULT_MAJOR,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
)
from kerneld.mm.frames.frames import ZERO_PFN
from kerneld.mm.space.anon_page import anon_flags, prepare_anon_vma
from kerneld.mm.space.mm import MmStruct, vma_page_prot
from kerneld.mm.space.pace import Pace, drain
from kerneld.mm.space.pagewalk import Leaf
from kerneld.mm.space.pkeys import vma_access_permitted
from kerneld.mm.space.rss import Rss
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.wait import Wait
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS, VM_LOCKONFAULT, VM_SHARED, VM_UFFD_MISSING, VM_WRITE
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Vaddr

_STOPS = VM_FAULT_ERROR | VM_FAULT_RETRY
"""The results of a fault after which the page is not there."""


def populate_in_pieces(
    mm: MmStruct, start: Vaddr, end: Vaddr, *, ignore_errors: bool
) -> Generator[Wait | None, None, int]:
    """Fault the mapped pages of [start, end), page-aligned, in; yield when Linux may release mmap_lock.

    With `ignore_errors` an error skips the rest of its VMA. Without it, the first error ends the call; memory without
    any rights is an error too, unless it is locked on fault. Other calls may change the address space meanwhile, so the
    next VMA is looked up again.
    Returns 0 or the VM_FAULT_* that stopped it. Source: Linux v6.8 mm/gup.c:__mm_populate().
    """
    pace = Pace()
    while start < end:
        vma = mm.vmas.find(start)
        if vma is None or vma.start >= end:
            break
        start, last = max(start, vma.start), min(end, vma.end)
        fault = 0
        if not _is_populated(vma):
            start, fault = last, 0 if vma.vm_flags & VM_LOCKONFAULT else VM_FAULT_SIGSEGV
        while start < last and not fault:
            stop = pace.stop(start, last)
            before = start
            start, fault = populate_vma(mm, vma, start, stop, pace)
            count_second_try(mm, fault, start > before)
            if pace.is_over():
                break
        if fault & VM_FAULT_RETRY:
            yield from take_userfault(mm).wait()
            continue
        if fault & VM_FAULT_OOM and mm.frames.take_stall():
            yield None
            pace.begin()
            continue
        if fault and not ignore_errors:
            return fault
        if fault:
            start = last
        if start < end and pace.is_over():
            yield None
            pace.begin()
    return 0


def count_second_try(mm: MmStruct, fault: int, has_come_far: bool) -> None:
    """Count the fault that Linux takes once more where populating ends after some pages: it reports these first.

    Source: Linux v6.8 mm/gup.c:__get_user_pages(), whose callers then ask for the rest.
    """
    if has_come_far and fault & VM_FAULT_ERROR and not fault & VM_FAULT_SIGSEGV:
        mm.frames.vmstat["pgfault"] += 1


def mm_populate(mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
    """Fault the mapped pages of [start, end) in at once; skip errors and holes."""
    drain(populate_in_pieces(mm, start, end, ignore_errors=True))


def populate_vma(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, pace: Pace | None = None) -> tuple[Vaddr, int]:
    """Fault a page-aligned part of a VMA in: for writing if it is private and writable, else for reading.

    Returns how far it came, less where `pace` is late, and 0 or the VM_FAULT_* that stopped it: memory whose protection
    key denies the access is not faulted in. The
    address space is the running program's.
    Source: Linux v6.8 mm/gup.c:populate_vma_page_range(), check_vma_flags().
    """
    if not _is_populated(vma):
        return end, 0
    write = vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    if not vma_access_permitted(mm.frames.processor.pkru, vma, write):
        return start, VM_FAULT_SIGSEGV
    return fault_in_range(mm, vma, start, end, write, foll_touch=True, pace=pace)


def _is_populated(vma: Vma) -> bool:
    return vma.vm_flags & VM_ACCESS_FLAGS != 0 and not vma.vm_flags & VM_LOCKONFAULT


def fault_in_range(
    mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, write: bool, *, foll_touch: bool = False, pace: Pace | None = None
) -> tuple[Vaddr, int]:
    """Fault in every page of [start, end), page-aligned and inside one VMA whose rights allow the access.

    With `foll_touch` the kernel accesses the pages, not the processor: see `kerneld.mm.fault.foll_touch`.
    Returns the end of the part that was faulted in, and 0 or the VM_FAULT_* that stopped it there: also where a
    userfaultfd has to give a page. It comes less far where `pace` is late, or where a table or a page has waited for a
    direct reclaim: so do the next, if memory is short.
    """
    if vma.file is not None:
        return _fault_in_file(mm, vma, start, end, write, foll_touch, pace)
    huge, stalls = may_have_huge_pages(mm, vma), _stalls(mm)
    try:
        for leaf in fault_in_huge(mm, vma, start, end, write) if huge else mm.page_table.ensure_leaves(start, end):
            if not leaf.huge:
                # The table is there now, so the next piece comes further.
                if pace is not None and _stalls(mm) != stalls:
                    return leaf.start, 0
                if not vma.vm_flags & VM_UFFD_MISSING:
                    _fill_anonymous(mm, vma, leaf, write)
            stopped = _fault_leaf(mm, vma, leaf, write, foll_touch, pace)
            if stopped is not None:
                return stopped
            start = leaf.end
    except SysError:
        return start, VM_FAULT_OOM
    return end, 0


def _stalls(mm: MmStruct) -> int:
    """Return how often an allocation has had to reclaim memory."""
    return mm.frames.vmstat["allocstall_movable"]


def _fault_in_file(
    mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, write: bool, foll_touch: bool, pace: Pace | None
) -> tuple[Vaddr, int]:
    """Do the same as `fault_in_range` for a file: its first fault makes a leaf table, but not if the fault fails."""
    while start < end:
        stop = min(end, (start & -PMD_SIZE) + PMD_SIZE)
        if mm.page_table.find_pte(start) is None:
            result = fault_one(mm, vma, start, write)
            if result & _STOPS:
                return start, result
        leaf = next(mm.page_table.walk.leaves(start, stop))
        stopped = _fault_leaf(mm, vma, leaf, write, foll_touch, pace)
        if stopped is not None:
            return stopped
        start = stop
    return end, 0


def fault_one(mm: MmStruct, vma: Vma, vaddr: Vaddr, write: bool) -> int:
    """Take one fault in a call, and count it in `mm.range_faults` or `mm.range_major_faults`; return its VM_FAULT_*.

    It is the kernel's own: a userfaultfd that is for accesses in user mode only lets it fail.
    """
    result = handle_mm_fault(mm, vma, vaddr, write)
    if result & VM_FAULT_MAJOR:
        mm.range_major_faults += 1
    elif result & VM_FAULT_ERROR:
        # It counts for the machine, but for no process.
        mm.frames.vmstat["pgfault"] += 1
    elif result & VM_FAULT_RETRY:
        if mm.userfault is not None and mm.userfault.ctx.is_user_mode_only:
            mm.userfault = None
            mm.frames.vmstat["pgfault"] += 1
            return VM_FAULT_SIGBUS
    else:
        mm.range_faults += 1
    return result


def _fill_anonymous(mm: MmStruct, vma: Vma, leaf: Leaf, write: bool) -> None:
    """Fill the empty entries of a leaf table; if too few frames are free, leave the entries to single faults."""
    entries = mm.frames.ram.words_np[leaf.low : leaf.high]
    empty = entries == 0
    count = int(np.count_nonzero(empty))
    if not count:
        return
    mm.range_faults += count
    new = np.zeros(len(entries), dtype=np.uint64)
    prot = vma_page_prot(vma)
    if not write:
        new[empty] = make_pte(ZERO_PFN, prot | PTE_SPECIAL)
        mm.pages.set_zero_ptes(leaf, new)
        return
    number = prepare_anon_vma(mm, vma)
    try:
        pfns = mm.frames.alloc_pages(count, anon_flags(vma))
    except SysError:
        mm.range_faults -= count
        return
    mm.frames.mapping[pfns] = number
    mm.frames.index[pfns] = np.flatnonzero(empty).astype(np.uint64) + np.uint64(vma.page_index(leaf.start))
    if vma.vm_flags & VM_WRITE:
        prot |= PTE_RW | PTE_MKDIRTY
    new[empty] = (pfns.astype(np.uint64) << u64(PAGE_SHIFT)) | np.uint64(prot)
    mm.pages.set_ptes(leaf, new, pfns, Rss.ANON)


def _fault_leaf(
    mm: MmStruct, vma: Vma, leaf: Leaf, write: bool, foll_touch: bool, pace: Pace | None
) -> tuple[Vaddr, int] | None:
    """Fault in the missing pages of a leaf table (a huge page misses none); return where and why it stopped."""
    stopped = None if leaf.huge else _fault_rest(mm, vma, leaf, write, pace)
    if foll_touch:
        if stopped is not None:
            leaf = leaf._replace(end=stopped[0], high=leaf.low + ((stopped[0] - leaf.start) >> PAGE_SHIFT))
        touch_leaf(mm, leaf, write)
    return stopped


def _fault_rest(mm: MmStruct, vma: Vma, leaf: Leaf, write: bool, pace: Pace | None) -> tuple[Vaddr, int] | None:
    """Fault, one by one, the entries that still do not allow the access; return where and why it stopped.

    Each page is faulted in once: if memory is short, the first may be reclaimed again while the last is read in.
    """
    entries = mm.frames.ram.words_np[leaf.low : leaf.high]
    done, stalls = 0, _stalls(mm)
    while True:
        missing = _missing(entries[done:], write) + done
        if not len(missing):
            return None
        # A fault may map pages around it, so the missing entries are looked up again after each run of sixteen.
        for position in missing[:16].tolist():
            vaddr = leaf.start + position * PAGE_SIZE
            if _lacks(int(entries[position]), write):
                result = fault_one(mm, vma, vaddr, write)
                if result & _STOPS:
                    return vaddr, result
            done = position + 1
            if pace is not None and _stalls(mm) != stalls:
                break
        if pace is not None and done < len(entries) and (_stalls(mm) != stalls or pace.is_late()):
            return leaf.start + done * PAGE_SIZE, 0


def _missing(entries: npt.NDArray[np.uint64], write: bool) -> npt.NDArray[np.int64]:
    needed = u64(PTE_PRESENT | PTE_RW if write else PTE_PRESENT)
    return np.flatnonzero((entries & needed) != needed)


def _lacks(entry: int, write: bool) -> bool:
    needed = PTE_PRESENT | PTE_RW if write else PTE_PRESENT
    return entry & needed != needed
