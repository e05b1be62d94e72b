"""Frames: the fields of Linux's `struct page`, one array for each field, and the allocation of frames.

Owns each frame's reference count, map count, flags, mapping, index, swap slot and age. Knows no address space. When
memory runs out it calls `slowpath`, which the builder of the machine sets. Answers to Linux v6.8
include/linux/mm_types.h (struct page), include/linux/page-flags.h and mm/page_alloc.c.

Invariants: a frame is free exactly when its reference count is 0; `refcount = page-table entries + pins`; `mapcount =
page-table entries`; frame 0 is never handed out. The page cache, the swap cache and the use as a page table hold one
pin each. A call that needs a frame after an allocation holds a pin meanwhile, and reclaim does not take such a frame.
Frame ZERO_PFN is the shared zero page: special entries map it, and it is never counted.

Each field has two views of the same memory: the numpy array for ranges, and a memoryview (`_at`) for one frame at a
time. An index into the memoryview costs a third of an index into the array.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug, SysError
from kerneld.hw.processor import Processor
from kerneld.hw.ram import Ram
from kerneld.hw.scalars import i32, u32
from kerneld.mm.frames.buddy import Buddy, OutOfFrames
from kerneld.mm.frames.given import GivenFrames
from kerneld.mm.frames.huge_frames import HugeFrames
from kerneld.mm.frames.kernel_objects import KernelObjects
from kerneld.mm.frames.loans import Loans
from kerneld.mm.frames.swap import SwapFile
from shared.uapi.page import PAGE_SHIFT, Pfn

if TYPE_CHECKING:
    from kerneld.mm.space.dying import Dying
    from kerneld.mm.space.ksm_state import Ksm

ZERO_PFN: Pfn = 1
"""The shared zero page."""
FIRST_PFN: Pfn = 2

PG_REFERENCED = 1 << 1
PG_DIRTY = 1 << 4
PG_LRU = 1 << 5
"""The frame is on an LRU list: `kerneld.mm.frames.lru` knows which."""
PG_ACTIVE = 1 << 6
PG_UNEVICTABLE = 1 << 7
"""Memory of a locked VMA, which reclaim does not take (Linux: PG_mlocked and PG_unevictable, which are equal here)."""
PG_ANON = 1 << 8
"""The frame's mapping is an anon_vma (Linux: the low bit of page->mapping)."""
PG_SWAPBACKED = 1 << 9
"""The frame is anonymous or of a file in memory, and needs swap to be reclaimed. An anonymous frame without this flag
is lazily freed: it is dropped if nobody has written to it since MADV_FREE."""
PG_ANON_EXCLUSIVE = 1 << 10
"""The frame belongs to only one address space: a write need not copy it (Linux: PageAnonExclusive)."""
PG_TABLE = 1 << 11
"""A table below the root of a page table."""
PG_SWAPCACHE = 1 << 12
"""The swap cache holds the frame for the slot in `swap_slot`."""
PG_WORKINGSET = 1 << 13
"""The frame was on an active list before."""
PG_PGD = 1 << 14
"""The root of a page table. Linux v6.8 counts and marks it as no page table (arch/x86/mm/pgtable.c:_pgd_alloc())."""

PG_KSM = 1 << 15
"""The frame has been merged: its mapping is a stable node (Linux: PAGE_MAPPING_KSM). PG_ANON is set too."""

Pfns = npt.NDArray[np.int64]

LRU_CLOCK_END = (1 << 32) - 1
_NONE, _ONE = u32(0), i32(1)
_FRAMES_OF_PART = 1 << 14


class Frames:
    """Every frame of `ram`, and the free ones among them."""

    mlock_more: npt.NDArray[np.int32]
    """The number of locked VMAs that map an unevictable frame, without the first (Linux: folio->mlock_count)."""
    has_mlock_more = False
    """Whether one of these numbers has ever been more than 0."""
    ksm: Ksm | None = None
    """What KSM knows of this machine; None as long as no memory has been mergeable."""
    has_merged = False
    """Whether a frame has ever been merged. Only then may entries of one address space map a frame more than once, and
    an array of the frames of a range name it more than once."""
    ksm_zero_pages = 0
    """The number of entries in which KSM has put the zero page in place of a page of zeros."""

    def __init__(self, ram: Ram, swap: SwapFile | None = None, processor: Processor | None = None) -> None:
        self.ram = ram
        self.swap = swap or SwapFile()
        self.processor = processor or Processor()
        """The processor of the machine, with its rights to the memory of protection keys."""
        count = ram.nr_frames
        self._make_fields(count)
        self.lru_clock = 0
        self.lru_sizes_noted: tuple[int, int, list[int]] = (LRU_CLOCK_END + 1, 0, [])
        """When `kerneld.mm.frames.lru.recent_lru_sizes` last counted: the clock, ahead of it for never, how many frames
        were free, and what it found."""
        self.nonresident_age = 0
        """The number of evictions and activations so far. It measures the distance from an eviction to a refault
        (Linux: mm/workingset.c)."""
        self.lru_cost = [0, 0]
        """The recent cost of reclaiming anonymous memory and files (Linux: lruvec->anon_cost, file_cost)."""
        self.buddy = Buddy(count, FIRST_PFN)
        self.refcount_at[0] = self.refcount_at[ZERO_PFN] = 1
        self.total_pages = count - FIRST_PFN
        self.nr_shmem = 0
        """Cached pages of files in memory and of shared anonymous memory (Linux: NR_SHMEM)."""
        self.committed_as = 0
        """Pages promised to private writable mappings and shared memory (Linux: vm_committed_as)."""
        self.vmstat: Counter[str] = Counter()
        """Events of reclaim and swap, under their names in /proc/vmstat."""
        self.watermark_min = self.watermark_low = self.watermark_high = 0
        """Numbers of free pages: allocations reclaim below the first; the background pass starts below the second and
        ends at the third."""
        self.slowpath: Callable[[int], None] | None = None
        """Called with the number of wanted frames if that would leave `watermark_min` or fewer free. It makes room, or
        raises SysError(ENOMEM) (Linux: __alloc_pages_slowpath())."""
        self.may_stall = False
        """Whether what runs can begin again, or go on later: then an allocation in it reclaims at most once. So it is
        for each request, from its first piece to its last."""
        self.has_stalled = False
        """Whether `slowpath` has raised SysError(ENOMEM) because of that: see `take_stall`."""
        self.has_reclaimed = False
        """Whether an allocation of the present piece of a request has reclaimed: enough for one turn."""
        self.may_use_reserve = False
        """Whether allocations may use half of what lies below the minimum (Linux: __GFP_HIGH)."""
        self.dying: Dying | None = None
        """The address spaces that are freed in pieces; None if they are freed at once."""
        self.alloc_hook: Callable[[int], None] | None = None
        """Called with the number of frames before each allocation. Tests make it raise SysError(ENOMEM)."""
        self.loans: Loans | None = None
        """The frames that are lent; None while there are none."""
        self.given = GivenFrames(self)
        """The frames that are given in advance."""
        self.huge = HugeFrames(self)
        """The accounts of whole huge pages."""
        self._mappings: WeakValueDictionary[int, object] = WeakValueDictionary()
        self._next_mapping = 1

    @contextlib.contextmanager
    def stalling(self) -> Iterator[None]:
        """Let allocations reclaim at most once: what runs, outside of requests, goes on later."""
        self.may_stall = True
        try:
            yield
        finally:
            self.may_stall = self.has_stalled = False

    def take_stall(self) -> bool:
        """Return whether an allocation has failed only because reclaim takes longer, and forget it.

        The caller tries again after other clients have been served.
        """
        has_stalled, self.has_stalled = self.has_stalled, False
        return has_stalled

    def _make_fields(self, count: int) -> None:
        """Make the fields of all frames, each an array, and the same as a memoryview for a single frame."""
        self.refcount = np.zeros(count, dtype=np.int32)
        self.mapcount = np.zeros(count, dtype=np.int32)
        self.flags = np.zeros(count, dtype=np.uint32)
        self.mapping = np.zeros(count, dtype=np.uint32)
        """The number of the frame's anon_vma or address_space; 0 for none. See `register_mapping`."""
        self.index = np.zeros(count, dtype=np.uint64)
        """The frame's page offset in its mapping (Linux: page->index)."""
        self.swap_slot = np.zeros(count, dtype=np.uint32)
        """The slot of the swap file of a frame in the swap cache (Linux: folio->swap)."""
        self.mlock_more = np.zeros(count, dtype=np.int32)
        self.lru = np.zeros(count, dtype=np.uint32)
        """The time by `lru_clock` at which the frame came to the head of its LRU list. The list is in this order."""
        self.refcount_at = self.refcount.data
        self.mapcount_at = self.mapcount.data
        self.flags_at = self.flags.data
        self.mapping_at = self.mapping.data
        self.index_at = self.index.data
        self.swap_slot_at = self.swap_slot.data
        self.lru_at = self.lru.data

    @functools.cached_property
    def kernel_objects(self) -> KernelObjects:
        """The account of the daemon's own memory for mappings."""
        return KernelObjects(self.ram.nr_frames << PAGE_SHIFT)

    @property
    def free_pages(self) -> int:
        """The number of free frames."""
        return self.buddy.nr_free

    def parts(self) -> Iterator[slice]:
        """Return all frames in parts of 64 MiB of RAM, for callers that look at every frame.

        What is computed for a part stays in the processor's cache. For all frames of 16 GiB at once it takes three
        times as long or more.
        """
        count = len(self.flags)
        return iter([slice(low, min(low + _FRAMES_OF_PART, count)) for low in range(0, count, _FRAMES_OF_PART)])

    def register_mapping(self, mapping: object) -> int:
        """Give an anon_vma or address_space a number, by which frames refer to it."""
        number = self._next_mapping
        self._next_mapping += 1
        self._mappings[number] = mapping
        return number

    def find_mapping_number(self, number: int) -> object | None:
        """Return the anon_vma or address_space with this number, or None if it does not exist any more."""
        return self._mappings.get(number)

    def mappings(self) -> Iterator[object]:
        """Yield the anon_vmas and address_spaces that there are now and still are when their turn comes."""
        for reference in self._mappings.valuerefs():
            mapping = reference()
            if mapping is not None:
                yield mapping

    def find_mapping(self, pfn: Pfn) -> object | None:
        """Return the anon_vma or address_space of a frame, or None."""
        return self._mappings.get(self.mapping_at[pfn])

    def alloc_page(self, flags: int = 0, *, zero: bool = True) -> Pfn:
        """Take one frame with a reference count of 1 and these PG_ flags, filled with zeros unless `zero` is false.

        Raises SysError(ENOMEM) when none is free.
        """
        if self.alloc_hook is not None:
            self.alloc_hook(1)
        if self.buddy.nr_free <= self.watermark_min and self.slowpath is not None:
            self.slowpath(1)
        try:
            pfn = self.buddy.alloc_one()
        except OutOfFrames:
            raise SysError(errno.ENOMEM) from None
        if zero:
            self.ram.clear_page(pfn)
        self.flags_at[pfn] = flags
        self.refcount_at[pfn] = 1
        if self.lru_clock >= LRU_CLOCK_END:
            self._turn_clock_back()
        self.lru_clock = self.lru_at[pfn] = self.lru_clock + 1
        return pfn

    def alloc_pages(self, count: int, flags: int = 0, *, zero: bool = True) -> Pfns:
        """Take `count` single frames as `alloc_page` does: all or none. Raises SysError(ENOMEM)."""
        if self.alloc_hook is not None:
            self.alloc_hook(count)
        if self.buddy.nr_free - count < self.watermark_min and self.slowpath is not None:
            self.slowpath(count)
        try:
            pfns = self.buddy.alloc_many(count)
        except OutOfFrames:
            raise SysError(errno.ENOMEM) from None
        if zero:
            self.ram.clear_pages(pfns)
        self.flags[pfns] = flags
        self.refcount[pfns] = 1
        self.stamp(pfns)
        return pfns

    def make_room(self, count: int) -> bool:
        """Reclaim for `count` frames that are soon taken one after the other, if so many are not free.

        Return False where the caller is to ask again in its next turn: after one reclaim. Whoever needs many asks for a
        part of them at a time.
        """
        if self.buddy.nr_free - count >= self.watermark_min or self.slowpath is None:
            return True
        try:
            self.slowpath(count)
        except SysError:
            return not self.take_stall()
        return not (self.may_stall and self.has_reclaimed)

    def stamp(self, pfns: Pfns) -> None:
        """Put frames at the head of their LRU list in this order; the last one is then the first of the list."""
        clock = self.reserve_stamps(len(pfns))
        self.lru[pfns] = np.arange(clock + 1, clock + 1 + len(pfns), dtype=np.uint32)

    def reserve_stamps(self, count: int) -> int:
        """Let the clock of the LRU lists go on by `count`, and return what it was before."""
        if self.lru_clock + count > LRU_CLOCK_END:
            self._turn_clock_back()
        clock = self.lru_clock
        self.lru_clock = clock + count
        return clock

    def _turn_clock_back(self) -> None:
        """Give every frame a new stamp in the same order, before the stamps need more than 32 bits.

        It is rarely needed.
        """
        stamped = np.flatnonzero(self.lru)
        order = np.argsort(self.lru[stamped], kind="stable")
        self.lru[stamped[order]] = np.arange(1, 1 + len(stamped), dtype=np.uint32)
        self.lru_clock = len(stamped)

    def has(self, pfns: Pfns | slice, flags: int) -> npt.NDArray[np.bool_]:
        """Return for each of these frames whether it has at least one of these PG_ flags."""
        found: npt.NDArray[np.bool_] = (self.flags[pfns] & u32(flags)) != _NONE
        return found

    def set(self, pfns: Pfns | slice, flags: int) -> None:
        """Set these PG_ flags of the frames. Other flags stay."""
        self.flags[pfns] |= u32(flags)

    def clear(self, pfns: Pfns | slice, flags: int) -> None:
        """Clear these PG_ flags of the frames. Other flags stay."""
        self.flags[pfns] &= u32(~flags)

    def get_page(self, pfn: Pfn) -> None:
        """Take one more reference: the frame is not freed before `put_page` (Linux: folio_get())."""
        self.refcount_at[pfn] += 1

    def get_pages(self, pfns: Pfns | slice) -> None:
        """Take one reference more of each frame, as often as it is named."""
        self.count_each(self.refcount, pfns, _ONE)

    def count_each(self, counts: npt.NDArray[np.int32], pfns: Pfns | slice, number: npt.NDArray[np.int32]) -> None:
        """Add a number to one of the counts of each frame, as often as the frame is named."""
        if self.has_merged and not isinstance(pfns, slice):
            np.add.at(counts, pfns, number)
        else:
            counts[pfns] += number

    def get_mapped(self, low: Pfn, high: Pfn) -> None:
        """Take a reference more of each frame of [low, high), for an entry more that maps it."""
        # `+=` would store the slice into itself.
        for counts in (self.refcount[low:high], self.mapcount[low:high]):
            np.add(counts, _ONE, counts)

    def put_page(self, pfn: Pfn) -> None:
        """Drop one reference; the last one frees the frame. Source: Linux v6.8 mm/swap.c:__folio_put()."""
        count = self.refcount_at[pfn] - 1
        self.refcount_at[pfn] = count
        if count == 0:
            self._forget(pfn)
            if self.loans is None:
                self.buddy.free_one(pfn)
            else:
                self.buddy.free_many(self.loans.keep(np.array([pfn])))
        elif count < 0:
            raise KernelBug(f"frame {pfn:#x} is put more often than it was got")

    def put_pages(self, pfns: Pfns) -> None:
        """Drop one reference of each frame, as often as it is named, and free the frames without references."""
        times: int | npt.NDArray[np.intp] = 1
        if self.has_merged:
            pfns, times = np.unique(pfns, return_counts=True)
        counts = self.refcount[pfns] - times
        self.refcount[pfns] = counts
        dead = pfns[counts == 0]
        if len(counts) and int(counts.min()) < 0:
            raise KernelBug("a frame is put more often than it was got")
        if len(dead):
            self.flags[dead] = 0
            if self.has_mlock_more:
                self.mlock_more[dead] = 0
            self.mapping[dead] = 0
            self.buddy.free_many(dead if self.loans is None else self.loans.keep(dead))

    def lend(self, pfns: Pfns) -> None:
        """Lend frames, in rising order and each once: see `kerneld.mm.frames.loans`."""
        if not len(pfns):
            return
        if self.loans is None:
            self.loans = Loans(self)
        self.loans.lend(pfns)

    def give_back(self, pfns: Pfns) -> None:
        """End one loan of each of these frames."""
        if self.loans is None:
            return
        self.loans.give_back(pfns)
        if self.loans.is_over:
            self.loans = None

    def is_lent(self, pfn: Pfn) -> bool:
        """Return whether a native program may still change what a frame holds."""
        return self.loans is not None and bool(self.loans.has(np.array([pfn]))[0])

    def _forget(self, pfn: Pfn) -> None:
        if self.mapcount_at[pfn]:
            raise KernelBug(f"frame {pfn:#x} is freed while {self.mapcount_at[pfn]} entries map it")
        self.flags_at[pfn] = 0
        if self.has_mlock_more:
            self.mlock_more[pfn] = 0
        self.mapping_at[pfn] = 0
