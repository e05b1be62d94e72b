"""Accesses of the kernel to a process's memory, on behalf of that process: like the process's own, but without signals.

The page table and the program's PKRU decide: the kernel can read what the program could load. A missing page is faulted
in. If that fails, the copy ends there and returns the number of bytes copied. If a userfaultfd has to give the page,
each function here raises AwaitsPage. Answers to Linux v6.8
include/linux/uaccess.h: copy_from_user(), copy_to_user(), and arch/x86/mm/fault.c for a fault in kernel mode.
"""

from __future__ import annotations

import errno

from kerneld.errors import KernelBug, SysError
from kerneld.hw.paging import PF_USER, PF_WRITE, translate
from kerneld.mm.fault.populate import fault_one
from kerneld.mm.fault.retry import raise_userfault
from kerneld.mm.fault.vm_fault import VM_FAULT_ERROR
from kerneld.mm.space.mm import MmStruct
from kerneld.task.trap import access_error, lock_mm_and_find_vma
from shared.uapi.page import PAGE_MASK, PAGE_SIZE, TASK_SIZE, Vaddr

_PATIENCE = 8
"""The most faults at one page: stack growth, the page, its copy. More faults mean a bug in kerneld."""


def access_ok(vaddr: Vaddr, length: int) -> bool:
    """Return whether a range can be in user space: its end is in the lower half of all addresses.

    Source: Linux v6.8 arch/x86/include/asm/uaccess_64.h:__access_ok().
    """
    return vaddr + length < 1 << 63


def copy_from_user(mm: MmStruct, vaddr: Vaddr, length: int) -> bytes:
    """Read `length` bytes at any address. The result is shorter if a page cannot be accessed."""
    parts = []
    while length > 0:
        count = min(length, PAGE_SIZE - (vaddr & ~PAGE_MASK))
        paddr = user_page(mm, vaddr, 0)
        if paddr < 0:
            break
        parts.append(bytes(mm.frames.ram.read(paddr, count)))
        vaddr += count
        length -= count
    return b"".join(parts)


def copy_to_user(mm: MmStruct, vaddr: Vaddr, data: bytes | memoryview) -> int:
    """Write bytes at any address. Return the number of bytes written before a page that cannot be accessed, or all."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        count = min(len(view) - done, PAGE_SIZE - (vaddr + done & ~PAGE_MASK))
        paddr = user_page(mm, vaddr + done, PF_WRITE)
        if paddr < 0:
            break
        mm.frames.ram.write(paddr, view[done : done + count])
        done += count
    return done


def user_page(mm: MmStruct, vaddr: Vaddr, access: int) -> int:
    """Return the physical address of an access; -1 if it is not allowed or nothing is mapped there.

    Raises SysError(ENOMEM) if reclaim takes longer than a turn (`Frames.has_stalled`): the request begins again.
    """
    pkru = mm.frames.processor.pkru
    for _ in range(_PATIENCE):
        if vaddr >= TASK_SIZE:
            return -1
        paddr = translate(mm.frames.ram.words, mm.page_table.root, vaddr, access, pkru)
        if paddr >= 0:
            return paddr
        vma = lock_mm_and_find_vma(mm, vaddr)
        if vma is None or access_error(~paddr | PF_USER, vma, pkru):
            return -1
        fault = fault_one(mm, vma, vaddr, access == PF_WRITE)
        if fault & VM_FAULT_ERROR:
            if mm.frames.has_stalled:
                raise SysError(errno.ENOMEM)
            return -1
        raise_userfault(mm, fault, vaddr, by_kernel=True)
    raise KernelBug(f"the fault at {vaddr:#x} (access {access:#x}) comes again and again")
