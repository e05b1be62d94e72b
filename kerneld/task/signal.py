"""Signals that the kernel itself raises, from the faulting instruction to the end of the process.

Owns pending signals and their actions. The order of the functions is Linux's: a fault forces a signal, and the way
back to user mode (`kerneld.task.entry`) takes it. Knows no wire: the result is in `Thread.delivered`, and dispatch
makes the reply from it. Answers to Linux v6.8 kernel/signal.c and arch/x86/kernel/signal.c.

Invariant: TIF_SIGPENDING is set exactly while a signal is pending.
"""

from __future__ import annotations

import errno
from signal import SIGKILL, SIGSEGV, SIGSTOP

from kerneld.errors import SysError
from kerneld.hw.processor import Processor
from kerneld.task.exit import do_group_exit
from kerneld.task.sched import TIF_SIGPENDING
from kerneld.task.task import Delivered, Process, Thread
from shared.uapi.page import Vaddr
from shared.uapi.signals import NSIG, Disposition, SegvCode
from shared.wire import SigInfo


def do_sigaction(process: Process, signo: int, disposition: int) -> None:
    """Set the action of a signal.

    Raises SysError(EINVAL) for an unknown signal or disposition, and for SIGKILL and SIGSTOP.

    Source: Linux v6.8 kernel/signal.c:do_sigaction().
    """
    if not 1 <= signo <= NSIG or signo in (SIGKILL, SIGSTOP) or disposition > Disposition.CAUGHT:
        raise SysError(errno.EINVAL)
    process.dispositions[signo] = Disposition(disposition)


def force_sig_fault(thread: Thread, signo: int, si_code: int, address: Vaddr) -> None:
    """Raise a signal that cannot be ignored, on behalf of a fault at an address of the running thread.

    Source: Linux v6.8 kernel/signal.c:force_sig_fault().
    """
    force_sig_fault_to_task(thread, signo, si_code, address)


def force_sig_pkuerr(thread: Thread, address: Vaddr, pkey: int) -> None:
    """Raise SIGSEGV, because a protection key denied an access of the running thread to an address.

    Source: Linux v6.8 kernel/signal.c:force_sig_pkuerr().
    """
    info = SigInfo(SegvCode.PKUERR, False, address, pkey, _processor(thread).pkru)
    force_sig_info_to_task(thread, SIGSEGV, info)


def force_sig_fault_to_task(thread: Thread, signo: int, si_code: int, address: Vaddr) -> None:
    """Make the siginfo of a fault and send it. Source: Linux v6.8 kernel/signal.c:force_sig_fault_to_task()."""
    force_sig_info_to_task(thread, signo, SigInfo(si_code, False, address))


def force_sig_info_to_task(thread: Thread, signo: int, info: SigInfo) -> None:
    """Send a signal that cannot be ignored: if it is ignored, its action becomes the default.

    Source: Linux v6.8 kernel/signal.c:force_sig_info_to_task().
    """
    dispositions = thread.process.dispositions
    if dispositions.get(signo) is Disposition.IGNORE:
        dispositions[signo] = Disposition.DEFAULT
    send_signal_locked(thread, signo, info)


def send_signal_locked(thread: Thread, signo: int, info: SigInfo) -> None:
    """Put a signal and its siginfo into the thread's pending set. A pending signal is not changed.

    Source: Linux v6.8 kernel/signal.c:send_signal_locked(), __send_signal_locked().
    """
    if thread.pending >> (signo - 1) & 1:
        return
    thread.siginfo[signo] = info
    sigaddset(thread, signo)
    signal_wake_up(thread)


def sigaddset(thread: Thread, signo: int) -> None:
    """Set the signal's bit in the pending set. Source: Linux v6.8 include/linux/signal.h:sigaddset()."""
    thread.pending |= 1 << (signo - 1)


def signal_wake_up(thread: Thread) -> None:
    """Set TIF_SIGPENDING: the thread handles its signals before it goes back to user mode.

    The thread is running, because the kernel sends signals only to `curr`. Source: Linux v6.8
    kernel/signal.c:signal_wake_up_state().
    """
    thread.flags |= TIF_SIGPENDING


def arch_do_signal_or_restart(thread: Thread) -> None:
    """Take a signal, and start its handler if the program has one.

    Source: Linux v6.8 arch/x86/kernel/signal.c:arch_do_signal_or_restart().
    """
    caught = get_signal(thread)
    if caught is not None:
        handle_signal(thread, caught)


def get_signal(thread: Thread) -> Delivered | None:
    """Take the next pending signal and return it if it is caught. Any other signal ends the process.

    No signal that the kernel raises here is ignored by default. Source: Linux v6.8 kernel/signal.c:get_signal().
    """
    signo = dequeue_signal(thread)
    info = thread.siginfo.pop(signo)
    if thread.process.dispositions.get(signo) is Disposition.CAUGHT and signo != SIGKILL:
        return Delivered(signo, info)
    thread.pending = 0
    thread.siginfo.clear()
    recalc_sigpending(thread)
    thread.delivered = Delivered(signo, info._replace(fatal=True))
    do_group_exit(thread, signo)
    return None


def dequeue_signal(thread: Thread) -> int:
    """Take the next signal out of the pending set: SIGKILL first, then the lowest number.

    Source: Linux v6.8 kernel/signal.c:dequeue_signal(); for SIGKILL get_signal(), "marked for death".
    """
    signo = int(SIGKILL) if thread.is_killed else (thread.pending & -thread.pending).bit_length()
    thread.pending &= ~(1 << (signo - 1))
    recalc_sigpending(thread)
    return signo


def recalc_sigpending(thread: Thread) -> None:
    """Clear TIF_SIGPENDING if no signal is pending. Source: Linux v6.8 kernel/signal.c:recalc_sigpending()."""
    if not thread.pending:
        thread.flags &= ~TIF_SIGPENDING


def handle_signal(thread: Thread, caught: Delivered) -> None:
    """Make the client library run the program's handler.

    The handler runs with the PKRU of a new program. Differs from Linux: no frame is written to the program's stack; the
    reply to the request has the signal. If PKRU had another value, the reply has that value too, and the client
    restores it after the handler (WRPKRU), as sigreturn would. Source: Linux v6.8
    arch/x86/kernel/signal.c:handle_signal(), arch/x86/kernel/fpu/core.c:fpu__clear_user_states().
    """
    processor = _processor(thread)
    if processor.pkru != processor.init_pkru:
        caught = Delivered(caught.signo, caught.info._replace(pkru=processor.pkru))
        processor.wrpkru(processor.init_pkru)
    thread.delivered = caught


def _processor(thread: Thread) -> Processor:
    return thread.process.live_mm.frames.processor
