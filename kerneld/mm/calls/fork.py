"""fork: a copy of an address space; both share the private pages until one of them writes.

Answers to Linux v6.8 kernel/fork.c:dup_mmap() and mm/memory.c:copy_page_range(), copy_present_pte().

| VMA of the parent                   | in the child                                                          |
|-------------------------------------|-----------------------------------------------------------------------|
| VM_DONTCOPY                         | absent                                                                |
| VM_WIPEONFORK                       | present, empty                                                        |
| without an anon_vma                 | present, empty: its pages can be faulted in again from the file       |
| shared                              | present, empty (likewise)                                             |
| private with an anon_vma            | same frames and swap slots, both sides write-protected                |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from kerneld.errors import SysError
from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_MASK,
    PTE_PSE,
    PTE_RW,
    PTE_SPECIAL,
    PTE_SWP_EXCLUSIVE,
    present_mask,
    pte_pfn,
    pte_present,
    swap_mask,
)
from kerneld.hw.scalars import u64
from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.space.ksm import ksm_fork
from kerneld.mm.space.mdwe import inherit_mdwe
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.mm.space.pace import Pace, Steps, run_at_once
from kerneld.mm.space.pagewalk import FEW_ENTRIES, Leaf, Run
from kerneld.mm.space.rmap import anon_vma_fork
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import userfaultfd_drop
from kerneld.mm.vm_flags import VM_ACCOUNT, VM_DONTCOPY, VM_LOCKED_MASK, VM_SHARED, VM_WIPEONFORK
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, Vaddr

_COPIED = (
    "mmap_base", "is_bottom_up", "start_brk", "brk", "start_stack", "start_code", "end_code", "start_data", "end_data",
    "arg_start", "arg_end", "env_start", "env_end", "exe_path", "owner", "dumpable", "merge_any", "thp_disabled",
    "reserved", "has_pkeys", "pkey_allocation_map", "execute_only_pkey",
)  # fmt: skip


def dup_mmap(old: MmStruct) -> MmStruct:
    """Return the child's address space; the parent's private pages become write-protected.

    Raises SysError(ENOMEM), also with too many VMAs on the machine; the incomplete child is then removed, and the
    parent's pages may stay write-protected.
    """
    new = new_copy(old)
    try:
        run_at_once(dup_in_pieces(old, new))
    except SysError:
        exit_mmap(new)
        raise
    return new


def new_copy(old: MmStruct) -> MmStruct:
    """Return an empty address space that is to be a copy of another. Raises SysError(ENOMEM)."""
    old.frames.kernel_objects.check_room(old.owner, len(old.vmas), in_fork=True)
    new = MmStruct(old.frames, old.rlimits.copy(), old.sysctl)
    for name in _COPIED:
        setattr(new, name, getattr(old, name))
    inherit_mdwe(new, old)
    return new


def dup_in_pieces(old: MmStruct, new: MmStruct) -> Steps:
    """Make an empty address space a copy of another, VMA by VMA; yield when both are consistent.

    Linux holds the mmap_lock of both, so that no thread of the parent changes the part that is not copied yet: the
    caller must ensure that here. Raises SysError(ENOMEM); the copy is then incomplete.
    Source: Linux v6.8 kernel/fork.c:dup_mmap().
    """
    ksm_fork(old, new)
    pace = Pace()
    copied = _Stretch()
    vma = old.vmas.find(0)
    while vma is not None:
        has_pages = not vma.vm_flags & VM_DONTCOPY and _dup_vma(old, new, vma)
        if not has_pages or not copied.may_have(vma):
            yield from _copy_pages(old, new, copied, pace)
        if has_pages:
            copied.add(vma)
        end = vma.end
        if pace.is_over():
            yield from _copy_pages(old, new, copied, pace)
            yield
            pace.begin()
        vma = old.vmas.find(end)
    yield from _copy_pages(old, new, copied, pace)
    # The present number of resident pages is the child's first peak (Linux: dup_mm()).
    new.rss.restart_hiwater()
    new.hiwater_vm = new.total_vm


class _Stretch:
    """VMAs whose entries are copied together: small ones are many, and a walk for each would cost most of the fork.

    It is one VMA, or several of anonymous memory, in which no frame is mapped twice. Each begins in the leaf table in
    which the last one ends, and no other VMA is between them: what is there has neither entries nor tables of its own.
    """

    def __init__(self) -> None:
        self.first: Vma | None = None
        self.end: Vaddr = 0

    def may_have(self, vma: Vma) -> bool:
        """Return whether the next VMA, in order, may be added."""
        if self.first is None:
            return True
        is_anonymous = self.first.file is None and vma.file is None
        return is_anonymous and vma.start & -PMD_SIZE == (self.end - 1) & -PMD_SIZE

    def add(self, vma: Vma) -> None:
        """Add a VMA."""
        self.first = self.first or vma
        self.end = vma.end


def _dup_vma(old: MmStruct, new: MmStruct, vma: Vma) -> bool:
    """Give the child a copy of a VMA, and return whether its entries are to be copied. Raises SysError(ENOMEM)."""
    # Other processes may have forked between two pieces of this.
    new.frames.kernel_objects.check_room(new.owner, 1, in_fork=True)
    if vma.vm_flags & VM_ACCOUNT:
        check_enough_memory(old, vma.nr_pages)
    child = vma.dup(vma.start, vma.end, vma.pgoff)
    child.vm_flags &= ~VM_LOCKED_MASK
    if child.userfaultfd_ctx is not None:
        userfaultfd_drop(child)
    wiped = vma.vm_flags & VM_WIPEONFORK
    if not wiped:
        anon_vma_fork(child, vma, new.frames)
    new.insert_vma(child)
    return not wiped and vma.anon_vma is not None


def _copy_pages(old: MmStruct, new: MmStruct, stretch: _Stretch, pace: Pace) -> Steps:
    """Copy the entries of a stretch, which is empty then; yield as `dup_in_pieces` does."""
    first, stretch.first = stretch.first, None
    if first is None:
        return
    start, end = first.start, stretch.end
    if old.page_table.find_pte(start) is None or end > (start & -PMD_SIZE) + PMD_SIZE:
        while not _has_room(new, partial(new.page_table.copy_upper, old.page_table, start, end)):
            yield
    size = 0
    while start < end:
        stop = pace.far_stop(old.page_table.walk, start, end, size)
        if not _has_room(new, partial(copy_page_range, old, new, first, start, stop)):
            # The child keeps its tables, and next comes one: to begin the whole fork again would give all back.
            new.pages.zap_range(start, stop)
            size = PMD_SIZE
            yield
            continue
        start, size = stop, 0
        if start < end and pace.is_over():
            yield
            pace.begin()


def _has_room(new: MmStruct, copy: Callable[[], None]) -> bool:
    """Make a step of the copy; return False if it is to be made again in the next turn, after a reclaim.

    Raises SysError(ENOMEM).
    """
    try:
        copy()
    except SysError:
        if not new.frames.take_stall():
            raise
        return False
    return True


def copy_page_range(old: MmStruct, new: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Give the child the parent's entries of a part of a stretch, which begins with `vma`, some leaf tables at a time.

    The child gets a table, upper ones too (`copy_upper`), wherever the parent has one, even without entries of these
    VMAs. Raises SysError(ENOMEM).
    Source: Linux v6.8 mm/memory.c:copy_page_range().
    """
    old.page_table.walk.page_range(start, end, partial(_copy_ptes, old, new, vma), partial(copy_huge_pmd, old, new))


def _copy_ptes(old: MmStruct, new: MmStruct, vma: Vma, run: Run) -> None:
    # Tables are made before any entry is read: the allocation may reclaim pages of the parent.
    place = new.page_table.ensure_run(run)
    filled = old.page_table.walk.find_filled(run)
    if filled is not None:
        if filled is not run:
            place = new.page_table.ensure_run(filled)
        if not _copy_few(old, new, vma, filled, place):
            _copy_run(old, new, vma, filled, place)


def _copy_few(old: MmStruct, new: MmStruct, vma: Vma, run: Run, place: Run) -> bool:
    """Do the same as `_copy_run`, entry by entry, and return True; False if they are many, or one is swapped out."""
    if not isinstance(run, Leaf) or not isinstance(place, Leaf) or run.high - run.low > FEW_ENTRIES:
        return False
    shared = vma.vm_flags & VM_SHARED
    entries = old.page_table.walk.read(run).tolist()
    if any(entry and not pte_present(entry) for entry in entries):
        return False
    for number, entry in enumerate(entries):
        if not entry:
            continue
        vaddr = run.start + (number << PAGE_SHIFT)
        old.pages.update_pte(run.low + number, vaddr, entry if shared else entry & ~PTE_RW)
        copied = entry & (~(PTE_ACCESSED | PTE_DIRTY) if shared else ~(PTE_ACCESSED | PTE_RW))
        if entry & PTE_SPECIAL:
            new.pages.set_zero_pte(place.low + number, vaddr, copied)
            continue
        new.pages.share_pte(place.low + number, vaddr, copied, pte_pfn(entry))
    return True


def _copy_run(old: MmStruct, new: MmStruct, vma: Vma, run: Run, place: Run) -> None:
    """Copy the entries of a run to the child's empty entries; both then share the frames and the swap slots.

    Both sides are write-protected, so that the next write of either side copies the page. Source: Linux v6.8
    mm/memory.c:copy_present_pte(), copy_nonpresent_pte(): the child's entries are old; in a shared VMA they stay
    writable, but the child's are clean.
    """
    entries = kept = old.page_table.walk.read(run)
    present, swapped = present_mask(entries), swap_mask(entries)
    if not vma.vm_flags & VM_SHARED:
        kept = np.where(present, entries & u64(~PTE_RW), entries)
    if swapped.any():
        kept = np.where(swapped, entries & u64(~PTE_SWP_EXCLUSIVE), kept)
        new.pages.share_swap_ptes(place, np.where(swapped, kept, u64(0)))
    if (kept != entries).any():
        old.pages.update_ptes(run, kept)
    copied = np.where(present, kept & u64(~PTE_ACCESSED), u64(0))
    if vma.vm_flags & VM_SHARED:
        copied &= u64(~PTE_DIRTY)
    new.pages.share_ptes(place, copied)


def copy_huge_pmd(old: MmStruct, new: MmStruct, leaf: Leaf) -> bool:
    """Give the child the parent's entry of 2 MiB; both entries become write-protected.

    Returns False, with nothing done, if reclaim has split the huge page while tables were allocated.
    Raises SysError(ENOMEM). Source: Linux v6.8 mm/huge_memory.c:copy_huge_pmd(): the child's entry is old.
    """
    frames = old.frames
    pmd = new.page_table.ensure_pmd(leaf.start)
    new.page_table.deposit_new()
    entry = frames.ram.words[leaf.low] & ~PTE_RW
    if not entry & PTE_PSE:
        new.page_table.free_deposit()
        return False
    if entry & PTE_SPECIAL:
        new.pages.set_huge_zero_pmd(pmd, leaf.start, entry & ~(PTE_PFN_MASK | PTE_ACCESSED))
        return True
    head = pte_pfn(entry)
    run = slice(head, head + HPAGE_PMD_NR)
    frames.clear(run, PG_ANON_EXCLUSIVE)
    frames.get_pages(run)
    old.pages.update_huge_pmd(leaf.low, leaf.start, entry)
    new.pages.set_huge_pmd(pmd, leaf.start, entry & ~PTE_ACCESSED, head)
    return True
