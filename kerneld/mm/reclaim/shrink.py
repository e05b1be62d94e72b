"""Reclaims a batch of frames: checks their use, unmaps them, writes them, frees them.

Owns the decisions for a batch. `kerneld.mm.reclaim.vmscan` chooses its frames. The steps work on arrays, in the order
of Linux's steps for each folio. Answers to Linux v6.8
mm/vmscan.c:shrink_folio_list(), folio_check_references(), pageout(), __remove_mapping() and
mm/rmap.c:try_to_unmap_one().

| frame                                 | result                                                                      |
|---------------------------------------|-----------------------------------------------------------------------------|
| of a locked VMA                       | unevictable                                                                 |
| that a crowd of VMAs may map          | stays: see `kerneld.mm.reclaim.crowd`                                       |
| used by more than one entry, or twice | active                                                                      |
| used once since the last check        | stays, and is marked as referenced: the next use makes it active            |
| held by a call                        | active                                                                      |
| anonymous                             | replaced by swap entries, written unless the slot has the same bytes, freed |
| anonymous, no slot free               | active                                                                      |
| dirty and lent (`frames/loans.py`)    | unmapped, active: it is not written while a native program may change it    |
| lazily freed                          | freed without a write; if written since, anonymous again and active: a      |
|                                       | process whose entry came before the first dirty one has lost the page       |
| of a file                             | unmapped, written to the file if dirty, dropped from the page cache         |
| of shared anonymous memory            | unmapped, written to the swap file if dirty, dropped from the page cache    |

Differs from Linux: a huge page is split first, and not swapped as a whole; a lazily freed one is judged frame by frame.
There is no flusher thread, so dirty pages of files are written here. A write is finished when it returns, so no page is
ever under writeback.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.distinct import distinct
from kerneld.hw.paging import PTE_DIRTY, PTE_SOFT_DIRTY, PTE_SWP_EXCLUSIVE, PTE_SWP_SOFT_DIRTY, make_swap_pte
from kerneld.hw.scalars import u64
from kerneld.mm.files.dirtying import keep_dirty
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.files.shmem import shmem_writepage
from kerneld.mm.frames.frames import (
    PG_ANON,
    PG_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_KSM,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    Frames,
    Pfns,
)
from kerneld.mm.frames.huge_frames import PG_LARGE
from kerneld.mm.frames.lru import folio_activate, isolate, mlock_folios, putback
from kerneld.mm.frames.swap_state import add_to_swap, delete_many_from_swap_cache, folio_free_swap, swap_writepages
from kerneld.mm.frames.workingset import workingset_eviction
from kerneld.mm.space.pagewalk import Words
from kerneld.mm.space.rmap_walk import Mapped, Patience, rmap_walk
from kerneld.mm.space.split_folio import CROWD, split_folios
from kerneld.mm.space.vma import vma_has_recency
from kerneld.mm.vm_flags import VM_EXEC, VM_LOCKED, VM_RAND_READ, VM_SEQ_READ

Mask = npt.NDArray[np.bool_]
_TREATED = VM_LOCKED | VM_EXEC | VM_SEQ_READ | VM_RAND_READ
"""The flags of a VMA that reclaim asks for."""
BATCH_MAX = 512
"""The most frames of one batch."""


class Users:
    """The use of each frame of a batch, from its page-table entries. Reading it clears their accessed bits.

    Source: Linux v6.8 mm/rmap.c:folio_referenced().
    """

    def __init__(self, frames: Frames, pfns: Pfns, patience: Patience) -> None:
        count = len(pfns)
        self.entries: list[Mapped] = _joined(frames, pfns, rmap_walk(frames, pfns, patience))
        number = np.zeros(count, dtype=np.int64)
        for mapped in self.entries:
            number[mapped.at] += 1
        self.unknown: Mask = number != frames.mapcount[pfns]
        """Whether some of a frame's entries were not looked for: see `rmap_walk`."""
        self.referenced = np.zeros(count, dtype=np.int64)
        """For each frame, the number of entries through which it was accessed."""
        self.locked = np.zeros(count, dtype=np.bool_)
        self.executable = np.zeros(count, dtype=np.bool_)
        for mapped in self.entries:
            if mapped.vma.vm_flags & VM_LOCKED:
                self.locked[mapped.at] = True
            elif vma_has_recency(mapped.vma):
                self._add_accesses(mapped)

    def _add_accesses(self, mapped: Mapped) -> None:
        """The walk for a frame has ended at its first locked VMA: the entries behind it keep their accessed bits."""
        walked = ~self.locked[mapped.at]
        at = mapped.at[walked]
        if len(at):
            young = mapped.mm.pages.clear_young(mapped.ptes[walked], mapped.vaddrs[walked])
            self.referenced[at[young]] += 1
            self.executable[at[young]] |= mapped.vma.vm_flags & VM_EXEC != 0


def _joined(frames: Frames, pfns: Pfns, entries: list[Mapped]) -> list[Mapped]:
    """Return the entries with those of small VMAs together, as if neighbours were one VMA: a step for each costs most.

    Only anonymous memory that nobody listens to: a frame is there once, and no listener hears of pages between.
    """
    joined: list[list[Mapped]] = []
    for mapped in entries:
        if joined and _is_alike(frames, pfns, joined[-1][-1], mapped):
            joined[-1].append(mapped)
        else:
            joined.append([mapped])
    return [same[0] if len(same) == 1 else _join(same) for same in joined]


def _is_alike(frames: Frames, pfns: Pfns, mapped: Mapped, following: Mapped) -> bool:
    """Return whether reclaim treats two groups of entries in the same way, and the second begins behind the first."""
    mm, vma, other = mapped.mm, mapped.vma, following.vma
    if mm is not following.mm or mm.notifiers or (vma.vm_flags ^ other.vm_flags) & _TREATED:
        return False
    flags = frames.flags_at[pfns[following.at[0]]]
    return flags & (PG_ANON | PG_KSM) == PG_ANON and bool(mapped.vaddrs[-1] < following.vaddrs[0])


def _join(same: list[Mapped]) -> Mapped:
    at, vaddrs, ptes = (np.concatenate([mapped[field] for mapped in same]) for field in (2, 3, 4))
    return Mapped(same[0].mm, same[0].vma, at, vaddrs, ptes)


def shrink_folio_list(
    frames: Frames,
    pfns: Pfns,
    patience: Patience | None = None,
    *,
    ignore_references: bool = False,
    may_write: bool = True,
    crowded: list[int] | None = None,
) -> int:
    """Reclaim a batch of isolated frames as far as possible, each given once. Return the number of freed frames.

    The caller's reference of each frame is dropped. Frames that stay go to the head of their list. Without
    `may_write` a dirty page of a file is left for the flusher: it is unmapped, active, and noted by
    `HostCache.set_reclaim`. A frame whose entries the search for them misses stays, and is added to `crowded`.
    Source: Linux v6.8 mm/vmscan.c:shrink_folio_list().
    """
    # A lazily freed huge page is dropped as it is, or stays one. One that a crowd maps stays until kswapd splits it.
    is_large = frames.has(pfns, PG_LARGE) & frames.has(pfns, PG_SWAPBACKED)
    whole = is_large & (frames.mapcount[pfns] > CROWD)
    split_folios(frames, pfns[is_large & ~whole])
    users = Users(frames, pfns, patience or Patience())
    users.unknown |= whole
    locked = users.locked
    mlock_folios(frames, pfns[locked])
    candidates = ~locked & ~users.unknown
    if crowded is not None:
        crowded += pfns[users.unknown & ~locked].tolist()
    activate = np.zeros(len(pfns), dtype=np.bool_)
    if not ignore_references:
        activate, keep = _check_references(frames, pfns, users)
        activate &= candidates
        candidates &= ~activate & ~keep
    lazyfree = frames.has(pfns, PG_ANON) & ~frames.has(pfns, PG_SWAPBACKED)
    pinned = frames.refcount[pfns] != 1 + frames.mapcount[pfns] + _cache_pins(frames, pfns)
    refused = pinned & ~lazyfree & candidates
    refused |= _add_to_swap(frames, pfns, candidates & ~refused & ~lazyfree)
    refused |= _try_to_unmap(frames, pfns, users, candidates & ~refused, kept=pinned | frames.has(pfns, PG_DIRTY))
    activate |= refused
    candidates &= ~refused
    failed = _pageout(frames, pfns, candidates, may_write)
    activate |= failed
    candidates &= ~failed
    _remove_mapping(frames, pfns[candidates])
    putback(frames, pfns[~candidates])
    _activate(frames, pfns[activate & ~locked])
    nr_reclaimed = int(np.count_nonzero(frames.refcount[pfns] == 1))
    frames.put_pages(pfns)
    return nr_reclaimed


def _cache_pins(frames: Frames, pfns: Pfns) -> npt.NDArray[np.int64]:
    """Return the number of references that the page cache or the swap cache holds of each frame."""
    return (~frames.has(pfns, PG_ANON) | frames.has(pfns, PG_SWAPCACHE)).astype(np.int64)


def _check_references(frames: Frames, pfns: Pfns, users: Users) -> tuple[Mask, Mask]:
    """Return the frames that become active, and the frames that stay for another round.

    Source: Linux v6.8 mm/vmscan.c:folio_check_references().
    """
    was_referenced = frames.has(pfns, PG_REFERENCED)
    used = users.referenced > 0
    is_file = ~frames.has(pfns, PG_SWAPBACKED)
    activate = used & (was_referenced | (users.referenced > 1) | (users.executable & is_file))
    activate &= ~users.locked
    frames.clear(pfns, PG_REFERENCED)
    frames.set(pfns[used & ~users.locked], PG_REFERENCED)
    return activate, used & ~activate


def _add_to_swap(frames: Frames, pfns: Pfns, candidates: Mask) -> Mask:
    """Give anonymous candidates a slot in the swap file. Return those that get none."""
    # The swap cache also holds frames that are not anonymous yet.
    new = np.flatnonzero(candidates & frames.has(pfns, PG_ANON) & ~frames.has(pfns, PG_SWAPCACHE))
    given = add_to_swap(frames, pfns[new])
    refused = np.zeros(len(pfns), dtype=np.bool_)
    refused[new[len(given) :]] = True
    return refused


def _try_to_unmap(frames: Frames, pfns: Pfns, users: Users, candidates: Mask, kept: Mask) -> Mask:
    """Remove the candidates from the page tables, and move their dirty bits to the frames. Return those that stay.

    The entries of a lazily freed frame are removed in the order of the walk, up to the first one that is dirty. That
    entry is put back, and the rest stay: the frame is normal anonymous memory again. `kept` are the lazily freed frames
    that are dirty, or held by a call, before the walk: they stay at their first entry.
    Source: Linux v6.8 mm/rmap.c:try_to_unmap_one().
    """
    words = frames.ram.words_np
    lazyfree = frames.has(pfns, PG_ANON) & ~frames.has(pfns, PG_SWAPBACKED)
    entries = swap_entries(frames, pfns)
    stay, dirtied = np.zeros((2, len(pfns)), dtype=np.bool_)
    for mapped in users.entries:
        at = mapped.at
        wanted = candidates[at] & ~stay[at]
        dirty = wanted & ((words[mapped.ptes] & u64(PTE_DIRTY)) != 0)
        dirtied[at] |= dirty
        stay[at] |= wanted & lazyfree[at] & (dirty | kept[at])
        wanted &= ~stay[at]
        if wanted.any():
            swapped = keep_soft_dirty(words[mapped.ptes[wanted]], entries[at[wanted]])
            mapped.mm.pages.unmap_frames(mapped.ptes[wanted], mapped.vaddrs[wanted], swapped)
    frames.set(pfns[dirtied], PG_DIRTY)
    frames.set(pfns[stay], PG_SWAPBACKED)
    gone = candidates & ~stay
    frames.clear(pfns[gone & frames.has(pfns, PG_SWAPCACHE)], PG_ANON_EXCLUSIVE)
    left = gone & (frames.mapcount[pfns] != 0)
    if left.any():
        if not frames.has(pfns[left], PG_KSM).all():
            raise KernelBug("a frame is mapped by an entry that its mapping does not lead to")
        # The reverse map of a merged frame need not be whole. Source: Linux v6.8 mm/vmscan.c: folio_mapped().
        stay |= left
        gone &= ~left
    for pfn in pfns[gone & dirtied & ~frames.has(pfns, PG_ANON | PG_SWAPCACHE)].tolist():
        keep_dirty(_mapping_of(frames, pfn), frames.index_at[pfn], pfn)
    return stay


def swap_entries(frames: Frames, pfns: Pfns) -> Words:
    """Return the entry that replaces each frame's: one of its slot, or 0 if it has none."""
    exclusive = frames.has(pfns, PG_ANON_EXCLUSIVE)
    entries = make_swap_pte(frames.swap_slot[pfns].astype(np.uint64)) | exclusive * u64(PTE_SWP_EXCLUSIVE)
    entries[~frames.has(pfns, PG_SWAPCACHE)] = 0
    return entries


def keep_soft_dirty(entries: Words, swapped: Words) -> Words:
    """Return what replaces each of some entries, `swapped`, with the soft-dirty bits of these.

    Source: Linux v6.8 mm/rmap.c:try_to_unmap_one().
    """
    marked = ((entries & u64(PTE_SOFT_DIRTY)) != u64(0)) & (swapped != u64(0))
    return np.where(marked, swapped | u64(PTE_SWP_SOFT_DIRTY), swapped)


def _mapping_of(frames: Frames, pfn: int) -> AddressSpace:
    mapping = frames.find_mapping(pfn)
    if not isinstance(mapping, AddressSpace):
        raise KernelBug(f"frame {pfn:#x} of a page cache has no mapping")
    return mapping


def _pageout(frames: Frames, pfns: Pfns, candidates: Mask, may_write: bool) -> Mask:
    """Write the dirty candidates, which are unmapped now. Return those that could not be written.

    Source: Linux v6.8 mm/vmscan.c:pageout().
    """
    failed = np.zeros(len(pfns), dtype=np.bool_)
    dirty = candidates & frames.has(pfns, PG_DIRTY)
    if frames.loans is not None:
        # A native program may still write to it: what is written now would not be its last contents.
        failed = dirty & frames.loans.has(pfns)
        dirty &= ~failed
    swapped = np.flatnonzero(dirty & frames.has(pfns, PG_SWAPCACHE))
    if len(swapped):
        done = swap_writepages(frames, pfns[swapped], frames.swap_slot[pfns[swapped]].astype(np.int64))
        frames.clear(pfns[swapped[done]], PG_DIRTY)
        failed[swapped[~done]] = True
    cached = dirty & ~frames.has(pfns, PG_SWAPCACHE | PG_ANON)
    shmem = np.flatnonzero(cached & frames.has(pfns, PG_SWAPBACKED))
    if len(shmem):
        failed[shmem] = ~_shmem_writepages(frames, pfns[shmem])
    for place in np.flatnonzero(cached & ~frames.has(pfns, PG_SWAPBACKED)).tolist():
        pfn = int(pfns[place])
        mapping = _mapping_of(frames, pfn)
        if not may_write:
            if not mapping.is_shmem:
                mapping.host.set_reclaim(frames.index_at[pfn])
            failed[place] = True
            continue
        # The mapping reports a failure at the next msync. As in Linux the page is then clean, and its contents are
        # lost.
        mapping.write_page(frames.index_at[pfn], mapping.size_bytes())
    frames.vmstat["nr_vmscan_write"] += int(np.count_nonzero(dirty & ~failed))
    return failed


def _shmem_writepages(frames: Frames, pfns: Pfns) -> Mask:
    """Write pages of shared anonymous memory to the swap file, and free their frames. Return which were written.

    Source: Linux v6.8 mm/shmem.c:shmem_writepage().
    """
    swap = frames.swap
    slots = swap.get_swap_pages(len(pfns))
    done = np.zeros(len(pfns), dtype=np.bool_)
    swap.count[slots] = 1
    done[: len(slots)] = swap_writepages(frames, pfns[: len(slots)], slots)
    for number, slot in enumerate(slots.tolist()):
        pfn = int(pfns[number])
        if done[number]:
            swap.shadow_at[slot] = int(workingset_eviction(frames, pfns[number : number + 1])[0])
            shmem_writepage(frames, _mapping_of(frames, pfn), frames.index_at[pfn], slot)
        else:
            swap.swap_free(slot)
    return done


def _remove_mapping(frames: Frames, pfns: Pfns) -> None:
    """Remove clean, unmapped frames from their cache. The caller then has the last reference.

    Source: Linux v6.8 mm/vmscan.c:__remove_mapping().
    """
    in_swap_cache, of_file = frames.has(pfns, PG_SWAPCACHE), ~frames.has(pfns, PG_SWAPCACHE | PG_ANON)
    frames.vmstat["pglazyfreed"] += int(np.count_nonzero(~in_swap_cache & ~of_file))
    swapped = pfns[in_swap_cache]
    if len(swapped):
        frames.swap.shadow[frames.swap_slot[swapped]] = workingset_eviction(frames, swapped)
        delete_many_from_swap_cache(frames, swapped)
    cached = pfns[of_file & (frames.refcount[pfns] > 1)]
    shadows, numbers = workingset_eviction(frames, cached), frames.mapping[cached]
    for number in distinct(numbers).tolist():
        ours = numbers == number
        mapping = _mapping_of(frames, int(cached[ours][0]))
        indexes = frames.index[cached[ours]].tolist()
        mapping.drop_pages(indexes)
        if not mapping.is_shmem:
            mapping.shadows.update(indexes, shadows[ours].tolist())


def _activate(frames: Frames, pfns: Pfns) -> None:
    """Make frames active. If the swap file is more than half full, frames of the swap cache give up their slots."""
    if frames.swap.is_full:
        for pfn in pfns[frames.has(pfns, PG_SWAPCACHE)].tolist():
            folio_free_swap(frames, pfn)
    pfns = pfns[~frames.has(pfns, PG_UNEVICTABLE)]
    folio_activate(frames, pfns)


def reclaim_pages(frames: Frames, pfns: Pfns, *, may_write: bool = True) -> int:
    """Reclaim these frames of the LRU lists, each given once, used or not. Return the number of freed frames.

    Source: Linux v6.8 mm/vmscan.c:reclaim_pages().
    """
    isolate(frames, pfns)
    return sum(
        shrink_folio_list(frames, pfns[start : start + BATCH_MAX], ignore_references=True, may_write=may_write)
        for start in range(0, len(pfns), BATCH_MAX)
    )
