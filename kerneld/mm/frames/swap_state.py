"""The swap cache: frames that have a slot in the swap file, because they are being swapped out or in.

Keeps PG_SWAPCACHE, `Frames.swap_slot`, `SwapFile.cache` and the cache's own reference consistent. Knows no page
table. Answers to Linux v6.8 mm/swap_state.c, mm/swapfile.c (folio_free_swap, free_swap_and_cache) and mm/page_io.c.

Invariants: a frame has PG_SWAPCACHE exactly if `swap.cache[swap_slot]` is this frame; the cache holds one reference of
it. A frame of the cache without PG_DIRTY has the same contents as its slot.

Differs from Linux: swapping in a page reads no other pages around it (vm.page-cluster is 0).
"""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt
import structlog

from kerneld.errors import SysError
from kerneld.hw.distinct import distinct
from kerneld.mm.frames.frames import (
    PG_DIRTY,
    PG_LRU,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    ZERO_PFN,
    Frames,
    Pfns,
)
from kerneld.mm.frames.swap import Slots
from kerneld.mm.frames.workingset import workingset_refault
from shared.uapi.page import PAGE_SHIFT, Pfn

_log = structlog.get_logger("kerneld.mm")


def add_to_swap(frames: Frames, pfns: Pfns) -> Pfns:
    """Give each frame a slot and put it into the swap cache, dirty. Return the frames that got a slot: the first ones.

    Source: Linux v6.8 mm/swap_state.c:add_to_swap().
    """
    slots = frames.swap.get_swap_pages(len(pfns))
    pfns = pfns[: len(slots)]
    frames.swap.cache[slots] = pfns
    frames.swap_slot[pfns] = slots
    frames.set(pfns, PG_SWAPCACHE | PG_DIRTY)
    frames.get_pages(pfns)
    return pfns


def delete_from_swap_cache(frames: Frames, pfn: Pfn) -> None:
    """Take a frame out of the swap cache. Its slot is then free, unless an entry refers to it."""
    frames.flags_at[pfn] &= ~PG_SWAPCACHE
    frames.swap.clear_cache(frames.swap_slot_at[pfn])
    frames.put_page(pfn)


def delete_many_from_swap_cache(frames: Frames, pfns: Pfns) -> None:
    """Take frames out of the swap cache, each given once, as `delete_from_swap_cache` does."""
    frames.clear(pfns, PG_SWAPCACHE)
    frames.swap.clear_cache_many(frames.swap_slot[pfns].astype(np.int64))
    frames.put_pages(pfns)


def folio_free_swap(frames: Frames, pfn: Pfn) -> bool:
    """Give up the slot of a cached frame if no entry refers to it. Return whether it was given up.

    Source: Linux v6.8 mm/swapfile.c:folio_free_swap().
    """
    if not frames.flags_at[pfn] & PG_SWAPCACHE or frames.swap.count_at[frames.swap_slot_at[pfn]]:
        return False
    # The frame becomes dirty, because it now has the only copy of the contents.
    frames.flags_at[pfn] |= PG_DIRTY
    delete_from_swap_cache(frames, pfn)
    return True


def folios_free_swap(frames: Frames, pfns: Pfns) -> None:
    """Do the same as `folio_free_swap` for many frames; one that is given twice counts once."""
    cached = distinct(pfns[frames.has(pfns, PG_SWAPCACHE)])
    cached = cached[frames.swap.count[frames.swap_slot[cached]] == 0]
    frames.set(cached, PG_DIRTY)
    delete_many_from_swap_cache(frames, cached)


def free_swap_and_cache(frames: Frames, slots: Slots) -> None:
    """Count one entry less for each slot. A cached frame whose slot has no entries any more is freed.

    Source: Linux v6.8 mm/swapfile.c:free_swap_and_cache() and __try_to_reclaim_swap().
    """
    cached = frames.swap.swap_free_many(slots)
    if not len(cached):
        return
    pfns = frames.swap.cache[cached].astype(np.int64)
    if not frames.mapcount[pfns].any():
        # The slots have no entries any more, so the cache has the only copies: see `folio_free_swap`.
        frames.set(pfns, PG_DIRTY)
        delete_many_from_swap_cache(frames, pfns)
        return
    for pfn in pfns.tolist():
        if not frames.mapcount_at[pfn] or frames.swap.is_full:
            folio_free_swap(frames, pfn)


def read_swap_cache(frames: Frames, slot: int) -> Pfn:
    """Return a new frame of the swap cache with the contents of a slot. The cache holds its only reference.

    Raises SysError(ENOMEM) without a free frame, and SysError(EIO) if the file cannot be read.
    Source: Linux v6.8 mm/swap_state.c:read_swap_cache_async().
    """
    pfn = frames.alloc_page(PG_SWAPBACKED | PG_LRU | PG_SWAPCACHE, zero=False)
    try:
        frames.ram.write(pfn << PAGE_SHIFT, frames.swap.read_page(slot))
    except OSError:
        frames.put_page(pfn)
        raise SysError(errno.EIO) from None
    frames.swap.set_cache(slot, pfn)
    frames.swap_slot_at[pfn] = slot
    frames.vmstat["pswpin"] += 1
    workingset_refault(frames, pfn, frames.swap.shadow_at[slot], is_file=False)
    return pfn


def swap_writepages(frames: Frames, pfns: Pfns, slots: Slots) -> npt.NDArray[np.bool_]:
    """Write frames to their slots, consecutive slots at once. Return for each frame whether it is written.

    Source: Linux v6.8 mm/page_io.c:swap_writepage().
    """
    done = np.ones(len(pfns), dtype=np.bool_)
    order = np.argsort(slots)
    breaks = np.flatnonzero(np.diff(slots[order]) != 1) + 1
    for run in np.split(order, breaks):
        if not len(run):
            continue
        # A frame that was never written is a hole in the memory file. Reading it would fill the hole.
        pages = [frames.ram.page(pfn if frames.ram.written[pfn] else ZERO_PFN) for pfn in pfns[run].tolist()]
        first = int(slots[run[0]])
        try:
            frames.swap.write_pages(first, pages)
        except OSError as error:
            done[run] = _write_singly(frames, first, pages)
            _log.warning(f"Write-error on swap-device (0:0:{first * 8})", error=error.strerror)
    frames.vmstat["pswpout"] += int(np.count_nonzero(done))
    return done


def _write_singly(frames: Frames, first: int, pages: list[memoryview]) -> list[bool]:
    done = []
    for number, page in enumerate(pages):
        try:
            frames.swap.write_pages(first + number, [page])
        except OSError:
            done.append(False)
        else:
            done.append(True)
    return done
