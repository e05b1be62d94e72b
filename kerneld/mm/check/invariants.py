"""The invariants of an address space and of the whole machine, recomputed from nothing.

`check_mm` checks one address space. `check_machine` checks all address spaces together with the frames. Both raise
KernelBug with the first error, and change nothing. Tests run them after every call. So they work on arrays: one walk
over each page table, then comparisons.

They do not check that mergeable neighbours are merged. That is no invariant, also not in Linux: see `find_unmerged`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.paging import (
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_RW,
    PTE_SPECIAL,
    PTE_SWP_EXCLUSIVE,
    PTE_SWP_SOFT_DIRTY,
    PTE_UNNOTICED,
    PTE_USER,
    make_swap_pte,
    present_mask,
    pte_pfn,
    pte_pkey,
    swap_mask,
    swp_offset,
)
from kerneld.hw.scalars import u64
from kerneld.mm.check.frame_accounts import check_anon_vmas, check_frames, check_mapping
from kerneld.mm.check.ksm_accounts import check_ksm
from kerneld.mm.check.swap_accounts import check_swap
from kerneld.mm.check.whole_table import Walk, Words, walk_page_table
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import (
    FIRST_PFN,
    PG_ANON,
    PG_ANON_EXCLUSIVE,
    PG_DIRTY,
    PG_KSM,
    PG_SWAPBACKED,
    ZERO_PFN,
    Frames,
)
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rss import Rss, is_ksm_zero
from kerneld.mm.space.unmapped_area import meets_reserved
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_STACK,
    VM_UFFD_FLAGS,
    VM_WRITE,
    is_shared_maywrite,
)
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PMD_SIZE, TASK_SIZE

Mask = npt.NDArray[np.bool_]


def check_machine(frames: Frames, mms: Iterable[MmStruct], mappings: Iterable[AddressSpace] = ()) -> None:
    """Check every address space, every cached file and every frame of the machine.

    `mms` are all address spaces, also those of forked children that are not attached yet. `mappings` are files that may
    have cached pages although no VMA maps them. Raises KernelBug.
    """
    mms = list(mms)
    walks = [check_mm(mm) for mm in mms]
    vmas = [vma for mm in mms for vma in mm.vmas]
    cached: dict[AddressSpace, dict[Vma, MmStruct]] = {mapping: {} for mapping in mappings}
    for mm in mms:
        for vma in mm.vmas:
            if vma.file is not None:
                cached.setdefault(vma.file.mapping, {})[vma] = mm
    for mapping, users in cached.items():
        _require(mapping.i_mmap == users, f"i_mmap of mapping {mapping.number} names other VMAs than map it")
        writable = sum(is_shared_maywrite(vma.vm_flags) for vma in mapping.i_mmap)
        _require(mapping.i_mmap_writable == writable, f"i_mmap_writable of mapping {mapping.number} is not {writable}")
        check_mapping(frames, mapping)
    check_anon_vmas(frames, vmas)
    check_frames(frames, walks, list(cached), [pfn for mm in mms for pfn in mm.page_table.deposited])
    check_swap(frames, walks, list(cached))
    check_ksm(frames, mms)
    promised = sum(vma.nr_pages for vma in vmas if vma.vm_flags & VM_ACCOUNT)
    promised += sum(mapping.accounted_pages for mapping in cached)
    _require(frames.committed_as == promised, f"committed_as is {frames.committed_as}, promised are {promised} pages")
    shmem = sum(len(mapping.pages) for mapping in cached if mapping.is_shmem)
    _require(frames.nr_shmem == shmem, f"nr_shmem is {frames.nr_shmem}, files in memory have {shmem} cached pages")


def check_mm(mm: MmStruct) -> Walk:
    """Check one address space: VMAs, page table, entries against VMAs, counters. Return the walk over its page table.

    Raises KernelBug.
    """
    mm.vmas.check()
    vmas = list(mm.vmas)
    _check_vmas(vmas)
    accessible = [vma for vma in vmas if vma.vm_flags & VM_ACCESS_FLAGS]
    stub_is_free = not any(meets_reserved(mm, vma.start, vma.end - vma.start) for vma in accessible)
    _require(stub_is_free, "a VMA with access is where the stub is")
    walk = walk_page_table(mm.frames.ram, mm.page_table.root)
    starts = np.array([vma.start for vma in vmas], dtype=np.uint64)
    ends = np.array([vma.end for vma in vmas], dtype=np.uint64)
    _check_tables(mm, walk, starts, ends)
    place = np.searchsorted(starts, walk.vaddrs, side="right") - 1
    covered = place >= 0
    covered[covered] = walk.vaddrs[covered] < ends[place[covered]]
    _refuse(walk, ~covered, "lies in no VMA")
    _check_huge_entries(walk, vmas, starts, ends)
    if len(walk.entries):
        _check_entries(mm, walk, vmas, place)
    _check_counters(mm, walk, vmas)
    return walk


def find_unmerged(mm: MmStruct) -> list[tuple[Vma, Vma]]:
    """Return the pairs of neighbours without a fault that could be one VMA but are two.

    Two neighbours with an anon_vma may stay separate for good. They could not merge when one of them was made or
    changed, and a fault that gives both the same anon_vma never merges (Linux v6.8 mm/mmap.c:can_vma_merge_after(),
    is_mergeable_anon_vma()). Neighbours without an anon_vma are separate only in these cases, as in Linux: one split
    succeeded and the next failed at vm.max_map_count; a fork unlocked two VMAs of which one was locked; a stack grew
    down to another stack; a heap begins at the end of program data; the upper one is an attach of System V's.
    """
    vmas = list(mm.vmas)
    return [
        (low, high)
        for low, high in itertools.pairwise(vmas)
        if low.end == high.start
        and low.anon_vma is None
        and high.anon_vma is None
        and low.file is high.file
        and low.pgoff + low.nr_pages == high.pgoff
        and not (low.vm_flags ^ high.vm_flags) & ~VM_SOFTDIRTY
        and low.anon_name == high.anon_name
        and low.userfaultfd_ctx is high.userfaultfd_ctx
        and not high.has_close
    ]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise KernelBug(message)


def _refuse(walk: Walk, bad: Mask, message: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise KernelBug(f"entry {int(walk.entries[first]):#x} at {int(walk.vaddrs[first]):#x} {message}")


def _check_vmas(vmas: list[Vma]) -> None:
    end = 0
    for vma in vmas:
        _require(not (vma.start | vma.end) & ~PAGE_MASK, f"{vma} is not page-aligned")
        _require(vma.start < vma.end <= TASK_SIZE, f"{vma} is empty or leaves user space")
        _require(vma.start >= end, f"{vma} overlaps the one below it, which ends at {end:#x}")
        _require(vma.pgoff >= 0, f"{vma} has a negative offset")
        _require(vma.file is None or not vma.vm_flags & VM_GROWSDOWN, f"{vma} grows down, and its offsets are a file's")
        _require(vma.file is not None or not vma.vm_flags & VM_SHARED, f"{vma} is shared, and nothing holds its pages")
        is_watched = vma.userfaultfd_ctx is not None
        _require(
            is_watched == (vma.vm_flags & VM_UFFD_FLAGS != 0), f"{vma} is watched by no userfaultfd, or for nothing"
        )
        end = vma.end


def _check_tables(mm: MmStruct, walk: Walk, starts: Words, ends: Words) -> None:
    """Check that every table except the root covers at least a part of a VMA. Other tables should have been freed."""
    for level in walk.levels[1:]:
        spans = level.starts + np.uint64((1 << level.span_shift) - 1)
        next_vma = np.searchsorted(ends, level.starts, side="right")
        useless = next_vma == len(starts)
        useless[~useless] = starts[next_vma[~useless]] > spans[~useless]
        # A dying address space loses its VMAs first.
        if useless.any() and not mm.is_dying:
            first = int(level.starts[useless][0])
            raise KernelBug(f"a table for {first:#x} and {1 << level.span_shift:#x} bytes on covers no VMA")
    deposited = len(mm.page_table.deposited)
    count = len(walk.table_pfns) + deposited
    _require(mm.page_table.table_pages == count, f"table_pages is {mm.page_table.table_pages}, tables are {count}")
    huge = len(walk.huge_entries)
    _require(deposited == huge, f"deposited tables are {deposited}, entries of 2 MiB are {huge}")


def _check_huge_entries(walk: Walk, vmas: list[Vma], starts: Words, ends: Words) -> None:
    """Check that an entry of 2 MiB lies completely in one anonymous VMA."""
    place = np.searchsorted(starts, walk.huge_vaddrs, side="right") - 1
    for vaddr, entry, at in zip(walk.huge_vaddrs.tolist(), walk.huge_entries.tolist(), place.tolist(), strict=True):
        inside = at >= 0 and vaddr + PMD_SIZE <= int(ends[at])
        _require(inside and vmas[at].file is None, f"huge page {entry:#x} at {vaddr:#x} lies in no anonymous VMA whole")


def _check_entries(mm: MmStruct, walk: Walk, vmas: list[Vma], place: npt.NDArray[np.int64]) -> None:
    """Check that no entry allows more than its VMA, and that each maps the right frame for its address."""
    entries = walk.entries
    _check_swap_entries(mm, walk, vmas, place)
    present = present_mask(entries)
    walk = walk._replace(vaddrs=walk.vaddrs[present], entries=entries[present])
    entries, place = walk.entries, place[present]
    flags = np.array([vma.vm_flags for vma in vmas], dtype=np.uint64)[place]
    hardware, protnone, writable = _has(entries, PTE_PRESENT), _has(entries, PTE_PROTNONE), _has(entries, PTE_RW)
    _refuse(walk, hardware & protnone, "is both present and PROT_NONE")
    _refuse(walk, writable & ~(hardware & _has(flags, VM_WRITE)), "is writable, its VMA is not")
    _refuse(walk, hardware & ~_has(entries, PTE_NX) & ~_has(flags, VM_EXEC), "is executable, its VMA is not")
    _refuse(walk, hardware & ~_has(flags, VM_ACCESS_FLAGS), "is present, its VMA allows no access")
    _refuse(walk, protnone & _has(flags, VM_ACCESS_FLAGS), "is PROT_NONE, its VMA is not")
    _refuse(walk, hardware & ~_has(entries, PTE_USER), "is not for user mode")
    keys = (flags & u64(VM_PKEY_MASK)) >> u64(VM_PKEY_SHIFT)
    _refuse(walk, pte_pkey(entries) != keys, "has another protection key than its VMA")
    present = present_mask(entries)
    pfns = pte_pfn(entries).astype(np.int64)
    special = present & _has(entries, PTE_SPECIAL)
    anonymous = np.array([vma.file is None for vma in vmas])[place]
    zero = pfns == ZERO_PFN
    huge_zero = mm.frames.huge.zero_pfn
    if huge_zero is not None:
        zero |= pfns - huge_zero == (walk.vaddrs.astype(np.int64) & PMD_SIZE - 1) >> PAGE_SHIFT
    _refuse(walk, special & (~zero | writable | ~anonymous), "is special, but no read-only zero page")
    counted = present & ~special
    _refuse(walk, counted & ((pfns < FIRST_PFN) | (pfns >= mm.frames.ram.nr_frames)), "maps a frame out of bounds")
    pfns[~counted] = 0
    _check_mapped_frames(mm, walk, vmas, place, np.where(counted, pfns, -1))


def _check_swap_entries(mm: MmStruct, walk: Walk, vmas: list[Vma], place: npt.NDArray[np.int64]) -> None:
    """Check that a swap entry has Linux's layout, has a slot in use, and lies in private memory with an anon_vma."""
    swapped = swap_mask(walk.entries)
    slots = swp_offset(walk.entries)
    _refuse(walk, swapped & (slots >= np.uint64(max(1, len(mm.frames.swap.count)))), "names no slot of the swap file")
    slots = np.where(swapped, slots, u64(0)).astype(np.int64)
    plain = make_swap_pte(slots.astype(np.uint64))
    _refuse(
        walk,
        swapped & ((walk.entries & u64(~(PTE_SWP_EXCLUSIVE | PTE_SWP_SOFT_DIRTY))) != plain),
        "is no swap entry: odd bits",
    )
    private = np.array([vma.anon_vma is not None and not vma.vm_flags & VM_SHARED for vma in vmas])[place]
    _refuse(walk, swapped & ~private, "is a swap entry where no anonymous memory can be")


def _check_mapped_frames(
    mm: MmStruct, walk: Walk, vmas: list[Vma], place: npt.NDArray[np.int64], pfns: npt.NDArray[np.int64]
) -> None:
    """Check the mapped frames. `pfns` has the frame of each entry, -1 for an entry without a counted frame."""
    frames = mm.frames
    counted = pfns >= 0
    page_flags = frames.flags[pfns].astype(np.uint64)
    anon = counted & _has(page_flags, PG_ANON)
    cached = counted & ~anon
    writable, dirty = _has(walk.entries, PTE_RW), _has(walk.entries, PTE_DIRTY)
    flags = np.array([vma.vm_flags for vma in vmas], dtype=np.uint64)[place]
    shared = _has(flags, VM_SHARED)
    number = np.array([vma.file.mapping.number if vma.file is not None else 0 for vma in vmas])[place]
    real_file = np.array([vma.file is not None and vma.file.mapping.backing is not None for vma in vmas])[place]
    first_index = np.array([vma.pgoff for vma in vmas], dtype=np.uint64)[place]
    vma_start = np.array([vma.start for vma in vmas], dtype=np.uint64)[place]
    index = first_index + ((walk.vaddrs - vma_start) >> u64(PAGE_SHIFT))
    merged = counted & _has(page_flags, PG_KSM)
    _refuse(walk, counted & ~merged & (frames.index[pfns] != index), "maps a frame of another index")
    _refuse(walk, cached & (frames.mapping[pfns] != number), "maps a page that is not of its VMA's file")
    _refuse(walk, cached & ~shared & writable, "is a private mapping of a file's own page, and writable")
    noticed = cached & shared & real_file & (writable | dirty)
    in_memory = np.array([vma.file is not None and vma.file.mapping.is_shmem for vma in vmas])[place]
    wanted = cached & shared & real_file & in_memory & _has(flags, VM_WRITE)
    _refuse(walk, _has(walk.entries, PTE_UNNOTICED) & ~wanted, "waits for a write that none has to notice")
    clean = noticed & ~in_memory & ~_has(page_flags, PG_DIRTY)
    _refuse(walk, clean, "is writable or dirty, and maps a clean page of a file")
    for at in np.flatnonzero(noticed & writable).tolist():
        file = vmas[place[at]].file
        saved = file is not None and file.mapping.is_shmem and int(index[at]) not in file.mapping.unsaved
        _require(not saved, f"{walk.vaddrs[at]:#x} is writable, and its file has what it maps")
    _refuse(walk, anon & shared, "maps an anonymous frame in a shared VMA")
    exclusive = _has(page_flags, PG_ANON_EXCLUSIVE)
    _refuse(walk, anon & writable & ~exclusive, "is writable, and its anonymous frame may have other owners")
    _refuse(walk, anon & exclusive & (frames.mapcount[pfns] != 1), "maps an exclusive frame that is mapped elsewhere")
    chains = {(at, link.number) for at, vma in enumerate(vmas) for link in vma.anon_vma_chain}
    usual = anon & ~merged
    pairs = np.unique(np.stack([place[usual], frames.mapping[pfns[usual]]]), axis=1).T.tolist()
    for at, mapping in pairs:
        _require((at, mapping) in chains, f"{vmas[at]} maps frames of anon_vma {mapping}, which is not in its chain")


def _has(values: Words, bits: int) -> Mask:
    """Return for each value whether it has any of these bits."""
    mask: Mask = (values & np.uint64(bits)) != 0
    return mask


def _check_counters(mm: MmStruct, walk: Walk, vmas: list[Vma]) -> None:
    """Check the counters of an mm.

    Source of the kinds: Linux v6.8 mm/mmap.c:vm_stat_account() and include/linux/mm.h:is_exec_mapping() and on.
    """
    kinds = {
        "total_vm": 0,
        "exec_vm": 0,
        "stack_vm": 0,
        "data_vm": 0,
        "locked_vm": 0,
        "shared_vm": 0,
        "promised_pages": 0,
    }
    for vma in vmas:
        pages = (vma.end - vma.start) >> PAGE_SHIFT
        flags = vma.vm_flags
        kinds["total_vm"] += pages
        kinds["locked_vm"] += pages * (flags & VM_LOCKED != 0)
        kinds["promised_pages"] += pages * (flags & VM_ACCOUNT != 0)
        kinds["shared_vm"] += pages * (flags & VM_SHARED != 0)
        kinds["stack_vm"] += pages * (flags & VM_STACK != 0)
        kinds["exec_vm"] += pages * (flags & (VM_EXEC | VM_WRITE | VM_STACK) == VM_EXEC)
        kinds["data_vm"] += pages * (flags & (VM_WRITE | VM_SHARED | VM_STACK) == VM_WRITE)
    kinds["locked_vm"] += mm.uncounted_unlocked_pages
    for name, counted in kinds.items():
        _require(getattr(mm, name) == counted, f"{name} is {getattr(mm, name)}, the VMAs have {counted} pages")
    _require(mm.map_count == len(vmas), f"map_count is {mm.map_count}, VMAs are {len(vmas)}")
    present = walk.entries[present_mask(walk.entries) & ~_has(walk.entries, PTE_SPECIAL)]
    flags_of = mm.frames.flags[pte_pfn(present).astype(np.int64)].astype(np.uint64)
    anon, swapbacked = _has(flags_of, PG_ANON), _has(flags_of, PG_SWAPBACKED)
    rss = {Rss.ANON: anon, Rss.SHMEM: ~anon & swapbacked, Rss.FILE: ~anon & ~swapbacked}
    for kind, mask in rss.items():
        counted = int(np.count_nonzero(mask))
        _require(mm.rss.counts[kind] == counted, f"rss of {kind.name} is {mm.rss.counts[kind]}, entries are {counted}")
    zeros = int(np.count_nonzero(is_ksm_zero(walk.entries)))
    _require(mm.rss.ksm_zero_pages == zeros, f"ksm_zero_pages is {mm.rss.ksm_zero_pages}, entries are {zeros}")
    swapped = int(np.count_nonzero(~present_mask(walk.entries)))
    _require(
        mm.rss.counts[Rss.SWAP] == swapped, f"rss of SWAP is {mm.rss.counts[Rss.SWAP]}, swap entries are {swapped}"
    )
