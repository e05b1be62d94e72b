"""The tables of page tables, and the marks that the processor and reclaim make in entries.

A table is told where it comes into a page table and where it leaves it. `PageTable` does not know whose it is: its root
does (`TableLog`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PGD_SHIFT, PTE_ACCESSED, PUD_SHIFT, pte_pfn, translate
from kerneld.hw.ram import WORDS_SHIFT
from kerneld.mm.frames.frames import Frames, Pfns
from kerneld.mm.frames.swap import Slots
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pages import Pages
from kerneld.mm.space.pagetable import PageTable
from kerneld.mm.space.pagewalk import KIND, UPPER_SHIFTS, Leaves, Table, descend
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from kerneld.trace.probes.pte import EntryLog
from kerneld.trace.tracepoint import Tracepoint
from shared.trace.state_events import ACCESSED_DIRTY, TABLE_ALLOC, TABLE_FREE, Level
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, Vaddr

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing

_LEVELS: dict[int, int] = {PMD_SHIFT: Level.PTE, PUD_SHIFT: Level.PMD, PGD_SHIFT: Level.PUD}
"""By the shift of an entry, the level of the table that it names."""
_PRESENT = 1


class TableLog:
    """Tells of tables. One address space is found by the root of its page table."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._alloc = tracing.point(TABLE_ALLOC)
        self._free = tracing.point(TABLE_FREE)
        self._some_alloc = Tracepoint(TABLE_ALLOC, tracing.current)
        self._some_free = Tracepoint(TABLE_FREE, tracing.current)
        self.nr_made = 0
        """How often `_ensure` has made tables so far."""

    def number(self, root: int) -> int:
        """Return the number of the address space whose page table has this root; 0 if there is none."""
        roots = self._tracing.roots
        if root not in roots:
            kernel = self._tracing.kernel
            roots.update((mm.page_table.root, mm.number) for mm in kernel.table.address_spaces())
            roots.update((mm.page_table.root, mm.number) for mm in kernel.dying.mms)
        return roots.get(root, 0)

    def alloc(self, table: PageTable, level: int, vaddr: Vaddr, pfn: int) -> None:
        """Record that a page table got a table, which covers the addresses from around `vaddr` on."""
        self._tell(self._alloc, table, level, vaddr, pfn)

    def free(self, table: PageTable, level: int, vaddr: Vaddr, pfn: int) -> None:
        """Record that a page table lost a table."""
        self._tell(self._free, table, level, vaddr, pfn)

    def deposited(self, table: PageTable) -> None:
        """Record that a page table has deposited one more table, the last one."""
        point, position = self._alloc, len(table.deposited) - 1
        if self._tracing.snapshots:
            point = self._for_some(point, self._some_alloc, table, position)
        self._tell(point, table, Level.DEPOSITED, 0, table.deposited[-1])

    def withdrawn(self, table: PageTable, position: int, pfn: int) -> None:
        """Record that a page table has its last deposited table no more."""
        point = self._free
        if self._tracing.snapshots:
            point = self._for_some(point, self._some_free, table, position)
        self._tell(point, table, Level.DEPOSITED, 0, pfn)

    def _for_some(self, point: Tracepoint, some: Tracepoint, table: PageTable, position: int) -> Tracepoint:
        """Return a tracepoint for the traces that know of this place, or do not get a snapshot now."""
        number, is_gone = self.number(table.root), point is self._free
        blind = [
            one.trace for one in self._tracing.snapshots if not one.shows_deposit(number, position, is_gone=is_gone)
        ]
        some.traces = [trace for trace in point.traces if trace not in blind]
        return some

    def _tell(self, point: Tracepoint, table: PageTable, level: int, vaddr: Vaddr, pfn: int) -> None:
        mm = self.number(table.root)
        start = vaddr & -(1 << PAGE_SHIFT + 9 * level) if Level.DEPOSITED < level < Level.PGD else 0
        point.emit(self._tracing.owner(mm), mm, level, start, pfn)

    def made(self, table: PageTable, vaddr: Vaddr, count: int) -> None:
        """Record the lowest `count` tables on the way to an address: they are new."""
        self.nr_made += 1
        words = table._words
        path: list[tuple[int, int]] = []
        at = table.root
        for shift, level in reversed(_LEVELS.items()):
            entry = words[at << WORDS_SHIFT | vaddr >> shift & 511]
            if entry & KIND != _PRESENT:
                break
            at = pte_pfn(entry)
            path.append((level, at))
        for level, pfn in path[-count:]:
            self.alloc(table, level, vaddr, pfn)


def table_log(tracing: Tracing) -> TableLog:
    """Return the log of this tracing's kernel."""
    log = tracing.table_log
    if log is None:
        log = tracing.table_log = TableLog(tracing)
    return log


@probe(MmStruct.__init__)
def _init(tracing: Tracing, inner: Function) -> Function:
    """A new address space: its root is known from here on, whichever page table had this frame before."""
    point = tracing.point(TABLE_ALLOC)

    def __init__(self: MmStruct, frames: Frames, rlimits: Rlimits, sysctl: Sysctl) -> None:  # noqa: N807
        inner(self, frames, rlimits, sysctl)
        tracing.roots[self.page_table.root] = self.number
        if point.traces:
            table_log(tracing).alloc(self.page_table, Level.PGD, 0, self.page_table.root)

    return __init__


@probe(PageTable._ensure, TABLE_ALLOC)
def _ensure(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def _ensure(self: PageTable, vaddr: Vaddr, shift: int) -> int:
        before = self.table_pages
        try:
            slot: int = inner(self, vaddr, shift)
            return slot
        finally:
            if self.table_pages > before:
                log.made(self, vaddr, self.table_pages - before)

    return _ensure


@probe(PageTable._make_tables, TABLE_ALLOC)
def _make_tables(tracing: Tracing, inner: Function) -> Function:
    """Many leaf tables at once. Where frames are short, they are made one by one by `_ensure`, which tells of them."""
    log = table_log(tracing)

    def _make_tables(self: PageTable, run: Leaves, missing: Pfns) -> None:
        first = self.find_pmd(run.start)
        assert first is not None
        nr_made = log.nr_made
        inner(self, run, missing)
        if log.nr_made == nr_made:
            for slot in missing.tolist():
                vaddr = (run.start & -PMD_SIZE) + ((slot - first) << PMD_SHIFT)
                log.alloc(self, Level.PTE, vaddr, pte_pfn(self._words[slot]))

    return _make_tables


@probe(PageTable._free_named, TABLE_FREE)
def _free_named(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def _free_named(self: PageTable, table: Table, shift: int, floor: Vaddr, ceiling: Vaddr) -> None:
        named = _named(self, table, shift)
        inner(self, table, shift, floor, ceiling)
        for slot, vaddr, pfn in named:
            if not self._words[slot]:
                log.free(self, _LEVELS[shift], vaddr, pfn)

    return _free_named


def _named(page_table: PageTable, table: Table, shift: int) -> list[tuple[int, Vaddr, int]]:
    """Return place, first address and frame of each table that the entries of a table name."""
    entries = page_table._words_np[table.low : table.high]
    there = np.flatnonzero((entries & np.uint64(KIND)) == _PRESENT)
    start = table.start & -(1 << shift)
    return [(table.low + number, start + (number << shift), pte_pfn(int(entries[number]))) for number in there.tolist()]


@probe(PageTable.free_empty_table, TABLE_FREE)
def _free_empty_table(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def free_empty_table(self: PageTable, vaddr: Vaddr) -> None:
        before, pte = self.table_pages, self.find_pte(vaddr)
        inner(self, vaddr)
        if pte is not None and self.table_pages < before:
            log.free(self, Level.PTE, vaddr, pte >> WORDS_SHIFT)

    return free_empty_table


@probe(PageTable.move_tables, TABLE_ALLOC, TABLE_FREE)
def _move_tables(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def move_tables(self: PageTable, start: Vaddr, end: Vaddr, to: Vaddr) -> bool:
        before = _tables_of(self, start, end)
        moved: bool = inner(self, start, end, to)
        if moved:
            after = _tables_of(self, to, to + end - start)
            for pfn in before.keys() & after.keys():
                log.free(self, *before[pfn], pfn)
                log.alloc(self, *after[pfn], pfn)
        return moved

    return move_tables


def _tables_of(page_table: PageTable, start: Vaddr, end: Vaddr) -> dict[int, tuple[int, Vaddr]]:
    """Return level and first address of the tables below the root's for a range, by frame."""
    return {
        pfn: (_LEVELS[shift], vaddr)
        for shift in (PUD_SHIFT, PMD_SHIFT)
        for table in page_table.walk.tables(start, end, shift)
        for _slot, vaddr, pfn in _named(page_table, table, shift)
    }


def named_tables(page_table: PageTable, table: Table, shift: int) -> list[tuple[int, Vaddr, int]]:
    """Return level, first address and frame of each table that the entries of a table name."""
    return [(_LEVELS[shift], vaddr, pfn) for _slot, vaddr, pfn in _named(page_table, table, shift)]


def tables_of(mm: MmStruct) -> Iterator[tuple[int, Vaddr, int]]:
    """Yield level, first address and frame of every table of an address space, the root first, the deposited last."""
    page_table = mm.page_table
    yield Level.PGD, 0, page_table.root
    for shift in UPPER_SHIFTS:
        for table in page_table.walk.tables(0, 1 << 47, shift):
            yield from named_tables(page_table, table, shift)
    for pfn in page_table.deposited:
        yield Level.DEPOSITED, 0, pfn


@probe(PageTable.free_root, TABLE_FREE)
def _free_root(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def free_root(self: PageTable) -> None:
        inner(self)
        log.free(self, Level.PGD, 0, self.root)
        tracing.roots.pop(self.root, None)

    return free_root


# Deposited tables


@probe(PageTable.deposit_new, TABLE_ALLOC)
def _deposit_new(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def deposit_new(self: PageTable) -> None:
        inner(self)
        log.deposited(self)

    return deposit_new


@probe(PageTable.free_deposit, TABLE_FREE)
def _free_deposit(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def free_deposit(self: PageTable) -> None:
        log.withdrawn(self, len(self.deposited) - 1, self.deposited[-1])
        inner(self)

    return free_deposit


@probe(PageTable.deposit_table, TABLE_ALLOC, TABLE_FREE)
def _deposit_table(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def deposit_table(self: PageTable, pmd: int) -> None:
        pfn = pte_pfn(self._words[pmd])
        vaddr = next(
            vaddr for level, vaddr, found in _all_named(self) if level == Level.PTE and found == pfn
        )  # The caller knows the entry alone. It happens once for each collapsed huge page.
        inner(self, pmd)
        log.free(self, Level.PTE, vaddr, pfn)
        log.deposited(self)

    return deposit_table


def _all_named(page_table: PageTable) -> Iterator[tuple[int, Vaddr, int]]:
    for table in page_table.walk.tables(0, 1 << 47, PMD_SHIFT):
        for _slot, vaddr, pfn in _named(page_table, table, PMD_SHIFT):
            yield Level.PTE, vaddr, pfn


@probe(Pages.split_huge_pmd, TABLE_ALLOC, TABLE_FREE)
def _split_huge_pmd(tracing: Tracing, inner: Function) -> Function:
    log = table_log(tracing)

    def split_huge_pmd(self: Pages, pmd: int, haddr: Vaddr) -> None:
        inner(self, pmd, haddr)
        pfn = pte_pfn(self._words[pmd])
        log.withdrawn(self.page_table, len(self.page_table.deposited), pfn)
        log.alloc(self.page_table, Level.PTE, haddr, pfn)

    return split_huge_pmd


# Marks


@probe(translate, ACCESSED_DIRTY)
def _translate(tracing: Tracing, inner: Function) -> Function:
    """The slow way of an access, which alone sets marks: the quick one is for entries that have them."""
    point = tracing.point(ACCESSED_DIRTY)

    def translate(words: memoryview, root: int, vaddr: Vaddr, access: int, pkru: int = 0) -> int:
        slot, _level = descend(words, root, vaddr, PAGE_SHIFT)
        old = words[slot]
        found: int = inner(words, root, vaddr, access, pkru)
        new = words[slot]
        if new != old:
            mm = table_log(tracing).number(root)
            is_huge = _level != PAGE_SHIFT
            nr_pages, start = (PMD_SIZE >> PAGE_SHIFT, vaddr & -PMD_SIZE) if is_huge else (1, vaddr & -PAGE_SIZE)
            point.emit(tracing.owner(mm), mm, nr_pages, start, old, new)
        return found

    return translate


@probe(Pages.mark_accessed, ACCESSED_DIRTY)
def _mark_accessed(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)
    point = tracing.point(ACCESSED_DIRTY)

    def mark_accessed(self: Pages, start: Vaddr, end: Vaddr, write: bool) -> None:
        leaves = list(self.page_table.walk.leaves(start, end))
        before = [self._words_np[leaf.low : leaf.high].copy() for leaf in leaves]
        inner(self, start, end, write)
        for leaf, old in zip(leaves, before, strict=True):
            new = self._words_np[leaf.low : leaf.high]
            if leaf.huge:
                if old[0] != new[0]:
                    haddr = leaf.start & -PMD_SIZE
                    owner = tracing.owner(self.number)
                    point.emit(owner, self.number, PMD_SIZE >> PAGE_SHIFT, haddr, int(old[0]), int(new[0]))
            else:
                log.marks(point, self, leaf.vaddrs(), old, new)

    return mark_accessed


@probe(Pages.clear_young, ACCESSED_DIRTY)
def _clear_young(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)
    point = tracing.point(ACCESSED_DIRTY)

    def clear_young(self: Pages, ptes: Slots, vaddrs: Slots) -> npt.NDArray[np.bool_]:
        old = self._words_np[ptes]
        young: npt.NDArray[np.bool_] = inner(self, ptes, vaddrs)
        log.marks(point, self, vaddrs.astype(np.uint64), old, old & np.uint64(~PTE_ACCESSED & (1 << 64) - 1))
        return young

    return clear_young
