"""mprotect and pkey_mprotect: change the rights of a range, VMA by VMA up to the first hole.

Answers to Linux v6.8 mm/mprotect.c: do_mprotect_pkey(), mprotect_fixup(), change_pte_range(),
can_change_pte_writable().
"""

from __future__ import annotations

import errno
from typing import cast

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PFN_MASK,
    PTE_PSE,
    PTE_RW,
    PTE_SOFT_DIRTY,
    PTE_SPECIAL,
    PTE_UNNOTICED,
    present_mask,
    pte_pfn,
    pte_present,
)
from kerneld.hw.scalars import u64
from kerneld.mm.calls.mmap import may_expand_vm
from kerneld.mm.fault.populate import populate_vma
from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE
from kerneld.mm.space.mdwe import map_deny_write_exec
from kerneld.mm.space.mm import MmStruct, vma_page_prot, vma_set_page_prot
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.mm.space.pace import Pace, Steps, run_at_once
from kerneld.mm.space.pagewalk import FEW_ENTRIES
from kerneld.mm.space.pkeys import NO_PKEY, mm_pkey_is_allocated, override_mprotect_pkey
from kerneld.mm.space.unmapped_area import meets_reserved
from kerneld.mm.space.vma import Vma, vma_soft_dirty_enabled
from kerneld.mm.space.vma_merge import vma_modify
from kerneld.mm.vm_flags import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_NORESERVE,
    VM_PKEY_MASK,
    VM_SHARED,
    VM_WRITE,
    calc_vm_prot_bits,
)
from shared.uapi.mman import Prot
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, Vaddr, page_align

_GROWSDOWN, _GROWSUP = Prot.GROWSDOWN.value, Prot.GROWSUP.value
_READ, _EXEC = Prot.READ.value, Prot.EXEC.value
_VALID_PROT = (Prot.READ | Prot.WRITE | Prot.EXEC | Prot.SEM).value
_KEPT_BITS = PTE_PFN_MASK | PTE_ACCESSED | PTE_DIRTY | PTE_SOFT_DIRTY | PTE_SPECIAL | PTE_PSE
"""The bits that an entry keeps when its rights change; the key is not kept (Linux: _PAGE_CHG_MASK)."""


def do_mprotect(mm: MmStruct, start: Vaddr, length: int, prot: int, pkey: int = NO_PKEY, *, rier: bool = False) -> None:
    """Do the same as `mprotect_in_pieces`, at once."""
    run_at_once(mprotect_in_pieces(mm, start, length, prot, pkey, rier=rier))


def mprotect_in_pieces(
    mm: MmStruct, start: Vaddr, length: int, prot: int, pkey: int = NO_PKEY, *, rier: bool = False
) -> Steps:
    """Give the pages of [start, start + length) the rights `prot`, and the key `pkey`; `length` is in bytes.

    It is rounded up to pages. Without a key each page keeps its own, but see `override_mprotect_pkey`. With `rier`
    ("read implies exec right") what can be read can be executed too, where the mapping allows that.
    Raises SysError(EINVAL) for an unaligned start, unknown bits, or a key that the program does not have,
    SysError(ENOMEM) at a hole (the part before it is changed), over a limit, or for access to the reserved range
    (`MmStruct.reserved`), SysError(EACCES) for a right that the mapping can never have (a file not open for writing),
    or that PR_SET_MDWE refuses. Yields when other clients may be served: after a VMA, or after a part of a large VMA;
    this part is a separate VMA until the rest is changed too.
    """
    pace = Pace()
    rier = rier and prot & _READ != 0
    grows = prot & (_GROWSDOWN | _GROWSUP)
    prot &= ~grows
    if grows == _GROWSDOWN | _GROWSUP or start & ~PAGE_MASK:
        raise SysError(errno.EINVAL)
    if not length:
        return
    end = start + page_align(length)
    if end >= 1 << 64:
        raise SysError(errno.ENOMEM)
    if prot & ~_VALID_PROT or (pkey != NO_PKEY and not mm_pkey_is_allocated(mm, pkey)):
        raise SysError(errno.EINVAL)
    vma: Vma | None
    vma, start = _first_vma(mm, start, end, grows)
    while vma is not None and start < end:
        if vma.start > start:
            raise SysError(errno.ENOMEM)
        given = prot | _EXEC if rier and vma.vm_flags & VM_MAYEXEC else prot
        vm_flags = calc_vm_prot_bits(given, override_mprotect_pkey(mm, vma, given, pkey))
        vm_flags |= vma.vm_flags & ~(VM_ACCESS_FLAGS | VM_PKEY_MASK)
        if vm_flags & ~(vm_flags >> 4) & VM_ACCESS_FLAGS or (
            mm.mdwe and map_deny_write_exec(mm, vma.vm_flags, vm_flags)
        ):
            raise SysError(errno.EACCES)
        stop = min(vma.end, end)
        if vm_flags & VM_ACCESS_FLAGS and meets_reserved(mm, start, stop - start):
            raise SysError(errno.ENOMEM)
        if stop - start > PMD_SIZE and _may_go_in_parts(mm, vma, start, stop, vm_flags):
            stop = pace.far_stop(mm.page_table.walk, start, stop)
        start = mprotect_fixup(mm, vma, start, stop, vm_flags)
        if start < end and pace.is_over():
            yield
            pace.begin()
        vma = mm.vmas.find(start) if start < end else None
    if start < end:
        raise SysError(errno.ENOMEM)


def _first_vma(mm: MmStruct, start: Vaddr, end: Vaddr, grows: int) -> tuple[Vma, Vaddr]:
    """Return the VMA in which [start, end) begins, and the address from which the rights change.

    With PROT_GROWSDOWN they change from the start of a stack on. There is no VMA that grows up on x86-64.
    """
    vma = mm.vmas.find_intersection(start, end)
    if vma is None:
        raise SysError(errno.ENOMEM)
    if grows == _GROWSDOWN:
        if not vma.vm_flags & VM_GROWSDOWN:
            raise SysError(errno.EINVAL)
        return vma, vma.start
    if vma.start > start:
        raise SysError(errno.ENOMEM)
    if grows:
        raise SysError(errno.EINVAL)
    return vma, start


def _may_go_in_parts(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, vm_flags: int) -> bool:
    """Return whether a part of a VMA may be changed step by step, with the same result.

    There must be room for one more VMA. A change that may be refused (memory to be promised, or a limit) must be made
    for the whole part at once; so must a change of locked memory, whose pages are faulted in.
    """
    if vm_flags & VM_WRITE and (not vma.vm_flags & VM_WRITE or vma.vm_flags & VM_LOCKED):
        pages = (end - start) >> 12
        may_be_refused = not vma.vm_flags & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE)
        if may_be_refused or vma.vm_flags & VM_LOCKED or not may_expand_vm(mm, vm_flags, pages):
            return False
    return mm.map_count + 2 < mm.sysctl.max_map_count


def mprotect_fixup(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, vm_flags: int) -> Vaddr:
    """Change a part of one VMA and its entries; return the end of the VMA that now covers the part.

    Source: Linux v6.8 mm/mprotect.c:mprotect_fixup().
    """
    old = vma.vm_flags
    if vm_flags == old:
        return vma.end
    pages = (end - start) >> 12
    if vm_flags & VM_WRITE:
        if not may_expand_vm(mm, vm_flags, pages) and may_expand_vm(mm, old, pages):
            raise SysError(errno.ENOMEM)
        if not old & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
            check_enough_memory(mm, pages)
            vm_flags |= VM_ACCOUNT
    elif old & VM_ACCOUNT and may_unaccount(vma):
        vm_flags &= ~VM_ACCOUNT
    vma = vma_modify(mm, vma, start, end, vm_flags)
    if vm_flags & VM_SHARED:
        vma_set_page_prot(vma)
    change_protection(mm, vma, start, end)
    if old & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and vm_flags & VM_WRITE:
        populate_vma(mm, vma, start, end)
    return vma.end


def give_up_pkeys(mm: MmStruct) -> None:
    """Have an address space without protection keys from now on, as on a processor without them.

    For a native program on a processor without keys. The child of one has none already: it keeps what its parent has
    allocated, as dup_mm() copies mm->context. Raises SysError(ENOMEM).
    """
    if not mm.has_pkeys:
        return
    for vma in [vma for vma in mm.vmas if vma.vm_flags & VM_PKEY_MASK]:
        mprotect_fixup(mm, vma, vma.start, vma.end, vma.vm_flags & ~VM_PKEY_MASK)
    mm.has_pkeys = False
    mm.pkey_allocation_map = mm.execute_only_pkey = 0


def may_unaccount(vma: Vma) -> bool:
    """Return whether memory that becomes read-only, and was never written, no longer counts as promised memory.

    Source: Linux v6.8 mm/mprotect.c:mprotect_fixup().
    """
    return vma.is_anonymous and vma.anon_vma is None


def change_protection(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Give the present entries of a part of a VMA the VMA's rights.

    An entry becomes writable only if no fault is needed. A huge page is one entry here: all of it lies in the VMA, and
    `_can_be_writable` has the same answer for all its frames. An old entry stays old: the new rights contain none of
    the bits that an entry keeps. Source: Linux v6.8 mm/mprotect.c:change_pte_range(),
    mm/huge_memory.c:change_huge_pmd(), arch/x86/include/asm/pgtable.h:pte_modify().
    """
    prot = vma_page_prot(vma) & ~_KEPT_BITS
    if end - start <= FEW_ENTRIES << PAGE_SHIFT and start >> PMD_SHIFT == end - 1 >> PMD_SHIFT:
        pte = mm.page_table.find_pte(start)
        if pte is not None:
            _change_few(mm, vma, range(pte, pte + (end - start >> PAGE_SHIFT)), start, prot)
            return
    for run in mm.page_table.walk.runs(start, end):
        entries = mm.page_table.walk.read(run)
        present = present_mask(entries)
        if not present.any():
            continue
        changed = (entries & u64(_KEPT_BITS)) | u64(prot)
        if vma.vm_flags & VM_WRITE and not prot & PTE_RW:
            changed[~present] = 0  # a swap entry holds no frame number
            changed[_can_be_writable(mm, vma, changed)] |= u64(_write_right(vma))
        mm.pages.update_ptes(run, np.where(present, changed, entries))


def _change_few(mm: MmStruct, vma: Vma, ptes: range, vaddr: Vaddr, prot: int) -> None:
    """Do the same as `change_protection`, entry by entry, which is faster than numpy if they are few.

    `ptes` are their word indexes; the first one is for `vaddr`.
    """
    words = mm.frames.ram.words
    asks, write_right = vma.vm_flags & VM_WRITE != 0 and not prot & PTE_RW, _write_right(vma)
    for pte in ptes:
        entry = words[pte]
        if pte_present(entry):
            entry = entry & _KEPT_BITS | prot
            if asks and _can_change_pte_writable(mm, vma, entry):
                entry |= write_right
            mm.pages.update_pte(pte, vaddr, entry)
        vaddr += PAGE_SIZE


def _write_right(vma: Vma) -> int:
    """Return the bit of an entry whose page may be written without a fault.

    A page of a memory file may have been saved since its entry became dirty, so kerneld must notice its next write.
    """
    mapping = None if vma.file is None or not vma.vm_flags & VM_SHARED else vma.file.mapping
    return PTE_UNNOTICED if mapping is not None and mapping.is_shmem and mapping.backing is not None else PTE_RW


def _can_change_pte_writable(mm: MmStruct, vma: Vma, entry: int) -> bool:
    """Return whether a write fault would do nothing except allow the write. Source: mm/mprotect.c."""
    if not entry & PTE_SOFT_DIRTY and vma_soft_dirty_enabled(vma):
        return False
    if vma.vm_flags & VM_SHARED:
        return entry & PTE_DIRTY != 0
    return not entry & PTE_SPECIAL and mm.frames.flags_at[pte_pfn(entry)] & PG_ANON_EXCLUSIVE != 0


def _can_be_writable(mm: MmStruct, vma: Vma, entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return _can_change_pte_writable() of each entry."""
    needed = PTE_DIRTY if vma.vm_flags & VM_SHARED else 0
    if vma_soft_dirty_enabled(vma):
        needed |= PTE_SOFT_DIRTY
    if vma.vm_flags & VM_SHARED:
        return cast("npt.NDArray[np.bool_]", (entries & u64(needed)) == u64(needed))
    counted = (entries & u64(needed | PTE_SPECIAL)) == u64(needed)
    exclusive = mm.frames.has(pte_pfn(entries).astype(np.int64), PG_ANON_EXCLUSIVE)
    return cast("npt.NDArray[np.bool_]", counted & exclusive)
