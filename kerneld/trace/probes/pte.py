"""Page-table entries: each primitive of `Pages` tells what they were and what they are.

Entries that go together are one record, a run: pages in a row whose entries repeat or count up, before and after
(`shared.trace.event.step_of`). Many runs are packed in numpy. The primitives are few, and only they change entries.

Not told here: the accessed and dirty bits that the processor sets by itself, and the accessed bits that reclaim takes
away again to see who uses what. No kernel notices the former; the latter is no change of what is mapped. A record of
the machine has them (`kerneld.trace.probes.pgtable`). Entries that move are told by `kerneld.trace.probes.moves`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kerneld.hw.paging import PTE_KERNEL_PRESENT, PTE_PSE, PTE_SPECIAL, make_pte
from kerneld.mm.frames.frames import Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.frames.swap import Slots
from kerneld.mm.space.pages import Pages
from kerneld.mm.space.pagewalk import Leaf, Run, Words
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from shared.trace.events import PTE_CLEAR, PTE_REPLACE, PTE_SET
from shared.uapi.page import PAGE_SIZE

if TYPE_CHECKING:
    from kerneld.trace.tracepoint import Tracepoint
    from kerneld.trace.tracing import Tracing

_ZERO, _U64 = np.uint64(0), (1 << 64) - 1
_PAGE = np.uint64(PAGE_SIZE)
_SWAP_STEP = np.uint64((1 << 64) - (1 << 9))


def _steps(entries: Words) -> Words:
    """Return how much each entry's successor in a run differs from it: `shared.trace.event.step_of`, for an array."""
    present = (entries & np.uint64(PTE_KERNEL_PRESENT)) != 0
    repeats = (entries & np.uint64(PTE_SPECIAL | PTE_PSE)) == np.uint64(PTE_SPECIAL)
    steps = np.where(present, np.where(repeats, _ZERO, _PAGE), _SWAP_STEP)
    steps[entries == 0] = 0
    return steps


class EntryLog:
    """Tells the changes of entries."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._set = tracing.point(PTE_SET)
        self._replace = tracing.point(PTE_REPLACE)
        self._clear = tracing.point(PTE_CLEAR)

    def redirect(self, point: Tracepoint) -> None:
        """Record filled entries there."""
        self._set = point

    def one(self, pages: Pages, vaddr: int, old: int, new: int, nr_pages: int = 1) -> None:
        """Record a change of one entry, or of one run of entries. `old` and `new` differ."""
        point = self._replace if old and new else self._set if new else self._clear
        if point.traces:
            point.emit(self._tracing.owner(pages.number), pages.number, nr_pages, vaddr, old, new)

    def run(self, pages: Pages, run: Run, old: Words, new: Words) -> None:
        """Record the old and the new entries of a run. None of them is an entry of 2 MiB."""
        self.many(pages, run.vaddrs(), old, new)

    def many(self, pages: Pages, vaddrs: Words, old: Words, new: Words) -> None:
        """Record the old and the new entries of any pages."""
        changed = old != new
        was, is_now = old != 0, new != 0
        for point, mask in ((self._clear, ~is_now), (self._set, ~was), (self._replace, was & is_now)):
            if point.traces:
                chosen = np.flatnonzero(mask & changed)
                if len(chosen):
                    self._emit(point, pages, vaddrs[chosen], old[chosen], new[chosen])

    def moved(self, pages: Pages, vaddrs: Words, delta: int, entries: Words) -> None:
        """Record that entries are cleared at these pages, and set at those that are `delta` bytes further."""
        filled = np.flatnonzero(entries)
        vaddrs, entries = vaddrs[filled], entries[filled]
        if len(filled):
            nothing = np.zeros(len(filled), dtype=np.uint64)
            self._emit(self._clear, pages, vaddrs, entries, nothing)
            self._emit(self._set, pages, vaddrs + np.uint64(delta & _U64), nothing, entries)

    def marks(self, point: Tracepoint, pages: Pages, vaddrs: Words, old: Words, new: Words) -> None:
        """Record the old and the new entries of any pages whose accessed and dirty bits alone may differ."""
        chosen = np.flatnonzero(old != new)
        if len(chosen):
            self._emit(point, pages, vaddrs[chosen], old[chosen], new[chosen])

    def _emit(self, point: Tracepoint, pages: Pages, vaddrs: Words, old: Words, new: Words) -> None:
        if not point.traces:
            return
        breaks = (
            (vaddrs[1:] != vaddrs[:-1] + _PAGE)
            | (old[1:] != old[:-1] + _steps(old[:-1]))
            | (new[1:] != new[:-1] + _steps(new[:-1]))
        )
        firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        counts = np.diff(np.append(firsts, len(vaddrs)))
        owner = self._tracing.owner(pages.number)
        if len(firsts) == 1:
            point.emit(owner, pages.number, len(vaddrs), int(vaddrs[0]), int(old[0]), int(new[0]))
        else:
            point.emit_many(owner, len(firsts), pages.number, counts, vaddrs[firsts], old[firsts], new[firsts])


def filled(entries: Words) -> Words:
    return np.zeros(len(entries), dtype=np.uint64)


_CHANGES = (PTE_SET, PTE_REPLACE, PTE_CLEAR)


@probe(Pages.set_pte, PTE_SET)
def _set_pte(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def set_pte(self: Pages, pte: int, vaddr: int, entry: int, pfn: int) -> None:
        log.one(self, vaddr, 0, entry)
        inner(self, pte, vaddr, entry, pfn)

    return set_pte


@probe(Pages.set_zero_pte, PTE_SET)
def _set_zero_pte(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def set_zero_pte(self: Pages, pte: int, vaddr: int, entry: int) -> None:
        log.one(self, vaddr, 0, entry)
        inner(self, pte, vaddr, entry)

    return set_zero_pte


@probe(Pages.update_pte, PTE_REPLACE)
def _update_pte(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def update_pte(self: Pages, pte: int, vaddr: int, entry: int) -> None:
        old = self._words[pte]
        if old != entry:
            log.one(self, vaddr, old, entry)
        inner(self, pte, vaddr, entry)

    return update_pte


def _of_another_frame(function: Function) -> None:
    """Wrap a primitive that gives an entry another frame or another swap slot."""

    @probe(function, PTE_REPLACE)
    def _replace(tracing: Tracing, inner: Function) -> Function:
        log = EntryLog(tracing)

        def replace(self: Pages, pte: int, vaddr: int, entry: int, pfn: int) -> None:
            log.one(self, vaddr, self._words[pte], entry)
            inner(self, pte, vaddr, entry, pfn)

        return replace


_of_another_frame(Pages.swap_in_pte)
_of_another_frame(Pages.replace_pte)


@probe(Pages.share_swap_ptes, PTE_SET)
def _share_swap_ptes(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def share_swap_ptes(self: Pages, run: Run, entries: Words) -> None:
        log.run(self, run, filled(entries), entries)
        inner(self, run, entries)

    return share_swap_ptes


@probe(Pages.set_ptes, PTE_SET)
def _set_ptes(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def set_ptes(self: Pages, run: Run, entries: Words, pfns: Pfns, kind: int) -> None:
        log.run(self, run, filled(entries), entries)
        inner(self, run, entries, pfns, kind)

    return set_ptes


@probe(Pages.set_cached_ptes, PTE_SET)
def _set_cached_ptes(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def set_cached_ptes(self: Pages, pte: int, vaddr: int, pfns: list[int | None], prot: int) -> None:
        entries = np.array([0 if pfn is None else make_pte(pfn, prot) for pfn in pfns], dtype=np.uint64)
        run = Leaf(vaddr, vaddr + len(pfns) * PAGE_SIZE, pte, pte + len(pfns))
        log.run(self, run, filled(entries), entries)
        inner(self, pte, vaddr, pfns, prot)

    return set_cached_ptes


@probe(Pages.share_ptes, PTE_SET)
def _share_ptes(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def share_ptes(self: Pages, run: Run, entries: Words) -> None:
        log.run(self, run, filled(entries), entries)
        inner(self, run, entries)

    return share_ptes


@probe(Pages.set_zero_ptes, PTE_SET)
def _set_zero_ptes(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def set_zero_ptes(self: Pages, run: Run, entries: Words) -> None:
        log.run(self, run, filled(entries), entries)
        inner(self, run, entries)

    return set_zero_ptes


@probe(Pages.update_ptes, *_CHANGES)
def _update_ptes(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def update_ptes(self: Pages, run: Run, entries: Words) -> None:
        if isinstance(run, Leaf) and run.huge:
            _huge(log, self, run.low, run.start, int(entries[0]))
        else:
            log.run(self, run, self.page_table.walk.read(run), entries)
        inner(self, run, entries)

    return update_ptes


def _huge(log: EntryLog, pages: Pages, pmd: int, vaddr: int, new: int) -> None:
    """Record that the entry of 2 MiB for `vaddr` will become `new`."""
    old = pages._words[pmd]
    if old != new:
        log.one(pages, vaddr & -HPAGE_PMD_NR * PAGE_SIZE, old, new, HPAGE_PMD_NR)


@probe(Pages.unmap_frames, *_CHANGES)
def _unmap_frames(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def unmap_frames(self: Pages, ptes: Slots, vaddrs: Slots, entries: Words) -> None:
        log.many(self, vaddrs.astype(np.uint64), self._words_np[ptes], entries)
        inner(self, ptes, vaddrs, entries)

    return unmap_frames


@probe(Pages.zap_swapped, PTE_CLEAR)
def _zap_swapped(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def zap_swapped(self: Pages, run: Run) -> None:
        old = self.page_table.walk.read(run).copy()
        inner(self, run)
        log.run(self, run, old, self.page_table.walk.read(run))

    return zap_swapped


@probe(Pages._zap_ptes, PTE_CLEAR)
def _zap_ptes(tracing: Tracing, inner: Function) -> Function:
    """Record before the change: the frames are freed after their entries."""
    log = EntryLog(tracing)

    def _zap_ptes(self: Pages, run: Run) -> None:
        entries = self.page_table.walk.read(run)
        log.run(self, run, entries, filled(entries))
        inner(self, run)

    return _zap_ptes


@probe(Pages.zap_cached, PTE_CLEAR)
def _zap_cached(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def zap_cached(self: Pages, start: int, end: int) -> None:
        old = self.page_table.walk.entries(start, end)
        inner(self, start, end)
        vaddrs = np.arange(start, end, PAGE_SIZE, dtype=np.uint64)
        log.many(self, vaddrs, old, self.page_table.walk.entries(start, end))

    return zap_cached


@probe(Pages.set_huge_pmd, PTE_SET, PTE_REPLACE)
def _set_huge_pmd(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def set_huge_pmd(self: Pages, pmd: int, haddr: int, entry: int, head: int) -> None:
        log.one(self, haddr, self._words[pmd], entry, HPAGE_PMD_NR)
        inner(self, pmd, haddr, entry, head)

    return set_huge_pmd


@probe(Pages.set_huge_zero_pmd, PTE_SET)
def _set_huge_zero_pmd(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def set_huge_zero_pmd(self: Pages, pmd: int, haddr: int, prot: int) -> None:
        inner(self, pmd, haddr, prot)
        log.one(self, haddr, 0, self._words[pmd], HPAGE_PMD_NR)

    return set_huge_zero_pmd


@probe(Pages.update_huge_pmd, PTE_REPLACE)
def _update_huge_pmd(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def update_huge_pmd(self: Pages, pmd: int, haddr: int, entry: int) -> None:
        _huge(log, self, pmd, haddr, entry)
        inner(self, pmd, haddr, entry)

    return update_huge_pmd


@probe(Pages._zap_huge_pmd, PTE_CLEAR)
def _zap_huge_pmd(tracing: Tracing, inner: Function) -> Function:
    log = EntryLog(tracing)

    def _zap_huge_pmd(self: Pages, leaf: Leaf) -> bool:
        _huge(log, self, leaf.low, leaf.start, 0)
        done: bool = inner(self, leaf)
        return done

    return _zap_huge_pmd


@probe(Pages.split_huge_pmd, PTE_REPLACE)
def _split_huge_pmd(tracing: Tracing, inner: Function) -> Function:
    """512 entries replace one entry of 2 MiB."""
    log = EntryLog(tracing)

    def split_huge_pmd(self: Pages, pmd: int, haddr: int) -> None:
        old = self._words[pmd]
        inner(self, pmd, haddr)
        pte = self.page_table.find_pte(haddr)
        assert pte is not None
        log.one(self, haddr, old, self._words[pte], HPAGE_PMD_NR)

    return split_huge_pmd
