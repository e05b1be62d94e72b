"""/proc/PID/smaps and smaps_rollup: the resident pages of a mapping, or of all mappings, by kind and sharing.

Answers to Linux v6.8 fs/proc/task_mmu.c: smap_gather_stats(), smaps_account(), __show_smap(), show_smap_vma_flags().
Counts one leaf table at a time, in arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kerneld.fs.file_table import FileTable
from kerneld.fs.proc_maps import show_map_vma, show_rollup_header
from kerneld.fs.seq_file import END, START, Records
from kerneld.hw.distinct import distinct
from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_SPECIAL, present_mask, pte_pfn, swp_offset
from kerneld.mm import vm_flags as vm
from kerneld.mm.fault.thp import thp_eligible
from kerneld.mm.frames.frames import PG_ANON, PG_DIRTY, PG_KSM, PG_REFERENCED, PG_SWAPBACKED, Frames
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pagewalk import FEW_ENTRIES, Leaf
from kerneld.mm.space.pkeys import vma_pkey
from kerneld.mm.space.vma import Vma
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Vaddr

_LEAVES_AT_ONCE = 16
_PSS_SHIFT = 12
"""The share of a page is counted in 1/4096 of a byte. A page with 4,096 mappings counts one byte for each."""
_MNEMONICS = {
    vm.VM_READ: "rd", vm.VM_WRITE: "wr", vm.VM_EXEC: "ex", vm.VM_SHARED: "sh", vm.VM_MAYREAD: "mr",
    vm.VM_MAYWRITE: "mw", vm.VM_MAYEXEC: "me", vm.VM_MAYSHARE: "ms", vm.VM_GROWSDOWN: "gd",
    vm.VM_UFFD_MISSING: "um", vm.VM_PFNMAP: "pf",
    vm.VM_LOCKED: "lo", vm.VM_SEQ_READ: "sr", vm.VM_RAND_READ: "rr", vm.VM_DONTCOPY: "dc", vm.VM_DONTEXPAND: "de",
    vm.VM_ACCOUNT: "ac", vm.VM_NORESERVE: "nr", vm.VM_HUGETLB: "ht", vm.VM_SYNC: "sf", vm.VM_WIPEONFORK: "wf",
    vm.VM_DONTDUMP: "dd", vm.VM_SOFTDIRTY: "sd", vm.VM_HUGEPAGE: "hg", vm.VM_NOHUGEPAGE: "nh", vm.VM_MERGEABLE: "mg",
}  # fmt: skip
"""VM_LOCKONFAULT has no name: Linux also shows it as `??`."""

Words = npt.NDArray[np.uint64]
_ANON, _SWAPBACKED, _DIRTY, _YOUNG, _PRIVATE, _KSM = 1, 2, 4, 8, 16, 32
_NR_KINDS = 64
"""The number of kinds of pages that smaps tells apart. Pages are counted by kind; then the kinds are summed up."""


_SIZES: tuple[Callable[[int], bool], ...] = (
    lambda kind: not kind & (_PRIVATE | _DIRTY),
    lambda kind: kind & (_PRIVATE | _DIRTY) == _DIRTY,
    lambda kind: kind & (_PRIVATE | _DIRTY) == _PRIVATE,
    lambda kind: kind & (_PRIVATE | _DIRTY) == _PRIVATE | _DIRTY,
    lambda kind: kind & _YOUNG != 0,
    lambda kind: kind & _ANON != 0,
    lambda kind: kind & _KSM != 0,
    lambda kind: kind & (_ANON | _SWAPBACKED | _DIRTY) == _ANON,
)
"""The kinds that are shared and clean, shared and dirty, private and clean, private and dirty, referenced, anonymous,
merged, lazily freed."""
_SHARES: tuple[Callable[[int], bool], ...] = (
    lambda kind: True,
    lambda kind: kind & _DIRTY != 0,
    lambda kind: kind & _ANON != 0,
    lambda kind: not kind & (_ANON | _SWAPBACKED),
    lambda kind: kind & (_ANON | _SWAPBACKED) == _SWAPBACKED,
)
"""The kinds for the sums of shares: all, dirty pages, anonymous memory, files, shared memory."""


@dataclass(slots=True)
class MemSizeStats:
    """The resident pages of a range by kind (see `_kind`), and the sizes that are not counted by page.

    Linux: struct mem_size_stats.
    """

    pages: list[int] = field(default_factory=lambda: [0] * _NR_KINDS)
    """The number of pages of each kind."""
    shares: list[int] = field(default_factory=lambda: [0] * _NR_KINDS)
    """The sum of the shares of each kind, in 1 / 2**_PSS_SHIFT of a byte."""
    anonymous_thp: int = 0
    """In bytes, like `swap`."""
    swap: int = 0
    swap_pss: int = 0
    pss_locked: int = 0


def show_smaps(mm: MmStruct, files: FileTable, key: int) -> Records:
    """Yield the lines of the mappings that end after the address `key`, each with the numbers of its resident pages."""
    while (vma := mm.vmas.find(key)) is not None:
        stats = MemSizeStats()
        for _ in gather_stats(mm, vma.start, vma.end, stats):
            yield None
        key = vma.end
        yield key, _show_smap(mm, files, vma, stats)


def _show_smap(mm: MmStruct, files: FileTable, vma: Vma, stats: MemSizeStats) -> bytes:
    """Source: Linux v6.8 fs/proc/task_mmu.c:show_smap()."""
    stats.swap += shmem_swap_usage(mm, vma)
    if vma.vm_flags & vm.VM_LOCKED:
        stats.pss_locked = sum(stats.shares)
    page = PAGE_SIZE >> 10
    sizes = f"Size:           {(vma.end - vma.start) >> 10:8} kB\n"
    sizes += f"KernelPageSize: {page:8} kB\nMMUPageSize:    {page:8} kB\n"
    end = f"THPeligible:    {thp_eligible(mm, vma):8}\n"
    if mm.has_pkeys:
        end += f"ProtectionKey:  {vma_pkey(vma):8}\n"
    end += f"VmFlags: {show_smap_vma_flags(vma.vm_flags)}\n"
    return show_map_vma(mm, files, vma) + (sizes + _show_stats(stats, rollup=False) + end).encode()


@functools.cache
def show_smap_vma_flags(vm_flags: int) -> str:
    """Source: Linux v6.8 fs/proc/task_mmu.c:show_smap_vma_flags(); a blank follows each name. The key has none."""
    flags = vm_flags & ~vm.VM_PKEY_MASK
    return "".join(_MNEMONICS.get(1 << bit, "??") + " " for bit in range(64) if flags & 1 << bit)


def show_smaps_rollup(mm: MmStruct, key: int) -> Records:
    """Yield the sums over all mappings. Source: Linux v6.8 fs/proc/task_mmu.c:show_smaps_rollup()."""
    if key != START:
        return
    stats = MemSizeStats()
    for _ in gather_stats(mm, 0, TASK_SIZE, stats):
        yield None
    stats.swap += sum(shmem_swap_usage(mm, vma) for vma in mm.vmas)
    first, last = next(iter(mm.vmas), None), next(reversed(mm.vmas), None)
    if mm.locked_vm:
        for vma in [vma for vma in mm.vmas if vma.vm_flags & vm.VM_LOCKED]:
            locked = MemSizeStats()
            for _ in gather_stats(mm, vma.start, vma.end, locked):
                yield None
            stats.pss_locked += sum(locked.shares)
    header = show_rollup_header(first.start if first is not None else 0, last.end if last is not None else 0)
    yield END, header + _show_stats(stats, rollup=True).encode()


def gather_stats(mm: MmStruct, start: Vaddr, end: Vaddr, stats: MemSizeStats) -> Iterator[None]:
    """Add the resident pages of the page-aligned range [start, end) to `stats`. Yield between two leaf tables."""
    for number, leaf in enumerate(mm.page_table.walk.leaves(start, end), 1):
        _gather_leaf(mm, leaf, stats)
        if not number % _LEAVES_AT_ONCE:
            yield


def _gather_leaf(mm: MmStruct, leaf: Leaf, stats: MemSizeStats) -> None:
    entries = mm.page_table.walk.page_entries(leaf)
    entries = entries[entries != 0]
    if not len(entries):
        return
    present = present_mask(entries)
    counts = mm.frames.swap.count[swp_offset(entries[~present]).astype(np.int64)].astype(np.int64)
    stats.swap += len(counts) << PAGE_SHIFT
    stats.swap_pss += int(((PAGE_SIZE << _PSS_SHIFT) // counts).sum())
    counted = entries[present & ((entries & PTE_SPECIAL) == 0)]
    if len(counted):
        stats.anonymous_thp += len(counted) << PAGE_SHIFT if leaf.huge else 0
        _account(mm.frames, counted, stats)


def shmem_swap_usage(mm: MmStruct, vma: Vma) -> int:
    """Return the swapped-out bytes of a memory file in a mapping. Page-table entries do not show these.

    In a private mapping, pages that the program has its own copies of do not count.
    Source: Linux v6.8 mm/shmem.c:shmem_swap_usage(), fs/proc/task_mmu.c:smap_gather_stats(), smaps_pte_hole_lookup().
    """
    if vma.file is None or not vma.file.mapping.swapped:
        return 0
    swapped = [index for index in vma.file.mapping.swapped if vma.pgoff <= index < vma.pgoff + vma.nr_pages]
    if vma.vm_flags & (vm.VM_SHARED | vm.VM_WRITE) == vm.VM_WRITE:
        words, table = mm.frames.ram.words, mm.page_table
        ptes = [table.find_pte(vma.start + ((index - vma.pgoff) << PAGE_SHIFT)) for index in swapped]
        return sum(pte is None or not words[pte] for pte in ptes) << PAGE_SHIFT
    return len(swapped) << PAGE_SHIFT


def _account(frames: Frames, entries: Words, stats: MemSizeStats) -> None:
    """Add the pages that these present entries map. Source: Linux v6.8 fs/proc/task_mmu.c:smaps_account()."""
    if len(entries) <= FEW_ENTRIES:
        for entry in entries.tolist():
            pfn = pte_pfn(entry)
            mapcount = frames.mapcount_at[pfn]
            kind = _kind(entry, frames.flags_at[pfn], frames.refcount_at[pfn], mapcount)
            stats.pages[kind] += 1
            stats.shares[kind] += (PAGE_SIZE << _PSS_SHIFT) // (mapcount or 1)
        return
    pfns = pte_pfn(entries).astype(np.int64)
    flags, mapcount = frames.flags[pfns], frames.mapcount[pfns]
    kinds = ((flags & PG_ANON) != 0) * _ANON
    kinds += ((flags & PG_SWAPBACKED) != 0) * _SWAPBACKED
    kinds += ((flags & PG_KSM) != 0) * _KSM
    kinds += (((entries & PTE_DIRTY) != 0) | ((flags & PG_DIRTY) != 0)) * _DIRTY
    kinds += (((entries & PTE_ACCESSED) != 0) | ((flags & PG_REFERENCED) != 0)) * _YOUNG
    kinds += ((frames.refcount[pfns] == 1) | (mapcount < 2)) * _PRIVATE
    pss = (PAGE_SIZE << _PSS_SHIFT) // np.maximum(mapcount, 1).astype(np.int64)
    stats.pages = (np.bincount(kinds, minlength=_NR_KINDS) + stats.pages).tolist()
    for kind in distinct(kinds).tolist():
        stats.shares[kind] += int(pss[kinds == kind].sum())


def _kind(entry: int, flags: int, refcount: int, mapcount: int) -> int:
    """Return the kind of the page that an entry maps."""
    kind = (_ANON if flags & PG_ANON else 0) | (_SWAPBACKED if flags & PG_SWAPBACKED else 0)
    kind |= _DIRTY if entry & PTE_DIRTY or flags & PG_DIRTY else 0
    kind |= _YOUNG if entry & PTE_ACCESSED or flags & PG_REFERENCED else 0
    kind |= _KSM if flags & PG_KSM else 0
    return kind | (_PRIVATE if refcount == 1 or mapcount < 2 else 0)


def _show_stats(stats: MemSizeStats, *, rollup: bool) -> str:
    """Source: Linux v6.8 fs/proc/task_mmu.c:__show_smap()."""
    kinds = [kind for kind, pages in enumerate(stats.pages) if pages]
    shares = [sum(stats.shares[kind] for kind in kinds if is_in(kind)) >> _PSS_SHIFT for is_in in _SHARES]
    sizes = [sum(stats.pages[kind] for kind in kinds if is_in(kind)) << PAGE_SHIFT for is_in in _SIZES]
    last = (stats.swap, stats.swap_pss >> _PSS_SHIFT, stats.pss_locked >> _PSS_SHIFT)
    rows = (
        *(sum(stats.pages) << PAGE_SHIFT, *(shares if rollup else shares[:2])),
        *(*sizes, stats.anonymous_thp, 0, 0, 0, 0, *last),
    )
    return (_ROLLUP_LINES if rollup else _LINES) % tuple(size_bytes >> 10 for size_bytes in rows)


def _lines(names: Sequence[str]) -> str:
    return "".join(f"{name + ':':16}%8d kB\n" for name in names)


_SHARED_OUT = ("Rss", "Pss", "Pss_Dirty")
_REST = (
    "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "KSM", "LazyFree",
    "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss",
    "Locked",
)  # fmt: skip
_LINES = _lines((*_SHARED_OUT, *_REST))
_ROLLUP_LINES = _lines((*_SHARED_OUT, "Pss_Anon", "Pss_File", "Pss_Shmem", *_REST))
