"""/proc/PID/smaps and smaps_rollup: what of a mapping, or of all of them, is resident, and whose it is.

Answers to Linux v6.8 fs/proc/task_mmu.c: smap_gather_stats(), smaps_account(), __show_smap(), show_smap_vma_flags().
Counts one leaf table at a time, in arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kerneld.fs.file_table import FileTable
from kerneld.fs.proc_maps import show_map_vma, show_rollup_header
from kerneld.fs.seq_file import END, START, Records
from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_SPECIAL, present_mask, pte_pfn, swp_offset
from kerneld.mm import vm_flags as vm
from kerneld.mm.frames import PG_ANON, PG_DIRTY, PG_REFERENCED, PG_SWAPBACKED, Frames
from kerneld.mm.leaf_walk import Leaf
from kerneld.mm.mm import MmStruct
from kerneld.mm.pkeys import vma_pkey
from kerneld.mm.thp import thp_eligible
from kerneld.mm.vma import Vma
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Vaddr

_LEAVES_AT_ONCE = 16
_PSS_SHIFT = 12
"""A page's share is counted in 1/4096 of a byte: a page that 4,096 map counts with a byte each."""
_MNEMONICS = {
    vm.VM_READ: "rd", vm.VM_WRITE: "wr", vm.VM_EXEC: "ex", vm.VM_SHARED: "sh", vm.VM_MAYREAD: "mr",
    vm.VM_MAYWRITE: "mw", vm.VM_MAYEXEC: "me", vm.VM_MAYSHARE: "ms", vm.VM_GROWSDOWN: "gd", vm.VM_PFNMAP: "pf",
    vm.VM_LOCKED: "lo", vm.VM_SEQ_READ: "sr", vm.VM_RAND_READ: "rr", vm.VM_DONTCOPY: "dc", vm.VM_DONTEXPAND: "de",
    vm.VM_ACCOUNT: "ac", vm.VM_NORESERVE: "nr", vm.VM_HUGETLB: "ht", vm.VM_SYNC: "sf", vm.VM_WIPEONFORK: "wf",
    vm.VM_DONTDUMP: "dd", vm.VM_SOFTDIRTY: "sd", vm.VM_HUGEPAGE: "hg", vm.VM_NOHUGEPAGE: "nh", vm.VM_MERGEABLE: "mg",
}  # fmt: skip
"""Linux has none for VM_LOCKONFAULT either, and shows it as `??`."""

Words = npt.NDArray[np.uint64]


@dataclass(slots=True)
class MemSizeStats:
    """Sums over resident pages, in bytes; the pss ones in 1 / 2**_PSS_SHIFT of a byte (Linux: mem_size_stats)."""

    resident: int = 0
    shared_clean: int = 0
    shared_dirty: int = 0
    private_clean: int = 0
    private_dirty: int = 0
    referenced: int = 0
    anonymous: int = 0
    lazyfree: int = 0
    anonymous_thp: int = 0
    swap: int = 0
    pss: int = 0
    pss_anon: int = 0
    pss_file: int = 0
    pss_shmem: int = 0
    pss_dirty: int = 0
    pss_locked: int = 0
    swap_pss: int = 0


def show_smaps(mm: MmStruct, files: FileTable, key: int) -> Records:
    """Yield the lines of the mappings that end after the address `key`, and about each what is resident of it."""
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
        stats.pss_locked = stats.pss
    page = PAGE_SIZE >> 10
    sizes = f"Size:           {(vma.end - vma.start) >> 10:8} kB\n"
    sizes += f"KernelPageSize: {page:8} kB\nMMUPageSize:    {page:8} kB\n"
    end = f"THPeligible:    {thp_eligible(mm.sysctl, vma):8}\n"
    if mm.frames.processor.ospke:
        end += f"ProtectionKey:  {vma_pkey(vma):8}\n"
    end += f"VmFlags: {show_smap_vma_flags(vma.vm_flags)}\n"
    return show_map_vma(mm, files, vma) + (sizes + _show_stats(stats, rollup=False) + end).encode()


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
            stats.pss_locked += locked.pss
    header = show_rollup_header(first.start if first is not None else 0, last.end if last is not None else 0)
    yield END, header + _show_stats(stats, rollup=True).encode()


def gather_stats(mm: MmStruct, start: Vaddr, end: Vaddr, stats: MemSizeStats) -> Iterator[None]:
    """Add what is resident of the page-aligned range [start, end) to `stats`, and yield between two leaf tables."""
    for number, leaf in enumerate(mm.page_table.leaves(start, end), 1):
        _gather_leaf(mm, leaf, stats)
        if not number % _LEAVES_AT_ONCE:
            yield


def _gather_leaf(mm: MmStruct, leaf: Leaf, stats: MemSizeStats) -> None:
    entries = mm.page_table.page_entries(leaf)
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
    """Return the bytes of a file in memory in a mapping that are swapped out: no entry says so.

    Where a program may have copies of its own, only what it has none of counts.
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
    pfns = pte_pfn(entries).astype(np.int64)
    flags, mapcount = frames.flags[pfns], frames.mapcount[pfns]
    anon = (flags & PG_ANON) != 0
    swapbacked = (flags & PG_SWAPBACKED) != 0
    dirty = ((entries & PTE_DIRTY) != 0) | ((flags & PG_DIRTY) != 0)
    young = ((entries & PTE_ACCESSED) != 0) | ((flags & PG_REFERENCED) != 0)
    private = (frames.refcount[pfns] == 1) | (mapcount < 2)
    pss = (PAGE_SIZE << _PSS_SHIFT) // np.maximum(mapcount, 1).astype(np.int64)

    def size(mask: npt.NDArray[np.bool_]) -> int:
        return int(np.count_nonzero(mask)) << PAGE_SHIFT

    def share(mask: npt.NDArray[np.bool_]) -> int:
        return int(pss[mask].sum())

    stats.resident += len(pfns) << PAGE_SHIFT
    stats.shared_clean += size(~private & ~dirty)
    stats.shared_dirty += size(~private & dirty)
    stats.private_clean += size(private & ~dirty)
    stats.private_dirty += size(private & dirty)
    stats.referenced += size(young)
    stats.anonymous += size(anon)
    stats.lazyfree += size(anon & ~swapbacked & ~dirty)
    stats.pss += int(pss.sum())
    stats.pss_anon += share(anon)
    stats.pss_shmem += share(~anon & swapbacked)
    stats.pss_file += share(~anon & ~swapbacked)
    stats.pss_dirty += share(dirty)


def _show_stats(stats: MemSizeStats, *, rollup: bool) -> str:
    """Source: Linux v6.8 fs/proc/task_mmu.c:__show_smap(). There are no merged (KSM) pages."""
    rows = [
        ("Rss", stats.resident),
        ("Pss", stats.pss >> _PSS_SHIFT),
        ("Pss_Dirty", stats.pss_dirty >> _PSS_SHIFT),
    ]
    if rollup:
        rows += [
            ("Pss_Anon", stats.pss_anon >> _PSS_SHIFT),
            ("Pss_File", stats.pss_file >> _PSS_SHIFT),
            ("Pss_Shmem", stats.pss_shmem >> _PSS_SHIFT),
        ]
    rows += [
        ("Shared_Clean", stats.shared_clean),
        ("Shared_Dirty", stats.shared_dirty),
        ("Private_Clean", stats.private_clean),
        ("Private_Dirty", stats.private_dirty),
        ("Referenced", stats.referenced),
        ("Anonymous", stats.anonymous),
        ("KSM", 0),
        ("LazyFree", stats.lazyfree),
        ("AnonHugePages", stats.anonymous_thp),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", stats.swap),
        ("SwapPss", stats.swap_pss >> _PSS_SHIFT),
        ("Locked", stats.pss_locked >> _PSS_SHIFT),
    ]
    return "".join(f"{name + ':':16}{size_bytes >> 10:8} kB\n" for name, size_bytes in rows)
