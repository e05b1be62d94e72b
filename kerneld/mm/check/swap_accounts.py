"""The accounts of the swap file, recomputed from nothing: the entries of each slot, and the frames of the swap cache.

This is a part of the invariants (`kerneld.mm.check.invariants`), in its own file because of its length. Raises
KernelBug with the first error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.paging import PTE_SWP_EXCLUSIVE, swap_mask, swp_offset
from kerneld.hw.scalars import u64
from kerneld.mm.check.whole_table import Walk
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import PG_SWAPCACHE, Frames


def check_swap(frames: Frames, walks: list[Walk], mappings: list[AddressSpace]) -> None:
    """Check the swap map and the swap cache against all page tables and all shared anonymous memory.

    Raises KernelBug.
    """
    swap = frames.swap
    nr_slots = len(swap.count)
    entries = np.concatenate([np.zeros(0, dtype=np.uint64), *(walk.entries[swap_mask(walk.entries)] for walk in walks)])
    slots = swp_offset(entries).astype(np.int64)
    shmem = [slot for mapping in mappings for slot in mapping.swapped.values()]
    named = np.bincount(np.concatenate([slots, np.array(shmem, dtype=np.int64)]), minlength=nr_slots)
    _none(swap.count != named, "has another count than entries that name it")
    if nr_slots and (swap.count[0] or swap.cache[0]):
        raise KernelBug("the header of the swap file is in use")
    exclusive = slots[(entries & u64(PTE_SWP_EXCLUSIVE)) != 0]
    if bool((swap.count[exclusive] != 1).any()) or bool(frames.mapcount[swap.cache[exclusive]].any()):
        raise KernelBug("a swap entry says that its page is its alone, and others have it too")
    cached = np.flatnonzero(swap.cache)
    pfns = swap.cache[cached].astype(np.int64)
    if bool((frames.swap_slot[pfns] != cached).any()):
        raise KernelBug("a frame of the swap cache belongs to another slot than it is cached for")
    flagged = np.flatnonzero(frames.has(slice(None), PG_SWAPCACHE))
    if not np.array_equal(np.sort(pfns), flagged):
        raise KernelBug(f"the swap cache holds {len(pfns)} frames, {len(flagged)} are flagged")
    unused = cached[(swap.count[cached] == 0) & (frames.mapcount[pfns] == 0)]
    if len(unused):
        raise KernelBug(f"swap slot {int(unused[0])} is cached for nobody")
    nr_free = int(np.count_nonzero((swap.count | swap.cache) == 0)) - (nr_slots > 0)
    if swap.nr_free != nr_free:
        raise KernelBug(f"{swap.nr_free} free swap slots are noted, {nr_free} are there")


def _none(bad: npt.NDArray[np.bool_], message: str) -> None:
    wrong = np.flatnonzero(bad)
    if len(wrong):
        raise KernelBug(f"swap slot {int(wrong[0])} {message}")
