"""The requests of a native program's stub: docs/abi.md, "Native programs". Only translates arguments."""

from __future__ import annotations

import errno
from signal import SIGBUS, SIGSEGV

from kerneld.errors import KernelBug, SysError
from kerneld.hw.paging import PF_INSTR, PF_PROT, PF_WRITE
from kerneld.mm.calls.mprotect import give_up_pkeys
from kerneld.mm.frames.frames import PG_ANON, ZERO_PFN
from kerneld.mm.space.userfaultfd import AwaitsPage
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS
from kerneld.syscalls.answer import Answer, Call, Work, in_pieces
from kerneld.task import uaccess
from kerneld.task.trap import exc_general_protection, exc_page_fault
from kerneld.tlb.rights import EXEC, READ, WRITE
from shared.uapi.native import (
    FAULT_FOR_KERNEL,
    FAULT_FUTEX,
    FAULT_MAY_WAIT,
    FAULT_WAITS,
    FILE_SYNC_AT,
    FILE_SYNC_TRUNCATE,
    FILE_SYNC_WRITE,
    FILE_SYNC_WRITTEN,
    NATIVE_PKEYS,
    NATIVE_THREAD,
    STUB_END,
    STUB_START,
)
from shared.uapi.page import PAGE_SHIFT, TASK_SIZE, Pfn
from shared.uapi.signals import Disposition

_CANONICAL_END = 1 << 47
_KERNEL_HALF = (1 << 64) - _CANONICAL_END
_PATIENCE = 8
"""The most faults of one access at the same page, as in `kerneld.task.cpu`."""


def native(call: Call) -> int | Answer:
    """args: flags, PKRU. NATIVE_THREAD is for a further thread of a native process.

    NATIVE_PKEYS: the real processor has protection keys, and kerneld decides which of them the program has. Without it
    the address space has none from now on.

    Returns 0, or NATIVE_PKEYS if the program has keys. Without NATIVE_THREAD it also returns two descriptors: of the
    RAM, writable, and the agent's end of its connection.
    From then on the process has the user and the capabilities of its real process.
    No mapping that can be accessed can meet the stub's range from then on.
    Raises SysError(ENOMEM) if one does already (the program is linked to lie there);
    SysError(EPERM) for a caller that is not the superuser, unless it has been native or is the child of one that
    was, and on a machine that allows no native programs;
    SysError(EINVAL) without the flag for a process that is native already, and with it for one that is not native;
    SysError(EAGAIN) without a connection for the agent.
    """
    process = call.process
    if not (process.cred.superuser or process.may_be_native) or not call.kernel.config.native:
        raise SysError(errno.EPERM)
    keys = call.args[0] & NATIVE_PKEYS if call.mm.has_pkeys else 0
    if keys:
        call.kernel.rq.processor.wrpkru(call.args[1])
    if call.args[0] & NATIVE_THREAD:
        call.thread.tlb = call.kernel.tlbs.get(call.mm).enter(call.process.pid)
        return keys
    if call.kernel.tlbs.find(call.mm) is not None:
        raise SysError(errno.EINVAL)
    if any(vma.vm_flags & VM_ACCESS_FLAGS for vma in call.mm.vmas.overlapping(STUB_START, STUB_END)):
        raise SysError(errno.ENOMEM)
    if call.kernel.lines is None:
        raise SysError(errno.EAGAIN)
    call.kernel.table.take_real_creds(process, call.thread.tid)
    agent, agent_fd = call.kernel.lines.hire(process)
    call.mm.reserved = STUB_START, STUB_END
    process.may_be_native = True
    if not keys:
        give_up_pkeys(call.mm)
    tlb = call.kernel.tlbs.make(process, agent)
    if call.thread.tlb is not None:
        call.thread.tlb.leave()
    call.thread.tlb = tlb.enter(process.pid)
    # The stub gets every fault that cannot be settled. It knows the program's handlers and decides what to do.
    for signo in (SIGSEGV, SIGBUS):
        process.dispositions[signo] = Disposition.CAUGHT
    return Answer(keys, fds=(call.kernel.ram.open_writable(), agent_fd))


def fault(call: Call) -> int:
    """args: address, access (PF_WRITE, PF_INSTR), flags, PKRU. A page fault of a native program's processor.

    Returns 0, or FAULT_WAITS if a userfaultfd has to give the page: nothing is done. With FAULT_MAY_WAIT it waits for
    the page, unless the client gives it up by its next request.
    With FAULT_FOR_KERNEL the stub reads or writes for a system call: a bad access raises SysError(EFAULT), no signal.
    With FAULT_FUTEX so does memory of no file, which has no shared futex if it cannot be written.
    Source: Linux v6.8 kernel/futex/core.c:get_futex_key().
    """
    try:
        return _fault(call)
    except AwaitsPage:
        if call.args[2] & FAULT_MAY_WAIT:
            raise
        return FAULT_WAITS


def _fault(call: Call) -> int:
    address, access, flags, pkru = call.args[:4]
    access &= PF_WRITE | PF_INSTR
    mm = call.process.mm
    assert mm is not None
    tlb = call.kernel.tlbs.by_mm.get(mm.number)
    if tlb is None:
        raise SysError(errno.EINVAL)
    processor, thread = call.kernel.rq.processor, call.thread
    if mm.has_pkeys:
        processor.wrpkru(pkru)
    if thread.advances is not None:
        thread.advances.on_fault(address)
    if flags & FAULT_FOR_KERNEL:
        paddr = uaccess.user_page(mm, address, access & PF_WRITE)
        if paddr < 0 or (flags & FAULT_FUTEX and not _is_of_file(call, paddr >> PAGE_SHIFT)):
            raise SysError(errno.EFAULT)
        tlb.grant(address)
        return 0
    if address >= TASK_SIZE:
        if _CANONICAL_END <= address < _KERNEL_HALF:
            exc_general_protection(thread)
        else:
            exc_page_fault(thread, access | 4, address)
        return 0
    if access & PF_WRITE:
        grant, wanted = tlb.grant_page, WRITE
    else:
        grant, wanted = tlb.grant, EXEC if access & PF_INSTR else READ
    for _ in range(_PATIENCE):
        paddr = mm.page_table.translate(address, access, processor.pkru)
        if paddr >= 0:
            tlb.grant(address)
            return 0
        exc_page_fault(thread, ~paddr, address)
        # The processor itself asks PKRU about what is granted.
        if thread.delivered is not None:
            return 0
        if grant(address) & wanted:
            if thread.advances is not None:
                is_write, is_present = access & PF_WRITE != 0, ~paddr & PF_PROT != 0
                thread.advances.offer(mm, address, is_write=is_write, is_present=is_present)
            return 0
    raise KernelBug(f"the fault at {address:#x} (access {access:#x}) comes again and again")


def _is_of_file(call: Call, pfn: Pfn) -> bool:
    frames = call.kernel.frames
    return pfn != ZERO_PFN and not int(frames.flags[pfn]) & PG_ANON


def creds(call: Call) -> int:
    """No args. The caller's real process has changed its user or its capabilities: take them over.

    Returns 0. Raises SysError(EPERM) for a process that is not native.
    """
    _check_native(call)
    call.kernel.table.take_real_creds(call.process, call.thread.tid)
    return 0


def connect(call: Call) -> Answer:
    """No args. Return the descriptor of a new connection to this kernel, for a thread or a child.

    A process that has changed its user or its root directory could not connect to the socket itself. Raises
    SysError(EPERM) for a process that is not native, SysError(EAGAIN) when it has too many connections.
    """
    _check_native(call)
    if call.kernel.lines is None:
        raise SysError(errno.EAGAIN)
    fd, call.thread.line = call.kernel.lines.open(call.thread)
    return Answer(0, fds=(fd,))


def _check_native(call: Call) -> None:
    if call.thread.tlb is None:
        raise SysError(errno.EPERM)


def file_sync(call: Call) -> int | Answer | Work:
    """args: flags, offset, length; a descriptor. A native program reads or writes a file by a call.

    Without a flag it is about to: what has been written in memory is in the file on return. With FILE_SYNC_WRITTEN it
    has written: what is mapped of the range is what the file has, and its size is acted upon. With FILE_SYNC_WRITE and
    FILE_SYNC_TRUNCATE kerneld makes the call itself, so that nothing comes between the file and the cached pages.

    Returns 0, or the number of bytes written. Raises SysError(EBADF), what write(2) or ftruncate(2) does, and
    SysError(EPERM) for a process that is not native.
    """
    fd = call.take_fd()
    _check_native(call)
    flags, offset = call.args[:2]
    if flags & FILE_SYNC_WRITE:
        at = offset if flags & FILE_SYNC_AT else None
        return Work(call.kernel.files.host_write(fd, call.data, at)).go_on()
    if flags & FILE_SYNC_TRUNCATE:
        return in_pieces(call.kernel.files.host_truncate(fd, offset))
    if flags & FILE_SYNC_WRITTEN:
        return in_pieces(call.kernel.files.after_host_write(fd, offset, call.args[2]))
    return in_pieces(call.kernel.files.before_host_call(fd))
