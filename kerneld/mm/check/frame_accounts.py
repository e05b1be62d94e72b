"""The accounts of the frames, recomputed from nothing: the references to each frame, and its mapping.

This is a part of the invariants (`kerneld.mm.check.invariants`), in its own file because of its length. Knows page
tables only by walks over them. Raises KernelBug with the first error.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.paging import PTE_SPECIAL, counted_mask, pte_pfn
from kerneld.hw.scalars import u64
from kerneld.mm.check.whole_table import Walk
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import (
    PG_ACTIVE,
    PG_ANON,
    PG_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_LRU,
    PG_PGD,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_TABLE,
    PG_UNEVICTABLE,
    ZERO_PFN,
    Frames,
)
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.rmap import AnonVma
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_SHARED
from shared.uapi.page import Pfn

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_SAMPLE = 16
"""The number of frames that a check reads. It is small, because the host gives memory to a frame that is read."""


def check_frames(frames: Frames, walks: list[Walk], mappings: list[AddressSpace], deposited: list[Pfn]) -> None:
    """Check every frame's counts and state against all page tables and all cached files of the machine.

    `deposited` are the tables kept for huge pages, in no page table. Raises KernelBug.
    """
    frames.buddy.check()
    check_huge_frames(frames, walks)
    entries = _concatenate([pte_pfn(walk.entries[counted_mask(walk.entries)]).astype(np.int64) for walk in walks])
    kept = np.array(deposited, dtype=np.int64)
    in_tables = _concatenate([kept, *(walk.table_pfns for walk in walks)])
    cached = _concatenate([_slots(mapping)[1] for mapping in mappings])
    zeros = [] if frames.huge.zero_pfn is None else _huge_range(frames.huge.zero_pfn)
    kept_free = [] if frames.loans is None else frames.loans.kept().tolist()
    reserved = np.array([0, ZERO_PFN, *zeros, *kept_free, *frames.given.pfns])
    free = frames.buddy.is_free()
    pfns = _frames_with_state(frames, free, (entries, in_tables, cached, reserved))
    mapped, tables, slots, pins = (
        np.bincount(np.searchsorted(pfns, named), minlength=len(pfns))
        for named in (entries, in_tables, cached, reserved)
    )
    swapcache = frames.has(pfns, PG_SWAPCACHE)
    _same(pfns, frames.mapcount[pfns], mapped, "mapcount", "entries that map it")
    _same(pfns, frames.refcount[pfns], mapped + tables + slots + swapcache + pins, "refcount", "entries and pins")
    _check_flags(frames, pfns, free[pfns], mapped, tables, slots)
    if len(late := np.flatnonzero(frames.lru > np.uint32(frames.lru_clock))):
        raise KernelBug(f"frame {int(late[0]):#x} came to its list later than now")
    _check_unwritten(frames)


def _frames_with_state(frames: Frames, free: Mask, named: tuple[Ints, ...]) -> Ints:
    """Return, in rising order, the frames that are not free, have any state, or are named: few of a large machine."""
    has_state = ~free
    for state in (frames.refcount, frames.mapcount, frames.flags, frames.mapping, frames.mlock_more):
        has_state |= state != 0
    for pfns in named:
        has_state[pfns] = True
    return np.flatnonzero(has_state)


def _check_flags(frames: Frames, pfns: Ints, free: Mask, mapped: Ints, tables: Ints, slots: Ints) -> None:
    """Check the state of these frames against what was counted for each: entries, tables, slots of page caches."""
    flags = frames.flags[pfns]
    swapcache = (flags & PG_SWAPCACHE) != 0
    _none(pfns, free & (frames.refcount[pfns] != 0), "is free and has references")
    _none(pfns, ~free & (frames.refcount[pfns] == 0), "is neither free nor held by anything: it has leaked")
    _none(pfns, free & ((flags != 0) | (frames.mapping[pfns] != 0)), "is free and keeps flags or a mapping")
    is_table = (flags & (PG_TABLE | PG_PGD)) != 0
    _none(pfns, is_table != (tables == 1), "is a page table by its flags or by a walk, but not by both")
    _none(pfns, is_table & ((mapped != 0) | (slots != 0)), "is a page table and is mapped or cached")
    anon = (flags & PG_ANON) != 0
    _none(pfns, anon & (slots != 0), "is anonymous and in a page cache")
    lazyfree = anon & ((flags & PG_SWAPBACKED) == 0)
    _none(pfns, lazyfree & swapcache, "is lazily freed and in the swap cache")
    listed = (flags & PG_LRU) != 0
    kept = anon | swapcache | (slots != 0)
    _none(pfns, listed != kept, "is on an LRU list and has no contents, or the other way round")
    _none(pfns, ((flags & PG_ACTIVE) != 0) & ~listed, "is active and on no LRU list")
    both = PG_ACTIVE | PG_UNEVICTABLE
    _none(pfns, (flags & both) == both, "is active and cannot be evicted")
    more = frames.mlock_more[pfns]
    _none(pfns, more < 0, "is unlocked more often than it was locked")
    _none(pfns, (more > 0) & ((flags & PG_UNEVICTABLE) == 0), "is locked by more than one and can be evicted")
    _none(pfns, ~anon & ((flags & PG_ANON_EXCLUSIVE) != 0), "is exclusive and not anonymous")


def check_huge_frames(frames: Frames, walks: list[Walk]) -> None:
    """Check the accounts of huge pages against the entries of 2 MiB in all page tables. Raises KernelBug."""
    huge = frames.huge
    entries = np.concatenate([walk.huge_entries for walk in walks]) if walks else np.zeros(0, dtype=np.uint64)
    is_zero = (entries & u64(PTE_SPECIAL)) != 0
    heads = Counter(pte_pfn(entries[~is_zero]).astype(np.int64).tolist())
    if heads != huge.entire_mapcount or not all(huge.entire_mapcount.values()):
        raise KernelBug(f"entire_mapcount is {dict(huge.entire_mapcount)}, entries of 2 MiB are {dict(heads)}")
    zero_users = int(np.count_nonzero(is_zero))
    if huge.zero_users != zero_users or (huge.zero_pfn is None) != (zero_users == 0):
        raise KernelBug(f"the huge zero page {huge.zero_pfn} counts {huge.zero_users} entries, there are {zero_users}")
    if zero_users and set(pte_pfn(entries[is_zero]).tolist()) != {huge.zero_pfn}:
        raise KernelBug("an entry of 2 MiB is special and does not map the huge zero page")
    for head in heads:
        run = slice(head, head + HPAGE_PMD_NR)
        if head % HPAGE_PMD_NR or head + HPAGE_PMD_NR > frames.ram.nr_frames:
            raise KernelBug(f"huge page {head:#x} is not on its boundary, or leaves memory")
        owners = frames.flags[run] & (PG_ANON | PG_ANON_EXCLUSIVE)
        if len(np.unique(owners)) > 1 or len(np.unique(frames.mapping[run])) > 1:
            raise KernelBug(f"the frames of huge page {head:#x} differ in whose they are")
        if not frames.flags_at[head] & PG_ANON or (np.diff(frames.index[run].astype(np.int64)) != 1).any():
            raise KernelBug(f"huge page {head:#x} is not anonymous, or its indexes are not consecutive")


def _concatenate(runs: list[Ints]) -> Ints:
    return np.concatenate(runs) if runs else np.zeros(0, dtype=np.int64)


def _slots(mapping: AddressSpace) -> tuple[npt.NDArray[np.uint64], Ints]:
    """Return index and frame of each cached page."""
    count = len(mapping.pages)
    return (
        np.fromiter(mapping.pages, dtype=np.uint64, count=count),
        np.fromiter(mapping.pages.values(), dtype=np.int64, count=count),
    )


def _same(pfns: Ints, have: npt.NDArray[np.int32], want: Ints, name: str, what: str) -> None:
    wrong = np.flatnonzero(have != want)
    if len(wrong):
        first = int(wrong[0])
        raise KernelBug(f"{name} of frame {pfns[first]:#x} is {have[first]}, {what}: {want[first]}")


def _none(pfns: Ints, bad: Mask, message: str) -> None:
    wrong = pfns[bad]
    if len(wrong):
        raise KernelBug(f"frame {int(wrong[0]):#x} {message}")


def _check_unwritten(frames: Frames) -> None:
    """Check that a sample of the frames that were never written reads as zeros. It always includes the zero page."""
    unwritten = ~frames.ram.written
    zeros = [ZERO_PFN] if frames.huge.zero_pfn is None else [ZERO_PFN, *_huge_range(frames.huge.zero_pfn)]
    if frames.ram.written[zeros].any():
        raise KernelBug("the shared zero page has been written")
    for pfns in (np.flatnonzero(unwritten & (frames.refcount > 0)), np.flatnonzero(unwritten)):
        sample = pfns[:: max(1, len(pfns) // _SAMPLE)]
        dirty = sample[frames.ram.frames_np[sample].any(axis=1)]
        if len(dirty):
            raise KernelBug(f"frame {int(dirty[0]):#x} is not noted as written and does not read as zeros")


def _huge_range(head: Pfn) -> range:
    return range(head, head + HPAGE_PMD_NR)


def check_mapping(frames: Frames, mapping: AddressSpace) -> None:
    """Check the page cache of one inode: every cached frame leads back to it, and `dirty` agrees with PG_DIRTY.

    Raises KernelBug.
    """
    indexes, pfns = _slots(mapping)
    name = f"mapping {mapping.number}"
    if bool((frames.mapping[pfns] != mapping.number).any()) or bool((frames.index[pfns] != indexes).any()):
        raise KernelBug(f"a cached frame of {name} names another mapping or index")
    flags = frames.flags[pfns]
    dirty = set(indexes[(flags & PG_DIRTY) != 0].tolist())
    if set(mapping.dirty) != dirty:
        raise KernelBug(f"dirty pages of {name}: noted {sorted(mapping.dirty)}, flagged {sorted(dirty)}")
    if bool((((flags & PG_SWAPBACKED) != 0) != mapping.is_shmem).any()):
        raise KernelBug(f"a cached frame of {name} is of the wrong kind")
    gone = set(mapping.unsaved) - {*mapping.pages, *mapping.swapped}
    if gone:
        raise KernelBug(f"pages of {name} that its file has not got are gone: {sorted(gone)}")
    if frames.find_mapping_number(mapping.number) is not mapping:
        raise KernelBug(f"{name} is not registered under its number")


def check_anon_vmas(frames: Frames, vmas: list[Vma]) -> None:
    """Check the chains between all VMAs of the machine and their anon_vmas, both ways, and the anon_vmas' counts.

    Raises KernelBug.
    """
    chained: dict[AnonVma, set[Vma]] = {}
    for vma in vmas:
        if vma.anon_vma is not None and vma.anon_vma not in vma.anon_vma_chain:
            raise KernelBug(f"{vma} is not chained to its own anon_vma")
        if vma.anon_vma_chain and (vma.anon_vma is None or vma.vm_flags & VM_SHARED):
            raise KernelBug(f"{vma} has a chain of anon_vmas without one of its own, or is shared")
        for anon_vma in vma.anon_vma_chain:
            chained.setdefault(anon_vma, set()).add(vma)
    active = Counter(vma.anon_vma for vma in vmas)
    children = Counter(anon_vma.parent for anon_vma in chained)
    for anon_vma, users in chained.items():
        name = f"anon_vma {anon_vma.number}"
        named = anon_vma.vmas
        if len(named) != len(users) or set(named) != users:
            raise KernelBug(f"{name} names {len(named)} VMAs, {len(users)} are chained to it")
        lost = next((vma for vma in users if vma not in anon_vma.overlapping(vma.pgoff, vma.pgoff + 1)), None)
        if lost is not None:
            raise KernelBug(f"{name} does not find {lost} by its pages")
        if anon_vma.num_active_vmas != active[anon_vma]:
            raise KernelBug(f"{name}: num_active_vmas is {anon_vma.num_active_vmas}, VMAs are {active[anon_vma]}")
        expected = children[anon_vma] + (anon_vma.parent is None)
        if anon_vma.num_children != expected:
            raise KernelBug(f"{name}: num_children is {anon_vma.num_children}, children are {expected}")
        if frames.find_mapping_number(anon_vma.number) is not anon_vma:
            raise KernelBug(f"{name} is not registered under its number")
