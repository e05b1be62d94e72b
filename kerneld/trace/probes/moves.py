"""Page-table entries that mremap moves: each is told as one that is cleared, and one that is set."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np

from kerneld.hw.paging import PTE_SOFT_DIRTY, move_soft_dirty
from kerneld.mm.calls import move_page_tables
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.pages import Pages
from kerneld.mm.space.pagewalk import Leaf, Run
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from kerneld.trace.probes.pte import EntryLog, filled
from shared.trace.events import PTE_CLEAR, PTE_REPLACE, PTE_SET
from shared.uapi.page import PMD_SIZE

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.trace.tracing import Tracing

_TOLD_AT_ONCE = 16 * PMD_SIZE
"""Frames that do not follow each other are a record each: some 10 ms for so many bytes."""


@probe(Pages.move_entries, PTE_SET, PTE_REPLACE, PTE_CLEAR)
def _move_entries(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def move_entries(self: Pages, run: Run, place: Run, first: int) -> None:
        entries = self.page_table.walk.read(run).copy()
        log.run(self, run, entries, filled(entries))
        log.many(self, place.vaddrs()[first : first + len(entries)], filled(entries), move_soft_dirty(entries))
        inner(self, run, place, first)

    return move_entries


@probe(Pages.move_huge_pmd, PTE_SET, PTE_CLEAR)
def _move_huge_pmd(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def move_huge_pmd(self: Pages, pmd: int, haddr: int, to_pmd: int, to_haddr: int) -> None:
        entry = self._words[pmd]
        log.one(self, haddr, entry, 0, HPAGE_PMD_NR)
        log.one(self, to_haddr, 0, entry | PTE_SOFT_DIRTY, HPAGE_PMD_NR)
        inner(self, pmd, haddr, to_pmd, to_haddr)

    return move_huge_pmd


@probe(move_page_tables._move_tables_in_pieces, PTE_SET, PTE_CLEAR)
def _move_tables_in_pieces(_tracing: Tracing, inner: Function) -> Function:
    """A GiB moves as one entry, but what is told of it are all entries: then it moves in steps."""

    def move_tables_in_pieces(
        mm: MmStruct, first: int, last: int, delta: int, at_once: int = _TOLD_AT_ONCE
    ) -> Generator[None, None, int]:
        moved: Generator[None, None, int] = inner(mm, first, last, delta, at_once)
        return moved

    return move_tables_in_pieces


@probe(Pages.move_tables, PTE_SET, PTE_CLEAR)
def _move_tables(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def move_tables(self: Pages, start: int, end: int, to: int) -> bool:
        moved: bool = inner(self, start, end, to)
        if moved:
            for run in self.page_table.walk.runs(to, to + end - start):
                if isinstance(run, Leaf) and run.huge:
                    entry = self._words[run.low]
                    log.one(self, run.start - to + start, entry, 0, HPAGE_PMD_NR)
                    log.one(self, run.start, 0, entry, HPAGE_PMD_NR)
                else:
                    vaddrs = run.vaddrs() - np.uint64(to) + np.uint64(start)
                    log.moved(self, vaddrs, to - start, self.page_table.walk.read(run))
        return moved

    return move_tables
