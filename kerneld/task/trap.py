"""The page-fault exception: what the kernel does when the processor cannot translate an address.

Owns the way from the error code to a settled fault or a signal. Answers to Linux v6.8 arch/x86/mm/fault.c.

| address and access                              | result                                            |
|-------------------------------------------------|---------------------------------------------------|
| in a VMA whose rights allow it                  | `handle_mm_fault`; its SIGBUS becomes a signal    |
| below a VMA that grows down, within its limits  | the VMA grows, then as above                      |
| in a VMA, not allowed                           | SIGSEGV, SEGV_ACCERR                              |
| in no VMA, or not in user space                 | SIGSEGV, SEGV_MAPERR                              |
"""

from __future__ import annotations

from signal import SIGBUS, SIGKILL, SIGSEGV

import structlog

from kerneld.errors import SysError
from kerneld.hw.paging import PF_PROT, PF_WRITE
from kerneld.mm.fault import VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_OOM, VM_FAULT_SIGBUS, handle_mm_fault
from kerneld.mm.mm import MmStruct
from kerneld.mm.stack import expand_stack
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_WRITE
from kerneld.mm.vma import Vma
from kerneld.task.signal import exit_to_user_mode_loop, force_sig_fault
from kerneld.task.task import Thread
from shared.uapi.page import TASK_SIZE, Vaddr
from shared.uapi.signals import SI_KERNEL, BusCode, SegvCode

_log = structlog.get_logger("kerneld.mm")


def exc_page_fault(thread: Thread, error_code: int, address: Vaddr) -> None:
    """Handle one page fault of a thread; a signal that it raises has been delivered on return.

    Source: Linux v6.8 arch/x86/mm/fault.c:exc_page_fault(), handle_page_fault().
    """
    if address < TASK_SIZE:
        do_user_addr_fault(thread, error_code, address)
    else:
        bad_area_nosemaphore(thread, address)
    if thread.pending:
        irqentry_exit(thread)


def irqentry_exit(thread: Thread) -> None:
    """Go back to user mode by way of what is pending. Source: Linux v6.8 kernel/entry/common.c:irqentry_exit()."""
    if thread.pending:
        exit_to_user_mode_loop(thread)


def do_user_addr_fault(thread: Thread, error_code: int, address: Vaddr) -> None:
    """Find the VMA, check the access, settle the fault. Source: Linux v6.8 arch/x86/mm/fault.c:do_user_addr_fault()."""
    process = thread.process
    mm = process.live_mm
    vma = mm.vmas.lookup(address) or lock_mm_and_find_vma(mm, address)
    if vma is None:
        bad_area_nosemaphore(thread, address)
        return
    if access_error(error_code, vma):
        bad_area_access_error(thread, address)
        return
    fault = handle_mm_fault(mm, vma, address, error_code & PF_WRITE != 0)
    if fault & VM_FAULT_ERROR:
        fault_error(thread, address, fault)
    elif fault & VM_FAULT_MAJOR:
        process.maj_flt += 1
    else:
        process.min_flt += 1


def lock_mm_and_find_vma(mm: MmStruct, address: Vaddr) -> Vma | None:
    """Return the VMA that covers an address, or that can grow down over it and now has; else None.

    Source: Linux v6.8 mm/memory.c:lock_mm_and_find_vma().
    """
    vma = find_vma(mm, address)
    if vma is None or vma.start <= address:
        return vma
    if not vma.vm_flags & VM_GROWSDOWN:
        return None
    try:
        expand_stack(mm, vma, address)
    except SysError:
        return None
    return vma


def find_vma(mm: MmStruct, address: Vaddr) -> Vma | None:
    """Return the first VMA that ends above an address. Source: Linux v6.8 mm/mmap.c:find_vma()."""
    return mm.vmas.find(address)


def access_error(error_code: int, vma: Vma) -> bool:
    """Tell whether a VMA's rights forbid the access: a fetch is a read here, and fails later at the entry's NX bit.

    Source: Linux v6.8 arch/x86/mm/fault.c:access_error().
    """
    if error_code & PF_WRITE:
        return not vma.vm_flags & VM_WRITE
    return error_code & PF_PROT != 0 or not vma.vm_flags & VM_ACCESS_FLAGS


def bad_area_nosemaphore(thread: Thread, address: Vaddr) -> None:
    """No VMA is there. Source: Linux v6.8 arch/x86/mm/fault.c:bad_area_nosemaphore()."""
    force_sig_fault(thread, SIGSEGV, SegvCode.MAPERR, address)


def bad_area_access_error(thread: Thread, address: Vaddr) -> None:
    """The VMA forbids it. Source: Linux v6.8 arch/x86/mm/fault.c:bad_area_access_error()."""
    force_sig_fault(thread, SIGSEGV, SegvCode.ACCERR, address)


def fault_error(thread: Thread, address: Vaddr, fault: int) -> None:
    """Make a signal of a VM_FAULT_* error. Source: Linux v6.8 arch/x86/mm/fault.c:do_user_addr_fault(), its end.

    Without a frame the allocator has called the OOM killer, and this thread is the one that was chosen.
    Differs from Linux: where it was not, it is killed; Linux would let it fault again and again.
    """
    if fault & VM_FAULT_OOM:
        if not thread.is_killed:
            _log.warning("Huh VM_FAULT_OOM leaked out to the #PF handler: killed", pid=thread.process.pid)
            force_sig_fault(thread, SIGKILL, SI_KERNEL, 0)
    elif fault & VM_FAULT_SIGBUS:
        force_sig_fault(thread, SIGBUS, BusCode.ADRERR, address)
    else:
        force_sig_fault(thread, SIGSEGV, SegvCode.MAPERR, address)


def exc_general_protection(thread: Thread) -> None:
    """An address that is not canonical: SIGSEGV without an address.

    Source: arch/x86/kernel/traps.c:exc_general_protection().
    """
    force_sig_fault(thread, SIGSEGV, SI_KERNEL, 0)
    irqentry_exit(thread)
