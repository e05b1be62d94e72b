"""What follows from the model about frames: what each is used for, who maps it, the free blocks by order, swap.

Nothing of this is in a record: it is computed from the state when it is asked for. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from shared.recording.address_space import AddressSpace
from shared.recording.machine import FREE, PCP, TAKEN, Machine
from shared.trace.event import PFN_MASK, PRESENT, PSE, SPECIAL
from shared.uapi.page import PAGE_SHIFT

MAX_ORDER = 10
"""The largest block of the buddy allocator is 1 << MAX_ORDER frames (Linux: MAX_PAGE_ORDER)."""
_SWAP_SHIFT, _SWAP_MASK = 9, (1 << 50) - 1
_FREE_RUN = re.compile(bytes([FREE]) + b"+")
_PG_TABLES, _PG_SWAPBACKED = 1 << 11 | 1 << 14, 1 << 9
"""Flags of frames, as kerneld.mm.frames.frames has them. PG_TABLE and PG_PGD: the root of a page table has its own."""


class Use(Enum):
    """What a frame is used for."""

    FREE = "free"
    PCP = "per-cpu"
    """Free, and on the per-cpu list in front of the buddy allocator."""
    RESERVED = "reserved"
    """Below the first frame that is handed out."""
    ZERO = "zero page"
    TABLE = "page table"
    FILE = "page cache"
    SHMEM = "shared memory"
    """The page cache of a file in memory."""
    ANON = "anonymous"
    SWAP_CACHE = "swap cache"
    """Nothing maps it, but its slot in the swap file has the same page."""
    OTHER = "other"


class Mapper(NamedTuple):
    """One entry that maps a frame."""

    mm: int
    vaddr: int
    entry: int


def entry_pfn(entry: int) -> int:
    """Return the frame that an entry names."""
    return (entry & PFN_MASK) >> PAGE_SHIFT


def is_swap(entry: int) -> bool:
    """Return whether an entry names a slot of the swap file."""
    return entry != 0 and not entry & PRESENT


def swap_slot(entry: int) -> int:
    """Return the slot of the swap file that an entry names: it is stored inverted."""
    return (entry >> _SWAP_SHIFT & _SWAP_MASK) ^ _SWAP_MASK


def mapped_frames(mm: AddressSpace) -> Iterator[tuple[int, int, int, int]]:
    """Yield frame, number of frames, address and entry of each run of present entries that is not of the zero page."""
    for run in mm.runs():
        if run.entry & PRESENT and not run.entry & SPECIAL:
            yield entry_pfn(run.entry), run.nr_pages, run.vaddr, run.entry


def mappers(machine: Machine, pfn: int) -> list[Mapper]:
    """Return every entry that maps a frame."""
    found = []
    for mm in machine.mms.values():
        for first, count, vaddr, entry in mapped_frames(mm):
            if first <= pfn < first + count:
                offset = pfn - first
                is_huge = entry & PSE
                found.append(
                    Mapper(
                        mm.number, vaddr + (offset << PAGE_SHIFT), entry if is_huge else entry + (offset << PAGE_SHIFT)
                    )
                )
    return found


def uses(machine: Machine) -> list[Use]:
    """Return what each frame is used for."""
    found = [_OF_STATE[state] for state in machine.frames]
    flags = machine.frame_flags
    for mm in machine.mms.values():
        for first, count, _vaddr, _entry in mapped_frames(mm):
            if first + count <= len(found):
                found[first : first + count] = [Use.ANON] * count
    for pfn, (_mapping, _index) in machine.cached.items():
        if pfn < len(found):
            found[pfn] = Use.SHMEM if flags[pfn] & _PG_SWAPBACKED else Use.FILE
    for pfn in machine.swap_cache:
        if pfn < len(found) and found[pfn] is Use.OTHER:
            found[pfn] = Use.SWAP_CACHE
    for pfn, flag in enumerate(flags):
        if flag & _PG_TABLES:
            found[pfn] = Use.TABLE
    if found:
        found[: machine.first_pfn] = [Use.RESERVED] * machine.first_pfn
        found[machine.zero_pfn] = Use.ZERO
    return found


_OF_STATE = {FREE: Use.FREE, PCP: Use.PCP, TAKEN: Use.OTHER}


def free_blocks(machine: Machine) -> list[tuple[int, int]]:
    """Return first frame and order of each free block of the buddy allocator, by frame.

    Two free buddies are always merged, so the blocks follow from which frames are free and not on the per-cpu list.
    """
    blocks: list[tuple[int, int]] = []
    for run in _FREE_RUN.finditer(machine.frames):
        start, end = run.span()
        while start < end:
            order = min(MAX_ORDER, (start & -start).bit_length() - 1 if start else MAX_ORDER)
            while start + (1 << order) > end:
                order -= 1
            blocks.append((start, order))
            start += 1 << order
    return blocks


def swap_users(machine: Machine) -> dict[int, int]:
    """Return by slot of the swap file how many entries and pages of files in memory refer to it.

    A slot that only the swap cache has is there with 0.
    """
    counts = dict.fromkeys(machine.swap_cache.values(), 0)
    for mm in machine.mms.values():
        for run in mm.runs():
            if is_swap(run.entry):
                first = swap_slot(run.entry)
                for slot in range(first, first + run.nr_pages):
                    counts[slot] = counts.get(slot, 0) + 1
    for slot in machine.shmem_slots.values():
        counts[slot] = counts.get(slot, 0) + 1
    return counts
