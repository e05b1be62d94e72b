"""Reclaim, swap and the OOM killer: they are causes of other events, and have records of their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.mm.frames.frames import Frames, Pfns
from kerneld.mm.frames.swap import Slots
from kerneld.mm.frames.swap_state import read_swap_cache, swap_writepages
from kerneld.mm.reclaim.oom import OomKiller, OomTask, pgtables_bytes, select_bad_process
from kerneld.mm.reclaim.shrink import shrink_folio_list
from kerneld.mm.reclaim.vmscan import Vmscan
from kerneld.mm.space.rmap_walk import Patience
from kerneld.mm.space.rss import Rss
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from kerneld.trace.probes.request import entered
from kerneld.trace.probes.task import comm_bytes
from shared.trace.events import (
    DIRECT_RECLAIM_BEGIN,
    DIRECT_RECLAIM_END,
    KSWAPD_SLEEP,
    KSWAPD_WAKE,
    MARK_VICTIM,
    SHRINK_INACTIVE,
    SWAP_IN,
    SWAP_OUT,
    Cause,
)
from shared.uapi.page import PAGE_SHIFT

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing

_KB_SHIFT = PAGE_SHIFT - 10


@probe(Vmscan.try_to_free_pages)
def _try_to_free_pages(tracing: Tracing, inner: Function) -> Function:
    begin, end = tracing.point(DIRECT_RECLAIM_BEGIN), tracing.point(DIRECT_RECLAIM_END)

    def try_to_free_pages(self: Vmscan, nr_to_reclaim: int) -> int:
        begin.emit(0, nr_to_reclaim)
        with tracing.current.under(Cause.RECLAIM):
            freed: int = inner(self, nr_to_reclaim)
        end.emit(0, freed)
        return freed

    return try_to_free_pages


@probe(Vmscan.kswapd_begins, KSWAPD_WAKE)
def _kswapd_begins(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(KSWAPD_WAKE).emit

    def kswapd_begins(self: Vmscan) -> None:
        emit(0, tracing.kernel.frames.free_pages)
        inner(self)

    return kswapd_begins


@probe(Vmscan.kswapd)
def _kswapd(tracing: Tracing, inner: Function) -> Function:
    """A piece of the background pass, at the end of a request or between two requests."""

    def kswapd(self: Vmscan) -> None:
        now = tracing.current
        if now.depth:
            with now.under(Cause.KSWAPD):
                inner(self)
            return
        with entered(tracing, 0, 0, Cause.KSWAPD):
            inner(self)

    return kswapd


@probe(Vmscan.kswapd_sleeps, KSWAPD_SLEEP)
def _kswapd_sleeps(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(KSWAPD_SLEEP).emit

    def kswapd_sleeps(self: Vmscan) -> int:
        freed: int = inner(self)
        emit(0, freed)
        return freed

    return kswapd_sleeps


@probe(OomKiller.out_of_memory)
def _out_of_memory(tracing: Tracing, inner: Function) -> Function:
    def out_of_memory(self: OomKiller) -> bool:
        with tracing.current.under(Cause.OOM):
            is_better: bool = inner(self)
        return is_better

    return out_of_memory


@probe(select_bad_process, MARK_VICTIM)
def _select_bad_process(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(MARK_VICTIM).emit

    def select_bad_process(tasks: Sequence[OomTask]) -> OomTask | None:
        victim: OomTask | None = inner(tasks)
        if victim is not None:
            mm = victim.mm
            sizes = [mm.total_vm, mm.rss.counts[Rss.ANON], mm.rss.counts[Rss.FILE], mm.rss.counts[Rss.SHMEM]]
            kilobytes = [size << _KB_SHIFT for size in sizes]
            emit(victim.pid, victim.pid, victim.uid, comm_bytes(victim.comm), *kilobytes, pgtables_bytes(mm) >> 10)
        return victim

    return select_bad_process


@probe(shrink_folio_list, SHRINK_INACTIVE)
def _shrink_folio_list(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SHRINK_INACTIVE).emit

    def shrink_folio_list(frames: Frames, pfns: Pfns, patience: Patience | None = None, **how: object) -> int:
        freed: int = inner(frames, pfns, patience, **how)
        emit(0, len(pfns), freed)
        return freed

    return shrink_folio_list


@probe(swap_writepages, SWAP_OUT)
def _swap_writepages(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SWAP_OUT).emit

    def swap_writepages(frames: Frames, pfns: Pfns, slots: Slots) -> npt.NDArray[np.bool_]:
        done: npt.NDArray[np.bool_] = inner(frames, pfns, slots)
        emit(0, int(np.count_nonzero(done)))
        return done

    return swap_writepages


@probe(read_swap_cache, SWAP_IN)
def _read_swap_cache(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SWAP_IN).emit

    def read_swap_cache(frames: Frames, slot: int) -> int:
        pfn: int = inner(frames, slot)
        emit(0, slot, pfn)
        return pfn

    return read_swap_cache
