"""An address space: its VMAs, its page table, its counters, and the few primitives that change VMAs.

| part               | owns                                              | who changes it                     |
|--------------------|---------------------------------------------------|------------------------------------|
| `mm.vmas`          | the VMAs, by address                              | `MmStruct` alone                   |
| `mm.page_table`    | the tables, and the way to an entry               | whoever needs a table, or frees it |
| `mm.pages`         | the entries: what each page is mapped to          | `Pages` alone                      |
| `mm.rss`           | the frames that entries hold; resident pages      | `Pages` alone                      |
| `mm.notifiers`     | who is told of each change of VMAs and of entries | whoever listens                    |

`MmStruct` and `Pages` notify: a forgotten hook is not possible. The calls (mmap, munmap, fork …) are functions on an mm
in files of their own. Knows no task. Answers to Linux v6.8 include/linux/mm_types.h (mm_struct) and mm/mmap.c
(vma_link, vm_stat_account, exit_mmap).

Invariants: VMAs are sorted and disjoint, and neighbours that can merge are merged; the counters equal what a walk over
VMAs and entries finds; an entry that is not 0 lies in a VMA.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_NX,
    PTE_PKEY_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_RW,
    PTE_UNNOTICED,
    PTE_USER,
)
from kerneld.mm.frames.frames import Frames
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.space.notifier import Notifiers
from kerneld.mm.space.pages import Pages
from kerneld.mm.space.pagetable import PageTable
from kerneld.mm.space.rmap import post_update_vma, pre_update_vma, split_anon_vma, unlink_anon_vmas
from kerneld.mm.space.rss import RssStat
from kerneld.mm.space.vma import Vma, vma_soft_dirty_enabled
from kerneld.mm.space.vma_tree import VmaTree
from kerneld.mm.vm_flags import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_EXEC,
    VM_LOCKED,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_SHARED,
    VM_STACK,
    VM_WRITE,
)
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.space.ksm_state import MmSlot
    from kerneld.mm.space.userfaultfd import Userfault

MMAP_BASE = 0x7FFF_F7FF_F000
"""Top of the mmap area: 128 MiB below the stack's top, as Linux without address randomisation (what gdb shows).

Source: Linux v6.8 arch/x86/mm/mmap.c:mmap_base(), where the gap for an 8 MiB stack is clamped up to 128 MiB.
"""


_EXEC_OR_NOT, _DATA_OR_NOT = VM_EXEC | VM_WRITE | VM_STACK, VM_WRITE | VM_SHARED | VM_STACK
"""The flags that decide whether memory counts as code (is_exec_mapping()), and whether as data (is_data_mapping())."""
_numbers = itertools.count(1)


@functools.cache
def vm_get_page_prot(vm_flags: int) -> int:
    """Return the entry bits of a page of a VMA with these flags, before write-protection for COW or dirty tracking.

    Source: Linux v6.8 arch/x86/mm/pgprot.c:protection_map: private writable memory is read-only there until a fault;
    vm_get_page_prot(): memory without rights has its key too.
    """
    key = (vm_flags & VM_PKEY_MASK) << (PTE_PKEY_SHIFT - VM_PKEY_SHIFT)
    if not vm_flags & VM_ACCESS_FLAGS:
        return PTE_PROTNONE | PTE_ACCESSED | PTE_NX | key
    bits = PTE_PRESENT | PTE_USER | PTE_ACCESSED | key
    if vm_flags & VM_WRITE and vm_flags & VM_SHARED:
        bits |= PTE_RW
    return bits if vm_flags & VM_EXEC else bits | PTE_NX


def vma_page_prot(vma: Vma) -> int:
    """Return the entry bits of a fresh page of a VMA (Linux: vma->vm_page_prot).

    A shared file's pages start write-protected, so that the first write is seen and the page noted dirty. So do those
    of all shared memory whose soft-dirty pages are looked for.
    Source: Linux v6.8 mm/mmap.c:vma_set_page_prot() and vma_wants_writenotify().
    """
    bits = vm_get_page_prot(vma.vm_flags)
    if bits & PTE_RW:
        mapping = None if vma.file is None else vma.file.mapping
        if vma.tracks_writes:
            bits &= ~PTE_RW
        elif mapping is not None and mapping.backing is not None:
            bits = bits & ~PTE_RW | (PTE_UNNOTICED if mapping.is_shmem else 0)
    return bits


def vma_set_page_prot(vma: Vma) -> None:
    """Let the entry bits of a VMA's fresh pages follow whether soft-dirty pages are looked for there.

    They do not follow by themselves: a VMA that grows by a merge may get or lose VM_SOFTDIRTY, and keeps its bits.
    Source: Linux v6.8 mm/mmap.c:vma_set_page_prot(); mm/madvise.c:madvise_update_vma(), which does not call it.
    """
    vma.tracks_writes = vma_soft_dirty_enabled(vma)


class MmStruct:
    """One address space (Linux: struct mm_struct)."""

    ksm_slot: MmSlot | None = None
    """Its place among the address spaces that KSM scans (Linux: MMF_VM_MERGEABLE)."""
    ksm_merging_pages = 0
    """Its pages that are merged, as far as the scan has noted them."""
    ksm_rmap_items = 0
    """Its pages that KSM has scanned and keeps in mind."""
    userfault: Userfault | None = None
    """The last access that a userfaultfd has to settle: see VM_FAULT_RETRY in `kerneld.mm.fault.vm_fault`."""
    mdwe = 0
    """PR_MDWE_ flags: see `kerneld.mm.space.mdwe`."""
    is_bottom_up = False
    """Whether addresses are searched upwards from TASK_UNMAPPED_BASE, not downwards from `mmap_base`: the layout of
    ADDR_COMPAT_LAYOUT (Linux: mm->get_unmapped_area is arch_get_unmapped_area())."""

    def __init__(self, frames: Frames, rlimits: Rlimits, sysctl: Sysctl) -> None:
        """Make an empty address space. Raises SysError(ENOMEM) if no frame is left for the page table's root."""
        self.number = next(_numbers)
        """The unique number by which traces and programs name the address space; it is never used again."""
        self.frames = frames
        self.page_table = PageTable(frames)
        self.notifiers = Notifiers()
        self.rss = RssStat(frames)
        self.rlimits = rlimits
        self.sysctl = sysctl
        self.vmas = VmaTree()
        self.pages = Pages(frames, self.page_table, self.rss, self.notifiers, self.vmas, self.number)
        self.total_vm = 0
        """Pages of all VMAs; each of the next four counts the pages of one kind of VMA (Linux: vm_stat_account())."""
        self.data_vm = self.exec_vm = self.stack_vm = self.locked_vm = 0
        self.shared_vm = 0
        """Pages of VMAs whose pages are those of a file, for writes too (VM_SHARED)."""
        self.promised_pages = 0
        """What it has of `Frames.committed_as`: the pages of its VM_ACCOUNT VMAs."""
        self.uncounted_unlocked_pages = 0
        """Pages that `locked_vm` still counts although no VMA has them: see `keep_locked_vm`."""
        self.hiwater_vm = 0
        """The largest `total_vm` before it last fell: VmPeak is this or `total_vm` (Linux: mm->hiwater_vm)."""
        self.range_major_faults = 0
        self.range_faults = 0
        """Faults that calls on ranges have taken, for the fault counters: not always one a page (fault-around)."""
        self.def_flags = 0
        """VM_LOCKED and VM_LOCKONFAULT of mlockall(MCL_FUTURE), given to new VMAs."""
        self.merge_any = self.thp_disabled = False
        """What prctl has set. `thp_disabled`: it gets no huge pages (Linux: MMF_DISABLE_THP). `merge_any`: its memory
        may be merged with equal pages (Linux: MMF_VM_MERGE_ANY). See `kerneld.mm.space.ksm`."""
        self.reserved: tuple[Vaddr, Vaddr] = (0, 0)
        """Where the stub of a native program lies: no mapping that can be accessed may meet it, and others only if the
        program says where. Linux has no such range."""
        self.has_pkeys = frames.processor.ospke
        """Whether its memory may have protection keys: not that of a native program."""
        self.pkey_allocation_map = 1 if frames.processor.ospke else 0
        """Allocated protection keys, one bit each; key 0 always is (Linux: mm->context.pkey_allocation_map)."""
        self.execute_only_pkey = -1 if frames.processor.ospke else 0
        """The key of execute-only memory, -1 as long as none has been needed (Linux: mm->context)."""
        self._begin_layout()
        self.owner = frames.kernel_objects.superuser
        """The account that pays for its mappings: see `charge_to`."""
        self.dumpable = True
        """Whether other processes of the same user may inspect it (Linux: get_dumpable() == SUID_DUMP_USER)."""
        self.users = 1
        """Number of users: its process, and calls of other processes on it (Linux: mm->mm_users). See `mmput`."""
        self.is_dying = False
        """Whether it has no users any more and is being taken down: `kerneld.mm.space.dying`, or will be at once."""
        self.exe_path = ""
        """The path of the program's file, for /proc; empty before the first execve."""

    def _begin_layout(self) -> None:
        """Set the bounds of code, data, heap, stack and arguments; execve and brk change them."""
        self.mmap_base: Vaddr = MMAP_BASE
        self.start_brk: Vaddr = 0
        self.brk: Vaddr = 0
        self.start_stack: Vaddr = 0
        self.start_code = self.end_code = self.start_data = self.end_data = 0
        self.arg_start = self.arg_end = self.env_start = self.env_end = 0

    @property
    def map_count(self) -> int:
        """How many VMAs there are."""
        return self.vmas.count

    @property
    def is_superusers(self) -> bool:
        """Whether its process is the superuser (Linux: capable()). Faults ask this; calls know it from their caller."""
        return self.owner.is_superuser

    def charge_to(self, uid: int, *, is_superuser: bool) -> None:
        """Charge its mappings to this user from now on: its process acts as this user."""
        self.owner.nr_vmas -= self.map_count
        self.owner = self.frames.kernel_objects.owner_of(uid, is_superuser=is_superuser)
        self.owner.nr_vmas += self.map_count

    def _account(self, vm_flags: int, pages: int) -> None:
        """Source: Linux v6.8 mm/mmap.c:vm_stat_account(), and mm->locked_vm and vm_committed_as beside it."""
        self.total_vm += pages
        if vm_flags & _EXEC_OR_NOT == VM_EXEC:
            self.exec_vm += pages
        elif vm_flags & VM_STACK:
            self.stack_vm += pages
        elif vm_flags & _DATA_OR_NOT == VM_WRITE:
            self.data_vm += pages
        if vm_flags & VM_LOCKED:
            self.locked_vm += pages
        if vm_flags & VM_SHARED:
            self.shared_vm += pages
        if vm_flags & VM_ACCOUNT:
            self.promised_pages += pages
            self.frames.committed_as += pages

    def keep_locked_vm(self, pages: int) -> None:
        """Set `locked_vm` to this number of pages, whatever is locked: Linux unlocks some memory without counting
        it."""
        self.uncounted_unlocked_pages += pages - self.locked_vm
        self.locked_vm = pages

    def _update_hiwater_vm(self) -> None:
        """Note the size before it falls. Source: Linux v6.8 include/linux/mm.h:update_hiwater_vm()."""
        self.hiwater_vm = max(self.hiwater_vm, self.total_vm)

    def insert_vma(self, vma: Vma) -> None:
        """Add a VMA to a range without VMAs."""
        self.vmas.insert(vma)
        self.frames.kernel_objects.nr_vmas += 1
        self.owner.nr_vmas += 1
        vma.vm_mm = self
        self._account(vma.vm_flags, vma.end - vma.start >> PAGE_SHIFT)
        if vma.file is not None:
            vma.file.mapping.link_vma(vma, self)
        if self.notifiers:
            self.notifiers.invalidate_range(vma.start, vma.end)

    def remove_vma(self, vma: Vma) -> None:
        """Remove a VMA whose entries are cleared; the removal of a file's last VMA writes the file back."""
        if self.hiwater_vm < self.total_vm:
            self._update_hiwater_vm()
        self.vmas.remove(vma)
        self.frames.kernel_objects.nr_vmas -= 1
        self.owner.nr_vmas -= 1
        self._account(vma.vm_flags, vma.start - vma.end >> PAGE_SHIFT)
        unlink_anon_vmas(vma)
        if vma.file is not None:
            vma.file.mapping.unlink_vma(vma)
        if self.notifiers:
            self.notifiers.invalidate_range(vma.start, vma.end)

    def move_vma_bounds(self, vma: Vma, start: Vaddr, end: Vaddr) -> None:
        """Give a VMA other bounds; its pages keep their offsets.

        The entries outside the new bounds must be clear already.
        """
        if self.page_table.deposited:
            self.pages.split_huge_pmds_at(start, end)
        old_start, old_end = vma.start, vma.end
        more = (end - start - (old_end - old_start)) >> PAGE_SHIFT
        if more < 0 and self.hiwater_vm < self.total_vm:
            self._update_hiwater_vm()
        i_mmap = None if vma.file is None else vma.file.mapping.i_mmap
        if i_mmap is not None:
            i_mmap.remove(vma)
        pre_update_vma(vma)
        vma.pgoff += (start - old_start) >> PAGE_SHIFT
        self.vmas.move(vma, start, end)
        if i_mmap is not None:
            i_mmap.insert(vma)
            i_mmap.may_get_entries(vma)
        post_update_vma(vma)
        self._account(vma.vm_flags, more)
        if self.notifiers:
            # What is in the VMA before and after has not changed.
            if start != old_start:
                self.notifiers.invalidate_range(min(old_start, start), max(old_start, start))
            if end != old_end:
                self.notifiers.invalidate_range(min(old_end, end), max(old_end, end))

    def set_vma_flags(self, vma: Vma, vm_flags: int) -> None:
        """Give a VMA other VM_ flags; the caller changes the entries."""
        pages = vma.end - vma.start >> PAGE_SHIFT
        self._account(vma.vm_flags, -pages)
        vma.vm_flags = vm_flags
        self._account(vm_flags, pages)
        if self.notifiers:
            self.notifiers.invalidate_range(vma.start, vma.end)

    def split_vma(self, vma: Vma, vaddr: Vaddr) -> Vma:
        """Split a VMA at a page-aligned address inside it and return the upper part; `vma` becomes the lower part.

        The caller has checked max_map_count. Source: Linux v6.8 mm/mmap.c:__split_vma().
        """
        upper = vma.dup(vaddr, vma.end, vma.page_index(vaddr))
        split_anon_vma(upper, vma)
        self.move_vma_bounds(vma, vma.start, vaddr)
        self.insert_vma(upper)
        return upper

    def free_pgtables(self, start: Vaddr, end: Vaddr) -> None:
        """Free the tables of the hole that [start, end) has become part of, up to the neighbouring VMAs.

        Source: Linux v6.8 mm/memory.c:free_pgtables().
        """
        below, above = self.vmas.around(start)
        floor = below.end if below is not None else 0
        ceiling = above.start if above is not None else TASK_SIZE + PAGE_SIZE
        self.page_table.free_tables(start, end, floor, ceiling)
