"""Stack growth: a VMA with VM_GROWSDOWN follows a fault below it.

Answers to Linux v6.8 mm/mmap.c: expand_downwards(), acct_stack_growth(), find_extend_vma_locked().
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.calls.mlock import mlock_future_ok
from kerneld.mm.calls.mmap import may_expand_vm
from kerneld.mm.space.anon_page import prepare_anon_vma
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.mm.space.unmapped_area import meets_reserved
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES, Vma
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS, VM_GROWSDOWN
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, Vaddr
from shared.uapi.resource import Rlimit


def expand_stack(mm: MmStruct, vma: Vma, address: Vaddr) -> None:
    """Extend a VMA that grows down to the page of `address`, below its start.

    Raises SysError(EFAULT) if the VMA does not grow down, SysError(EPERM) below vm.mmap_min_addr, SysError(ENOMEM) if
    it would come within the guard gap of another mapping, or over RLIMIT_STACK, RLIMIT_AS or (except for the
    superuser) RLIMIT_MEMLOCK.
    """
    if not vma.vm_flags & VM_GROWSDOWN:
        raise SysError(errno.EFAULT)
    address &= PAGE_MASK
    if address < mm.sysctl.lowest_chosen_addr:
        raise SysError(errno.EPERM)
    before = mm.vmas.previous(vma)
    if (
        before is not None
        and not before.vm_flags & VM_GROWSDOWN
        and before.vm_flags & VM_ACCESS_FLAGS
        and address - before.end < STACK_GUARD_GAP_BYTES
    ):
        raise SysError(errno.ENOMEM)
    # Linux makes the anon_vma, to lock it, before it checks whether the VMA may grow: fork and merges see it.
    prepare_anon_vma(mm, vma)
    grow_pages = (vma.start - address) >> PAGE_SHIFT
    if grow_pages > vma.pgoff:
        raise SysError(errno.ENOMEM)
    if meets_reserved(mm, address, vma.start - address):
        raise SysError(errno.ENOMEM)
    _acct_stack_growth(mm, vma, vma.end - address, grow_pages)
    mm.move_vma_bounds(vma, address, vma.end)


def _acct_stack_growth(mm: MmStruct, vma: Vma, size_bytes: int, grow_pages: int) -> None:
    """Source: Linux v6.8 mm/mmap.c:acct_stack_growth()."""
    if (
        not may_expand_vm(mm, vma.vm_flags, grow_pages)
        or size_bytes > mm.rlimits.soft[Rlimit.STACK]
        or not mlock_future_ok(mm, vma.vm_flags, grow_pages << PAGE_SHIFT, mm.is_superusers)
    ):
        raise SysError(errno.ENOMEM)
    check_enough_memory(mm, grow_pages)
