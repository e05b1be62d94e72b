"""Signals that the kernel itself raises, from the faulting instruction to the end of the process.

Owns pending signals and what they do. The order of the functions is Linux's: a fault forces a signal, and the way
back to user mode takes it. Knows no wire: the result lies in `Thread.delivered`, from which dispatch makes the
reply. Answers to Linux v6.8 kernel/signal.c and kernel/entry/common.c.
"""

from __future__ import annotations

import errno
from signal import SIGKILL, SIGSTOP

from kerneld.errors import SysError
from kerneld.task.exit import do_group_exit
from kerneld.task.task import Delivered, Process, Thread
from shared.uapi.page import Vaddr
from shared.uapi.signals import NSIG, SI_KERNEL, Disposition
from shared.wire import SigInfo


def do_sigaction(process: Process, signo: int, disposition: int) -> None:
    """Set what a signal does.

    Raises SysError(EINVAL) for an unknown signal or disposition, and for SIGKILL and SIGSTOP.

    Source: Linux v6.8 kernel/signal.c:do_sigaction().
    """
    if not 1 <= signo <= NSIG or signo in (SIGKILL, SIGSTOP) or disposition > Disposition.CAUGHT:
        raise SysError(errno.EINVAL)
    process.dispositions[signo] = Disposition(disposition)


def force_sig_fault(thread: Thread, signo: int, si_code: int, address: Vaddr) -> None:
    """Raise a signal that cannot be ignored, on behalf of a fault at an address.

    Source: kernel/signal.c:force_sig_fault().
    """
    force_sig_fault_to_task(thread, signo, SigInfo(si_code, False, address))


def force_sig_fault_to_task(thread: Thread, signo: int, info: SigInfo) -> None:
    """Queue the signal; one that is ignored goes back to its default.

    Source: Linux v6.8 kernel/signal.c:force_sig_fault_to_task() and force_sig_info_to_task().
    """
    dispositions = thread.process.dispositions
    if dispositions.get(signo) is Disposition.IGNORE:
        dispositions[signo] = Disposition.DEFAULT
    send_signal_locked(thread, signo, info)


def send_signal_locked(thread: Thread, signo: int, info: SigInfo) -> None:
    """Put a signal and its siginfo into the thread's pending set. Source: kernel/signal.c:send_signal_locked()."""
    thread.siginfo[signo] = info
    sigaddset(thread, signo)


def sigaddset(thread: Thread, signo: int) -> None:
    """Set the signal's bit in the pending set. Source: Linux v6.8 include/linux/signal.h:sigaddset()."""
    thread.pending |= 1 << (signo - 1)


def send_sigkill(process: Process) -> None:
    """Kill a process from within the kernel (the OOM killer): it is gone when this returns."""
    for thread in list(process.threads):
        send_signal_locked(thread, SIGKILL, SigInfo(SI_KERNEL, False, 0))
        get_signal(thread)


def exit_to_user_mode_loop(thread: Thread) -> None:
    """Do what is pending before user mode goes on.

    Source: Linux v6.8 kernel/entry/common.c:exit_to_user_mode_loop().
    """
    while thread.pending:
        get_signal(thread)


def get_signal(thread: Thread) -> None:
    """Take the lowest pending signal: a caught one is reported to the thread, any other ends its process.

    Of the signals the kernel raises here none is ignored by default. Source: Linux v6.8 kernel/signal.c:get_signal().
    """
    signo = (thread.pending & -thread.pending).bit_length()
    thread.pending &= thread.pending - 1
    info = thread.siginfo.pop(signo)
    if thread.process.dispositions.get(signo) is Disposition.CAUGHT and signo != SIGKILL:
        thread.delivered = Delivered(signo, info)
        return
    thread.pending = 0
    thread.delivered = Delivered(signo, info._replace(fatal=True))
    do_group_exit(thread.process, signo)
