"""Signals that the kernel itself raises, from the faulting instruction to the end of the process.

Owns pending signals and what they do. The order of the functions is Linux's: a fault forces a signal, and the way
back to user mode (`kerneld.task.entry`) takes it. Knows no wire: the result lies in `Thread.delivered`, from which
dispatch makes the reply. Answers to Linux v6.8 kernel/signal.c and arch/x86/kernel/signal.c.

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
    """Set what a signal does.

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
    """Raise SIGSEGV where a protection key denied the access to an address of the running thread.

    Source: Linux v6.8 kernel/signal.c:force_sig_pkuerr().
    """
    info = SigInfo(SegvCode.PKUERR, False, address, pkey, _processor(thread).pkru)
    force_sig_info_to_task(thread, SIGSEGV, info)


def force_sig_fault_to_task(thread: Thread, signo: int, si_code: int, address: Vaddr) -> None:
    """Make the siginfo of a fault and send it. Source: Linux v6.8 kernel/signal.c:force_sig_fault_to_task()."""
    force_sig_info_to_task(thread, signo, SigInfo(si_code, False, address))


def force_sig_info_to_task(thread: Thread, signo: int, info: SigInfo) -> None:
    """Send a signal that must arrive: where it is ignored, it goes back to its default.

    Source: Linux v6.8 kernel/signal.c:force_sig_info_to_task().
    """
    dispositions = thread.process.dispositions
    if dispositions.get(signo) is Disposition.IGNORE:
        dispositions[signo] = Disposition.DEFAULT
    send_signal_locked(thread, signo, info)


def send_signal_locked(thread: Thread, signo: int, info: SigInfo) -> None:
    """Put a signal and its siginfo into the thread's pending set; one that is pending already stays as it is.

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
    """Have the thread look at its signals before it goes back to user mode.

    It runs: the kernel sends signals to `curr` alone. Source: Linux v6.8 kernel/signal.c:signal_wake_up_state().
    """
    thread.flags |= TIF_SIGPENDING


def arch_do_signal_or_restart(thread: Thread) -> None:
    """Take a signal, and have the program run its handler where it has one.

    Source: Linux v6.8 arch/x86/kernel/signal.c:arch_do_signal_or_restart().
    """
    caught = get_signal(thread)
    if caught is not None:
        handle_signal(thread, caught)


def get_signal(thread: Thread) -> Delivered | None:
    """Take the next pending signal and return it where it is caught; any other ends the process.

    Of the signals the kernel raises here none is ignored by default. Source: Linux v6.8 kernel/signal.c:get_signal().
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
    """Forget that there are signals where none is left. Source: Linux v6.8 kernel/signal.c:recalc_sigpending()."""
    if not thread.pending:
        thread.flags &= ~TIF_SIGPENDING


def handle_signal(thread: Thread, caught: Delivered) -> None:
    """Have the client library run the program's handler.

    The handler has the PKRU that programs start with. Differs from Linux: no frame is laid on the program's stack; the
    reply to the request says it. Where PKRU was another, the reply says that too, and whoever runs the handler sets it
    again (WRPKRU), as sigreturn would. Source: Linux v6.8 arch/x86/kernel/signal.c:handle_signal(),
    arch/x86/kernel/fpu/core.c:fpu__clear_user_states().
    """
    processor = _processor(thread)
    if processor.pkru != processor.init_pkru:
        caught = Delivered(caught.signo, caught.info._replace(pkru=processor.pkru))
        processor.wrpkru(processor.init_pkru)
    thread.delivered = caught


def _processor(thread: Thread) -> Processor:
    return thread.process.live_mm.frames.processor
