"""Moving the entries of a range to another: the second half of mremap.

Knows page tables and no VMA but those whose bounds `_can_realign` looks at. Answers to Linux v6.8 mm/mremap.c:
move_page_tables(), move_ptes(), move_huge_pmd(), try_realign_addr().
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from kerneld.errors import SysError
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.space.pagewalk import PUD_SIZE, Leaf, Leaves, Run
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, Vaddr

_TABLES_AT_ONCE = 64 * PMD_SIZE
_MOVED_AT_ONCE = 8 * PMD_SIZE
"""Tables of a file's pages take a quarter of a millisecond each to move entry by entry."""


def move_page_tables(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr, length: int) -> Steps:
    """Move the entries of a range to another: whole leaf tables if both ranges are aligned alike, else run by run.

    Raises SysError(ENOMEM) without frames for tables; what had moved is then back.
    Source: Linux v6.8 mm/mremap.c:move_page_tables().
    """
    end, delta = old_addr + length, new_addr - old_addr
    mm.page_table.ensure_puds(old_addr, end, new_addr)
    first, last = old_addr + (-old_addr & PMD_SIZE - 1), end & -PMD_SIZE
    if first <= last and _can_realign(mm, old_addr, new_addr):
        # The first table has no other entries: the whole table can move too.
        old_addr = first = old_addr & -PMD_SIZE
    if delta & PMD_SIZE - 1 or first >= last:
        yield from _move_ptes_in_pieces(mm, old_addr, new_addr, length)
        return
    move_ptes(mm, old_addr, old_addr + delta, first - old_addr)
    moved = first
    try:
        moved = yield from _move_tables_in_pieces(mm, first, last, delta)
        try:
            yield from _move_ptes_in_pieces(mm, moved, moved + delta, end - moved)
        except SysError:
            _come_back(mm, old_addr)
            if first < moved:
                mm.pages.move_tables(first + delta, moved + delta, first)
            raise
    except SysError:
        _move_back(mm, old_addr, old_addr + delta, first - old_addr)
        raise


def _move_tables_in_pieces(
    mm: MmStruct, first: Vaddr, last: Vaddr, delta: int, at_once: int = PUD_SIZE
) -> Generator[None, None, Vaddr]:
    """Move whole leaf tables, a GiB at a time if it may move as one; return the address before which all have moved.

    It is `last`, or the place of which the new one has a table already. With `at_once` a step moves at most so many
    bytes, a power of two; the upper tables are then as after a move of the GiB. Raises SysError(ENOMEM); what had moved
    is then back.
    """
    at, pace = first, Pace()
    size = _TABLES_AT_ONCE if delta & PUD_SIZE - 1 else PUD_SIZE
    while at < last:
        # A range without tables needs no step.
        at = max(at, mm.page_table.walk.first_leaf(at, last) & -size)
        stop = min(last, (at & -size) + size)
        if at >= last:
            break
        try:
            at = yield from _move_step(mm, at, stop, delta, at_once, pace)
        except SysError:
            _come_back(mm, first)
            if first < at:
                mm.pages.move_tables(first + delta, at + delta, first)
            raise
        if at < stop:
            break
        if at < last and pace.is_over():
            yield
            pace.begin()
    return at


def _move_step(
    mm: MmStruct, start: Vaddr, stop: Vaddr, delta: int, at_once: int, pace: Pace
) -> Generator[None, None, Vaddr]:
    """Move the leaf tables of up to a GiB, and return the address before which all have moved.

    Raises SysError(ENOMEM) before any has: all need the same upper table.
    """
    is_whole = stop - start == PUD_SIZE and not delta & PUD_SIZE - 1
    moves_as_one = is_whole and mm.page_table.find_pmd(start + delta) is None
    at = start
    while at < stop:
        step = min(stop, (at & -at_once) + at_once)
        if not mm.pages.move_tables(at, step, at + delta):
            return at
        at = step
        if at < stop and pace.is_over():
            yield
            pace.begin()
    if at_once < PUD_SIZE and moves_as_one:
        # The upper table of the old place would have moved too.
        mm.page_table.free_tables(start, stop, start, stop)
    return stop


def _move_ptes_in_pieces(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr, length: int) -> Steps:
    """Do the same as `move_ptes`, in parts; if one part fails, the moved parts are moved back, in parts too."""
    end, delta, pace = old_addr + length, new_addr - old_addr, Pace()
    moved = old_addr
    try:
        while moved < end:
            stop = pace.far_stop(mm.page_table.walk, moved, end, _MOVED_AT_ONCE)
            move_ptes(mm, moved, moved + delta, stop - moved)
            moved = stop
            if moved < end and pace.is_over():
                yield
                pace.begin()
    except SysError:
        _come_back(mm, old_addr)
        at = old_addr
        while at < moved:
            stop = pace.far_stop(mm.page_table.walk, at + delta, moved + delta, _MOVED_AT_ONCE) - delta
            _move_back(mm, at, at + delta, stop - at)
            at = stop
            yield
        raise


def _come_back(mm: MmStruct, vaddr: Vaddr) -> None:
    """Note that entries come back to the VMA of an address, for those who walk the file's VMAs at the time."""
    vma = mm.vmas.lookup(vaddr)
    if vma is not None and vma.file is not None:
        vma.file.mapping.i_mmap.may_get_entries(vma)


def _can_realign(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr) -> bool:
    """Return whether a move may begin at the start of its first leaf table instead of inside the table.

    Source: Linux v6.8 mm/mremap.c:try_realign_addr(), can_align_down().
    """
    if not old_addr & PMD_SIZE - 1 or (old_addr ^ new_addr) & PMD_SIZE - 1:
        return False
    for addr in (old_addr, new_addr):
        vma, below = mm.vmas.lookup(addr), mm.vmas.preceding(addr)
        if vma is None or vma.start != addr or (below is not None and below.end > addr & -PMD_SIZE):
            return False
    return True


def move_ptes(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr, length: int) -> None:
    """Move the entries of a range to another whose distance is no multiple of 2 MiB, or that has tables already.

    A huge page moves as one entry if its new place is 2 MiB-aligned too, else it is split first. The new place gets a
    table wherever the old place has one, even an empty one.
    Raises SysError(ENOMEM) without frames for tables; what had moved is then back.
    Source: Linux v6.8 mm/mremap.c:move_page_tables(), move_ptes(), move_huge_pmd().
    """
    if not length:
        return
    delta = new_addr - old_addr
    moved = old_addr
    mm.pages.split_huge_pmds_at(old_addr, old_addr + length)

    def move_run(found: Run) -> None:
        nonlocal moved
        for run in _without_gaps(found):
            place = mm.page_table.ensure_whole(run.start + delta, run.end + delta)
            mm.pages.move_entries(run, place, (run.start + delta - place.start) >> PAGE_SHIFT)
            moved = run.end

    def move_huge(leaf: Leaf) -> bool:
        nonlocal moved
        is_done = _move_huge(mm, leaf, delta)
        moved = leaf.end if is_done else moved
        return is_done

    try:
        mm.page_table.walk.page_range(old_addr, old_addr + length, move_run, move_huge)
    except SysError:
        _move_back(mm, old_addr, new_addr, moved - old_addr)
        raise


def _move_back(mm: MmStruct, old_addr: Vaddr, new_addr: Vaddr, length: int) -> None:
    """Undo a move of entries; this needs no memory, because the tables of the old place still exist."""
    delta = new_addr - old_addr
    for leaf in mm.page_table.walk.leaves(new_addr, new_addr + length):
        if leaf.huge:
            pmd = mm.page_table.find_pmd(leaf.start - delta)
            assert pmd is not None
            mm.pages.move_huge_pmd(leaf.low, leaf.start, pmd, leaf.start - delta)
            continue
        vaddr = leaf.start - delta
        for place in mm.page_table.walk.leaves(vaddr, leaf.end - delta):
            low = leaf.low + ((place.start - vaddr) >> PAGE_SHIFT)
            run = Leaf(place.start + delta, place.end + delta, low, low + place.high - place.low)
            mm.pages.move_entries(run, place, 0)


def _without_gaps(run: Run) -> Iterator[Run]:
    """Yield the parts of a run that each consist of neighbouring tables."""
    if isinstance(run, Leaf):
        yield run
        return
    gaps = np.flatnonzero(np.diff(run.starts) != PMD_SIZE) + 1
    for starts, tables in zip(np.split(run.starts, gaps), np.split(run.tables, gaps), strict=True):
        yield Leaves.of(starts, tables)


def _move_huge(mm: MmStruct, leaf: Leaf, delta: int) -> bool:
    """Move a huge page to its new place, or split it; return whether it has moved."""
    to_pmd = None if delta & PMD_SIZE - 1 else mm.page_table.ensure_pmd(leaf.start + delta)
    pmd = mm.page_table.find_huge_pmd(leaf.start)
    if pmd is None:  # Reclaim has split it, for a table of the new place.
        return False
    if to_pmd is None or mm.frames.ram.words[to_pmd]:  # An existing table stays, even an empty one (move_huge_pmd()).
        mm.pages.split_huge_pmd(pmd, leaf.start)
        return False
    mm.pages.move_huge_pmd(pmd, leaf.start, to_pmd, leaf.start + delta)
    return True
