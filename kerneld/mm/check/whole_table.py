"""A walk over a whole page table, one level in each step, for the invariants.

Owns nothing and trusts nothing: no counter, no VMA. Answers to Linux v6.8 mm/pagewalk.c, and to a foreign page-table
walker, which must find the same entries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.paging import (
    PGD_SHIFT,
    PTE_PFN_MASK,
    PTE_PSE,
    PTE_TABLE,
    PTRS_PER_TABLE,
    PUD_SHIFT,
    pte_pfn,
    small_entries,
)
from kerneld.hw.ram import Ram
from kerneld.hw.scalars import u64
from shared.uapi.page import PAGE_SHIFT, PMD_SHIFT, Pfn

Words = npt.NDArray[np.uint64]


class Level(NamedTuple):
    """The tables of one level: table i is frame `pfns[i]` and covers `1 << span_shift` bytes from `starts[i]`."""

    span_shift: int
    pfns: npt.NDArray[np.int64]
    starts: Words


class Walk(NamedTuple):
    """The contents of a page table: its tables by level, the root first, and its leaf entries that are not 0.

    An entry of 2 MiB is in `huge_entries`, and also in `entries`, as the equal 512 entries of 4 KiB.
    """

    levels: list[Level]
    vaddrs: Words
    entries: Words
    huge_vaddrs: Words
    huge_entries: Words

    @property
    def table_pfns(self) -> npt.NDArray[np.int64]:
        """The frame of every table."""
        return np.concatenate([level.pfns for level in self.levels])


def walk_page_table(ram: Ram, root: Pfn) -> Walk:
    """Return everything below the root frame. Raises KernelBug for an entry that should name a table and does not.

    At the last level above the leaf tables an entry may also map 2 MiB.
    """
    pfns, starts = np.array([root], dtype=np.int64), np.zeros(1, dtype=np.uint64)
    levels = [Level(PGD_SHIFT + 9, pfns, starts)]
    for shift in (PGD_SHIFT, PUD_SHIFT, PMD_SHIFT):
        starts, entries = _entries(ram, pfns, starts, shift)
        huge = (entries & u64(PTE_PSE)) != 0 if shift == PMD_SHIFT else np.zeros(len(entries), dtype=np.bool_)
        huge_vaddrs, huge_entries = starts[huge], entries[huge]
        starts, entries = starts[~huge], entries[~huge]
        _check_upper(ram, starts, entries)
        pfns = pte_pfn(entries).astype(np.int64)
        levels.append(Level(shift, pfns, starts))
    vaddrs, entries = _entries(ram, pfns, starts, PAGE_SHIFT)
    if len(huge_entries):
        vaddrs, entries = _with_huge(vaddrs, entries, huge_vaddrs, huge_entries)
    return Walk(levels, vaddrs, entries, huge_vaddrs, huge_entries)


def _with_huge(vaddrs: Words, entries: Words, huge_vaddrs: Words, huge_entries: Words) -> tuple[Words, Words]:
    """Return the leaf entries and the small entries equal to the huge ones, sorted by address."""
    offsets = np.arange(PTRS_PER_TABLE, dtype=np.uint64) << u64(PAGE_SHIFT)
    vaddrs = np.concatenate([vaddrs, (huge_vaddrs[:, None] + offsets).ravel()])
    small = [small_entries(entry, 0, PTRS_PER_TABLE) for entry in huge_entries.tolist()]
    order = np.argsort(vaddrs)
    return vaddrs[order], np.concatenate([entries, *small])[order]


def _entries(ram: Ram, pfns: npt.NDArray[np.int64], starts: Words, shift: int) -> tuple[Words, Words]:
    """Return address and value of each entry that is not 0, in order of address."""
    words = ram.frames_np[pfns].ravel()
    positions = np.flatnonzero(words)
    offsets = (positions % PTRS_PER_TABLE).astype(np.uint64) << np.uint64(shift)
    return starts[positions // PTRS_PER_TABLE] + offsets, words[positions]


def _check_upper(ram: Ram, starts: Words, entries: Words) -> None:
    odd = (entries & u64(~PTE_PFN_MASK)) != u64(PTE_TABLE)
    odd |= (entries & u64(PTE_PSE)) != 0
    odd |= pte_pfn(entries) >= np.uint64(ram.nr_frames)
    if odd.any():
        first = int(np.flatnonzero(odd)[0])
        raise KernelBug(f"entry {int(entries[first]):#x} for {int(starts[first]):#x} does not name a table")
