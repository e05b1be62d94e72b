"""The page-fault exception: the kernel's work when the processor cannot translate an address.

Owns the way from the error code to a settled fault or a signal. The way back to user mode delivers the signal.
Answers to
Linux v6.8 arch/x86/mm/fault.c.

| address and access                              | result                                            |
|-------------------------------------------------|---------------------------------------------------|
| in a VMA whose rights allow it                  | `handle_mm_fault`; its SIGBUS becomes a signal    |
| below a VMA that grows down, within its limits  | the VMA grows, then as above                      |
| in a VMA whose protection key denies the access | SIGSEGV, SEGV_PKUERR, also if its rights deny it  |
| in a VMA whose rights deny the access           | SIGSEGV, SEGV_ACCERR                              |
| in no VMA, or not in user space                 | SIGSEGV, SEGV_MAPERR                              |
"""

from __future__ import annotations

import errno
from signal import SIGBUS, SIGILL, SIGKILL, SIGSEGV

import structlog

from kerneld.errors import SysError
from kerneld.hw.paging import PF_INSTR, PF_PK, PF_PROT, PF_WRITE
from kerneld.hw.processor import PKRU_AD, PKRU_WD
from kerneld.mm.calls.stack import expand_stack
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.retry import raise_userfault
from kerneld.mm.fault.vm_fault import VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_OOM, VM_FAULT_RETRY, VM_FAULT_SIGBUS
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pkeys import vma_access_permitted, vma_pkey
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_PKEY_MASK, VM_WRITE
from kerneld.task.entry import irqentry_exit
from kerneld.task.signal import force_sig_fault, force_sig_pkuerr
from kerneld.task.task import Thread
from shared.uapi.page import TASK_SIZE, Vaddr
from shared.uapi.signals import SI_KERNEL, BusCode, Disposition, IllCode, SegvCode

_log = structlog.get_logger("kerneld.mm")
_NOT_SETTLED = VM_FAULT_ERROR | VM_FAULT_RETRY


def exc_page_fault(thread: Thread, error_code: int, address: Vaddr) -> None:
    """Handle one page fault of a thread. A signal of the fault has been delivered on return.

    Source: Linux v6.8 arch/x86/mm/fault.c:exc_page_fault().
    """
    handle_page_fault(thread, error_code, address)
    irqentry_exit(thread)


def handle_page_fault(thread: Thread, error_code: int, address: Vaddr) -> None:
    """Tell the two halves of the address space apart. Source: Linux v6.8 arch/x86/mm/fault.c:handle_page_fault()."""
    tell = thread.process.on_page_fault
    if tell is not None:
        tell(address)
    if address < TASK_SIZE:
        do_user_addr_fault(thread, error_code, address)
    else:
        do_kern_addr_fault(thread, error_code, address)


def do_kern_addr_fault(thread: Thread, error_code: int, address: Vaddr) -> None:
    """Handle a user access to an address of the kernel's half. Source: arch/x86/mm/fault.c:do_kern_addr_fault()."""
    bad_area_nosemaphore(thread, error_code, address)


def do_user_addr_fault(thread: Thread, error_code: int, address: Vaddr) -> None:
    """Find the VMA, check the access, settle the fault. Source: Linux v6.8 arch/x86/mm/fault.c:do_user_addr_fault().

    Raises AwaitsPage if the access has to wait for its page.
    """
    process = thread.process
    mm = process.mm
    assert mm is not None
    vma = lock_vma_under_rcu(mm, address) or lock_mm_and_find_vma(mm, address)
    if vma is None:
        bad_area_nosemaphore(thread, error_code, address)
        return
    if access_error(error_code, vma, mm.frames.processor.pkru):
        bad_area_access_error(thread, error_code, address, vma)
        return
    fault = handle_mm_fault(mm, vma, address, error_code & PF_WRITE != 0)
    if fault & _NOT_SETTLED:
        raise_userfault(mm, fault, address)
        # It counts for the machine, but for no process: Linux v6.8 mm/memory.c:mm_account_fault().
        mm.frames.vmstat["pgfault"] += 1
        fault_error(thread, error_code, address, fault)
    elif fault & VM_FAULT_MAJOR:
        process.maj_flt += 1
    else:
        process.min_flt += 1


def lock_vma_under_rcu(mm: MmStruct, address: Vaddr) -> Vma | None:
    """Return the VMA that covers an address, or None. This quick search finds nearly every VMA.

    Source: Linux v6.8 mm/memory.c:lock_vma_under_rcu().
    Differs from Linux: an anonymous VMA without an anon_vma is returned too. Linux refuses it, because its neighbours
    are not locked, and finds the same VMA by the slow way. Here nothing needs a lock.
    """
    return mm.vmas.lookup(address)


def lock_mm_and_find_vma(mm: MmStruct, address: Vaddr) -> Vma | None:
    """Return the VMA that covers an address, after a stack has grown down to it if it may; else None.

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
        if mm.frames.has_stalled:
            raise
        return None
    return vma


def find_vma(mm: MmStruct, address: Vaddr) -> Vma | None:
    """Return the first VMA that ends above an address. Source: Linux v6.8 mm/mmap.c:find_vma()."""
    return mm.vmas.find(address)


def access_error(error_code: int, vma: Vma, pkru: int) -> bool:
    """Return whether a VMA's protection key or its rights deny an access. `pkru` is the PKRU of the running thread.

    The key is checked first, so that no page is faulted in that cannot be accessed. For the rights a fetch counts as a
    read; it fails later at the NX bit of the entry. Source: Linux v6.8 arch/x86/mm/fault.c:access_error().
    """
    # Hardly any program's PKRU denies key 0. With key 0 a fault makes no call here.
    if error_code & PF_PK or (
        (vma.vm_flags & VM_PKEY_MASK or pkru & (PKRU_AD | PKRU_WD))
        and not vma_access_permitted(pkru, vma, error_code & PF_WRITE != 0, error_code & PF_INSTR != 0)
    ):
        return True
    if error_code & PF_WRITE:
        return not vma.vm_flags & VM_WRITE
    return error_code & PF_PROT != 0 or not vma.vm_flags & VM_ACCESS_FLAGS


def bad_area_nosemaphore(thread: Thread, error_code: int, address: Vaddr) -> None:
    """Handle an access without a VMA: SEGV_MAPERR. Source: Linux v6.8 arch/x86/mm/fault.c:bad_area_nosemaphore()."""
    __bad_area_nosemaphore(thread, error_code, address, SegvCode.MAPERR)


def __bad_area_nosemaphore(thread: Thread, error_code: int, address: Vaddr, si_code: int, pkey: int = 0) -> None:
    """Raise SIGSEGV for a bad access. Source: Linux v6.8 arch/x86/mm/fault.c:__bad_area_nosemaphore()."""
    show_signal_msg(thread, error_code, address)
    if si_code == SegvCode.PKUERR:
        force_sig_pkuerr(thread, address, pkey)
    else:
        force_sig_fault(thread, SIGSEGV, si_code, address)


def show_signal_msg(thread: Thread, error_code: int, address: Vaddr) -> None:
    """Log a SIGSEGV that the program does not catch. Source: Linux v6.8 arch/x86/mm/fault.c:show_signal_msg()."""
    process = thread.process
    if process.dispositions.get(SIGSEGV) is not Disposition.CAUGHT:
        _log.debug("segfault", comm=process.comm, pid=process.pid, at=hex(address), error=error_code)


def bad_area_access_error(thread: Thread, error_code: int, address: Vaddr, vma: Vma) -> None:
    """Handle an access that the VMA denies.

    Source: Linux v6.8 arch/x86/mm/fault.c:bad_area_access_error(), __bad_area().
    """
    if bad_area_access_from_pkeys(error_code, vma, thread.process.live_mm.frames.processor.pkru):
        __bad_area_nosemaphore(thread, error_code, address, SegvCode.PKUERR, vma_pkey(vma))
    else:
        __bad_area_nosemaphore(thread, error_code, address, SegvCode.ACCERR)


def bad_area_access_from_pkeys(error_code: int, vma: Vma, pkru: int) -> bool:
    """Return whether the VMA's protection key denies the access. The rights of the VMA do not matter.

    Source: Linux v6.8 arch/x86/mm/fault.c:bad_area_access_from_pkeys().
    """
    if error_code & PF_PK:
        return True
    return not vma_access_permitted(pkru, vma, error_code & PF_WRITE != 0, error_code & PF_INSTR != 0)


def do_sigbus(thread: Thread, address: Vaddr) -> None:
    """Raise SIGBUS: the page cannot be read. Source: Linux v6.8 arch/x86/mm/fault.c:do_sigbus()."""
    force_sig_fault(thread, SIGBUS, BusCode.ADRERR, address)


def fault_error(thread: Thread, error_code: int, address: Vaddr, fault: int) -> None:
    """Turn a VM_FAULT_* error into a signal. Source: Linux v6.8 arch/x86/mm/fault.c:do_user_addr_fault(), its end.

    Without a free frame the allocator has called the OOM killer, which has chosen this thread.
    Differs from Linux: if it has not, this thread is killed. Linux would let it fault again and again.
    Raises SysError(ENOMEM) if reclaim takes longer (`Frames.has_stalled`): the request begins again, as a processor
    begins an instruction again.
    """
    if fault & VM_FAULT_OOM:
        if thread.process.live_mm.frames.has_stalled and not thread.is_killed:
            raise SysError(errno.ENOMEM)
        if not thread.is_killed:
            _log.warning("Huh VM_FAULT_OOM leaked out to the #PF handler: killed", pid=thread.process.pid)
            force_sig_fault(thread, SIGKILL, SI_KERNEL, 0)
    elif fault & VM_FAULT_SIGBUS:
        do_sigbus(thread, address)
    else:
        bad_area_nosemaphore(thread, error_code, address)


def exc_general_protection(thread: Thread) -> None:
    """Raise SIGSEGV without an address, for an address that is not canonical.

    Source: arch/x86/kernel/traps.c:exc_general_protection().
    """
    force_sig_fault(thread, SIGSEGV, SI_KERNEL, 0)
    irqentry_exit(thread)


def exc_invalid_op(thread: Thread) -> None:
    """Raise SIGILL, for an instruction that this processor does not have. Its address is not known, so it is 0.

    Source: arch/x86/kernel/traps.c:exc_invalid_op(), handle_invalid_op().
    """
    force_sig_fault(thread, SIGILL, IllCode.ILLOPN, 0)
    irqentry_exit(thread)
