"""The page cache and the swap cache: which frame has which page of which file, and which slot of the swap file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.files.shmem import shmem_free_swapped, shmem_get_folio, shmem_writepage
from kerneld.mm.frames.frames import Frames, Pfns
from kerneld.mm.frames.swap_state import (
    add_to_swap,
    delete_from_swap_cache,
    delete_many_from_swap_cache,
    read_swap_cache,
)
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from kerneld.trace.tracepoint import Tracepoint
from shared.trace.state_events import (
    ADD_TO_PAGE_CACHE,
    ADD_TO_SWAP_CACHE,
    DELETE_FROM_PAGE_CACHE,
    DELETE_FROM_SWAP_CACHE,
    SHMEM_SWAP,
)

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing

_Numbers = npt.NDArray[np.int64]


def tell_cached(point: Tracepoint, mapping: int, indexes: _Numbers, pfns: Pfns) -> None:
    """Record pages of one file. Pages in a row in frames in a row are one record."""
    if len(pfns) == 1:
        point.emit(0, int(pfns[0]), 1, mapping, int(indexes[0]))
    elif len(pfns):
        firsts = np.concatenate(([0], np.flatnonzero((np.diff(pfns) != 1) | (np.diff(indexes) != 1)) + 1))
        counts = np.diff(np.append(firsts, len(pfns)))
        point.emit_many(0, len(firsts), pfns[firsts], counts, mapping, indexes[firsts])


@probe(AddressSpace.add_page, ADD_TO_PAGE_CACHE)
def _add_page(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(ADD_TO_PAGE_CACHE).emit

    def add_page(self: AddressSpace, index: int, pfn: int) -> None:
        emit(0, pfn, 1, self.number, index)
        inner(self, index, pfn)

    return add_page


@probe(AddressSpace.add_pages, ADD_TO_PAGE_CACHE)
def _add_pages(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(ADD_TO_PAGE_CACHE).emit

    def add_pages(self: AddressSpace, indexes: list[int], pfns: Pfns) -> None:
        for index, pfn in zip(indexes, pfns.tolist(), strict=True):
            emit(0, pfn, 1, self.number, index)
        inner(self, indexes, pfns)

    return add_pages


@probe(AddressSpace._forget, DELETE_FROM_PAGE_CACHE)
def _forget(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(DELETE_FROM_PAGE_CACHE)

    def _forget(self: AddressSpace, indexes: list[int], pfns: list[int]) -> None:
        tell_cached(point, self.number, np.array(indexes, dtype=np.int64), np.array(pfns, dtype=np.int64))
        inner(self, indexes, pfns)

    return _forget


@probe(shmem_writepage, DELETE_FROM_PAGE_CACHE, SHMEM_SWAP)
def _shmem_writepage(tracing: Tracing, inner: Function) -> Function:
    delete, swap = tracing.point(DELETE_FROM_PAGE_CACHE), tracing.point(SHMEM_SWAP)

    def shmem_writepage(frames: Frames, mapping: AddressSpace, index: int, slot: int) -> None:
        if delete.traces:
            delete.emit(0, mapping.pages[index], 1, mapping.number, index)
        if swap.traces:
            swap.emit(0, mapping.number, index, slot)
        inner(frames, mapping, index, slot)

    return shmem_writepage


@probe(shmem_get_folio, SHMEM_SWAP)
def _shmem_get_folio(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SHMEM_SWAP).emit

    def shmem_get_folio(frames: Frames, mapping: AddressSpace, index: int) -> int:
        was_swapped = index in mapping.swapped
        pfn: int = inner(frames, mapping, index)
        if was_swapped:
            emit(0, mapping.number, index, 0)
        return pfn

    return shmem_get_folio


@probe(shmem_free_swapped, SHMEM_SWAP)
def _shmem_free_swapped(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SHMEM_SWAP).emit

    def shmem_free_swapped(frames: Frames, mapping: AddressSpace, gone: list[int]) -> None:
        for index in gone:
            emit(0, mapping.number, index, 0)
        inner(frames, mapping, gone)

    return shmem_free_swapped


@probe(add_to_swap, ADD_TO_SWAP_CACHE)
def _add_to_swap(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(ADD_TO_SWAP_CACHE)

    def add_to_swap(frames: Frames, pfns: Pfns) -> Pfns:
        added: Pfns = inner(frames, pfns)
        if len(added):
            point.emit_many(0, len(added), frames.swap_slot[added], added)
        return added

    return add_to_swap


@probe(read_swap_cache, ADD_TO_SWAP_CACHE)
def _read_swap_cache(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(ADD_TO_SWAP_CACHE).emit

    def read_swap_cache(frames: Frames, slot: int) -> int:
        pfn: int = inner(frames, slot)
        emit(0, slot, pfn)
        return pfn

    return read_swap_cache


@probe(delete_from_swap_cache, DELETE_FROM_SWAP_CACHE)
def _delete_from_swap_cache(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(DELETE_FROM_SWAP_CACHE).emit

    def delete_from_swap_cache(frames: Frames, pfn: int) -> None:
        emit(0, frames.swap_slot_at[pfn], pfn)
        inner(frames, pfn)

    return delete_from_swap_cache


@probe(delete_many_from_swap_cache, DELETE_FROM_SWAP_CACHE)
def _delete_many_from_swap_cache(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(DELETE_FROM_SWAP_CACHE)

    def delete_many_from_swap_cache(frames: Frames, pfns: Pfns) -> None:
        if len(pfns):
            point.emit_many(0, len(pfns), frames.swap_slot[pfns], pfns)
        inner(frames, pfns)

    return delete_many_from_swap_cache
