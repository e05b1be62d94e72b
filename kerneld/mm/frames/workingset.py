"""Decides whether a page was evicted too early. If so, it becomes active when it comes back (a *refault*).

An evicted page leaves a shadow: the age of the machine's LRU lists at that moment. The distance from the shadow to
the age at the refault tells how much longer the list should have been. Answers to Linux v6.8 mm/workingset.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kerneld.mm.frames.frames import PG_WORKINGSET, Frames, Pfns
from kerneld.mm.frames.lru import LruList, folio_activate, lru_note_cost, recent_lru_sizes
from shared.uapi.page import Pfn

_PRESENT = 1 << 31
_WORKINGSET = 1 << 30
_EVICTION_MASK = _WORKINGSET - 1
_INACTIVE_ANON, _ACTIVE_ANON, _INACTIVE_FILE, _ACTIVE_FILE = (kind.value for kind in LruList)


def workingset_eviction(frames: Frames, pfns: Pfns) -> npt.NDArray[np.uint32]:
    """Return the shadows of frames that are being evicted. A shadow is never 0.

    Source: Linux v6.8 mm/workingset.c:workingset_eviction().
    """
    ages = np.arange(frames.nonresident_age, frames.nonresident_age + len(pfns), dtype=np.int64) & _EVICTION_MASK
    frames.nonresident_age += len(pfns)
    was_active = frames.has(pfns, PG_WORKINGSET)
    shadows: npt.NDArray[np.uint32] = (ages | _PRESENT | was_active * _WORKINGSET).astype(np.uint32)
    return shadows


def workingset_refault(frames: Frames, pfn: Pfn, shadow: int, *, is_file: bool) -> None:
    """Make a frame that was read in again active, if it was evicted a short time ago. A `shadow` of 0 means none.

    Source: Linux v6.8 mm/workingset.c:workingset_refault().
    """
    if not shadow:
        return
    kind = "file" if is_file else "anon"
    frames.vmstat[f"workingset_refault_{kind}"] += 1
    distance = (frames.nonresident_age - shadow) & _EVICTION_MASK
    sizes = recent_lru_sizes(frames)
    workingset_size = sizes[_ACTIVE_FILE]
    if not is_file:
        workingset_size += sizes[_INACTIVE_FILE]
    if frames.swap.nr_free:
        workingset_size += sizes[_ACTIVE_ANON]
        if is_file:
            workingset_size += sizes[_INACTIVE_ANON]
    if distance > workingset_size:
        return
    folio_activate(frames, np.array([pfn]))
    frames.vmstat[f"workingset_activate_{kind}"] += 1
    if shadow & _WORKINGSET:
        frames.flags_at[pfn] |= PG_WORKINGSET
        lru_note_cost(frames, is_file, 1, 0)
        frames.vmstat[f"workingset_restore_{kind}"] += 1
