"""Mistakes of the tracking of page-table entries: hooks that are missing, and frames that are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerneld.bugs.planting import Function, Seen, mute, plant, session_of, wrap
from kerneld.hw.paging import PTE_PSE
from kerneld.mm.calls import madvise, move_page_tables, mprotect
from kerneld.mm.fault import around, cow, fault, populate
from kerneld.mm.frames.frames import PG_ANON, ZERO_PFN
from kerneld.mm.space.mm import MmStruct
from kerneld.shadowpt import describe as describing
from kerneld.shadowpt.describe import describe_page
from kerneld.shadowpt.session import ShadowPt
from kerneld.shadowpt.table import ShadowTable
from kerneld.task import uaccess
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

_ALLOCATED, _MAPPED = 1, 4
_RIGHTS = 7
_HUGE_PAGES = 512


@plant("no-fault-update")
def _no_fault_update() -> None:
    mute(fault.do_anonymous_page, lambda _mm, _vma, _vaddr, _pte, write: write)


@plant("no-read-update")
def _no_read_update() -> None:
    mute(fault.do_anonymous_page, lambda _mm, _vma, _vaddr, _pte, write: not write)


def _is_of_zero_page(_mm: Any, _vma: Any, _vaddr: int, _pte: int, source: int) -> bool:
    return source == ZERO_PFN


@plant("no-zero-page-cow")
def _no_zero_page_cow() -> None:
    mute(cow.wp_page_copy, _is_of_zero_page)


def _is_anonymous(mm: MmStruct, pfn: int) -> bool:
    return bool(mm.frames.has(slice(pfn, pfn + 1), PG_ANON)[0])


@plant("no-fork-cow")
def _no_fork_cow() -> None:
    mute(cow.wp_page_copy, lambda mm, _vma, _vaddr, _pte, source: source != ZERO_PFN and _is_anonymous(mm, source))


@plant("no-file-cow")
def _no_file_cow() -> None:
    mute(cow.wp_page_copy, lambda mm, _vma, _vaddr, _pte, source: source != ZERO_PFN and not _is_anonymous(mm, source))


@plant("no-dontneed-update")
def _no_dontneed_update() -> None:
    mute(madvise.madvise_dontneed)


@plant("no-populate-update")
def _no_populate_update() -> None:
    seen = Seen()
    mute(populate.fault_in_range)

    @wrap(populate.populate_vma)
    def populate_vma(inner: Function, *args: Any) -> Any:
        # What the call has done before, to the mapping, is known already.
        if seen.table is not None:
            seen.table.flush()
        return inner(*args)


@plant("no-kernel-faults")
def _no_kernel_faults() -> None:
    mute(uaccess.user_page)


@plant("no-around-update")
def _no_around_update() -> None:
    mute(around.map_pages_around)


@plant("no-file-faults")
def _no_file_faults() -> None:
    mute(fault.do_read_fault)


@plant("no-mremap-unmap")
def _no_mremap_unmap() -> None:
    """The entries that mremap takes away stay in the table; the mappings are tracked."""
    moved: list[tuple[int, int]] = []

    @wrap(move_page_tables.move_page_tables)
    def move_tables(inner: Function, mm: MmStruct, old: int, new: int, length: int) -> Any:
        moved[:] = [(old, old + length)]
        return (yield from inner(mm, old, new, length))

    _keep_frames(lambda vaddr, flags: not flags & _ALLOCATED and any(low <= vaddr < high for low, high in moved))


def _keep_frames(is_kept: Function) -> None:
    """Keep MAPPED and pfn of entries that lose them, where `is_kept` is true of the address and the new flags."""

    @wrap(ShadowTable.update)
    def update(inner: Function, table: ShadowTable, first: int, flags: Any, pfns: Any) -> None:
        flags, pfns = np.array(flags, dtype=np.uint64), np.array(pfns, dtype=np.uint64)
        for at in range(len(flags)):
            _keep(table, first + at, flags, pfns, at, is_kept)
        inner(table, first, flags, pfns)

    @wrap(ShadowTable.update_one)
    def update_one(inner: Function, table: ShadowTable, index: int, flags: int, pfn: int) -> None:
        all_flags, all_pfns = np.array([flags], dtype=np.uint64), np.array([pfn], dtype=np.uint64)
        _keep(table, index, all_flags, all_pfns, 0, is_kept)
        inner(table, index, int(all_flags[0]), int(all_pfns[0]))


def _keep(table: ShadowTable, index: int, flags: Any, pfns: Any, at: int, is_kept: Function) -> None:
    old = int(table._flags[index])
    now = int(flags[at])
    if old & _MAPPED and not now & _MAPPED and is_kept(table._start + (index << PAGE_SHIFT), now):
        flags[at], pfns[at] = now | _MAPPED, table._pfns[index]


@plant("mapped-stays")
def _mapped_stays() -> None:
    """munmap takes ALLOCATED away and leaves MAPPED."""
    _keep_frames(lambda _vaddr, flags: not flags & _ALLOCATED)


@plant("pfn-stays")
def _pfn_stays() -> None:
    """MAPPED is unset while the mapping stays, and pfn is not cleared."""

    @wrap(ShadowTable.update)
    def update(inner: Function, table: ShadowTable, first: int, flags: Any, pfns: Any) -> None:
        old = table._pfns[first : first + len(flags)]
        lost = ((flags & np.uint64(_MAPPED)) == 0) & ((flags & np.uint64(_ALLOCATED)) != 0)
        inner(table, first, flags, np.where(lost, old, pfns))

    @wrap(ShadowTable.update_one)
    def update_one(inner: Function, table: ShadowTable, index: int, flags: int, pfn: int) -> None:
        is_lost = not flags & _MAPPED and flags & _ALLOCATED
        inner(table, index, flags, int(table._pfns[index]) if is_lost else pfn)


@plant("mprotect-unmaps")
def _mprotect_unmaps() -> None:
    """Each invalidation is taken for an unmap: the notifier does not look at the entries."""
    seen = Seen()

    @wrap(mprotect.change_protection)
    def change_protection(inner: Function, mm: MmStruct, vma: Any, start: int, end: int) -> None:
        inner(mm, vma, start, end)
        _unmap_in_table(seen, mm, start, end)


def _unmap_in_table(seen: Seen, mm: MmStruct, start: int, end: int) -> None:
    session = seen.session
    if session is None or session.mm is not mm or seen.table is None:
        return
    seen.table.flush()
    start, end = max(start, session.start), min(end, session.end)
    for vaddr in range(start, end, PAGE_SIZE):
        index = (vaddr - session.start) >> PAGE_SHIFT
        session.table.update_one(index, int(session.table._flags[index]) & ~_MAPPED, 0)
    session.table.publish()


def _without_frames_of(is_without: Function) -> None:
    """Show the pages of some mappings as not mapped."""

    @wrap(describing.describe)
    def describe(inner: Function, mm: MmStruct, start: int, end: int, *layout: Any) -> Any:
        flags, pfns = inner(mm, start, end, *layout)
        for vma in mm.vmas.overlapping(start, end):
            if is_without(vma):
                low, high = (max(vma.start, start) - start) >> PAGE_SHIFT, (min(vma.end, end) - start) >> PAGE_SHIFT
                flags[low:high] &= ~np.uint64(_MAPPED)
                pfns[low:high] = 0
        return flags, pfns

    @wrap(describing.describe_page)
    def one_page(inner: Function, mm: MmStruct, vaddr: int, *layout: Any) -> Any:
        flags, pfn = inner(mm, vaddr, *layout)
        vma = mm.vmas.lookup(vaddr)
        return (flags & ~_MAPPED, 0) if vma is not None and is_without(vma) else (flags, pfn)


@plant("present-bit")
def _present_bit() -> None:
    """The hardware's present bit is tested, which PROT_NONE clears."""
    _without_frames_of(lambda vma: not vma.vm_flags & _RIGHTS)


@plant("file-frames-missing")
def _file_frames_missing() -> None:
    _without_frames_of(lambda vma: vma.file is not None)


@plant("child-cow")
def _child_cow() -> None:
    """The hook of copy-on-write does not ask whose page it is."""
    seen = Seen()

    @wrap(cow.wp_page_copy)
    def wp_page_copy(inner: Function, mm: MmStruct, vma: Any, vaddr: int, pte: int, source: int) -> int:
        done = int(inner(mm, vma, vaddr, pte, source))
        session = seen.session
        if session is not None and session.mm is not None and session.mm is not mm:
            page = vaddr & -PAGE_SIZE
            if session.start <= page < session.end and source != ZERO_PFN:
                index = (page - session.start) >> PAGE_SHIFT
                session.table.update_one(index, *describe_page(mm, page, session.layout))
                session.table.publish()
        return done


@plant("neighbour-marked")
def _neighbour_marked() -> None:
    """A fault marks the page after its own too: the range of the update is one page too long."""

    @wrap(ShadowTable.update_one)
    def update_one(inner: Function, table: ShadowTable, index: int, flags: int, pfn: int) -> None:
        inner(table, index, flags, pfn)
        if flags & _MAPPED and index + 1 < table.nr_pages and table._flags[index + 1]:
            inner(table, index + 1, flags, pfn)


@plant("pfn-is-address")
def _pfn_is_address() -> None:
    """The physical address is stored instead of the frame's number."""

    @wrap(ShadowTable.update)
    def update(inner: Function, table: ShadowTable, first: int, flags: Any, pfns: Any) -> None:
        inner(table, first, flags, pfns << np.uint64(PAGE_SHIFT))

    @wrap(ShadowTable.update_one)
    def update_one(inner: Function, table: ShadowTable, index: int, flags: int, pfn: int) -> None:
        inner(table, index, flags, pfn << PAGE_SHIFT)


def _change_huge(change: Function) -> None:
    """Let a function change what describe() says of the part of a huge page in the range: flags, frames, slice."""

    @wrap(describing.describe)
    def describe(inner: Function, mm: MmStruct, start: int, end: int, *layout: Any) -> Any:
        flags, pfns = inner(mm, start, end, *layout)
        huge_bytes = _HUGE_PAGES * PAGE_SIZE
        for haddr in range(start & -huge_bytes, end, huge_bytes):
            at = mm.page_table.find_leaf(haddr)
            if at is not None and mm.frames.ram.words[at] & PTE_PSE and mm.vmas.lookup(haddr) is not None:
                low, high = max(haddr, start) - start, min(haddr + huge_bytes, end) - start
                change(flags, pfns, low >> PAGE_SHIFT, high >> PAGE_SHIFT, (max(haddr, start) - haddr) >> PAGE_SHIFT)
        return flags, pfns


@plant("huge-head")
def _huge_head() -> None:
    def change(_flags: Any, pfns: Any, low: int, high: int, skipped: int) -> None:
        pfns[low:high] = pfns[low] - np.uint64(skipped)

    _change_huge(change)


@plant("huge-stops-walk")
def _huge_stops_walk() -> None:
    def change(flags: Any, pfns: Any, _low: int, high: int, _skipped: int) -> None:
        flags[high:] &= ~np.uint64(_MAPPED)
        pfns[high:] = 0

    _change_huge(change)


@plant("lost-update")
def _lost_update() -> None:
    """Of many updates in a row one is lost, as when two threads update at once without a lock."""
    count = [0]
    every = 50

    @wrap(ShadowPt.start)
    def start(inner: Function, table: ShadowPt, caller: Any) -> None:
        count[0] = 0
        inner(table, caller)

    @wrap(ShadowPt.invalidate_range)
    def invalidate_range(inner: Function, table: ShadowPt, begin: int, end: int) -> None:
        session = session_of(table)
        if session is not None and begin < session.end and end > session.start:
            count[0] += 1
        if count[0] % every or not count[0]:
            inner(table, begin, end)
