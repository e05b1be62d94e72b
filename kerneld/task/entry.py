"""The way back from the kernel to user mode, and what is done on it: signals, and another thread's turn.

Owns the order. Who enters the kernel, by a request or by an exception, leaves it by here where `Thread.flags` says that
there is something to do. Answers to Linux v6.8 kernel/entry/common.c.
"""

from __future__ import annotations

from kerneld.task.sched import EXIT_TO_USER_MODE_WORK, TIF_NEED_RESCHED, TIF_SIGPENDING, schedule, scheduler_tick
from kerneld.task.signal import arch_do_signal_or_restart
from kerneld.task.task import Thread


def irqentry_exit(thread: Thread) -> None:
    """Leave an exception or an interrupt; all here come from user mode.

    Source: Linux v6.8 kernel/entry/common.c:irqentry_exit().
    """
    irqentry_exit_to_user_mode(thread)


def irqentry_exit_to_user_mode(thread: Thread) -> None:
    """Go back to user mode. Source: Linux v6.8 kernel/entry/common.c:irqentry_exit_to_user_mode()."""
    exit_to_user_mode_prepare(thread)


def exit_to_user_mode_prepare(thread: Thread) -> None:
    """Do what is to be done first, if anything.

    Source: Linux v6.8 include/linux/entry-common.h:exit_to_user_mode_prepare().
    """
    work = thread.flags & EXIT_TO_USER_MODE_WORK
    if work:
        exit_to_user_mode_loop(thread, work)


def exit_to_user_mode_loop(thread: Thread, work: int) -> None:
    """Do what `work` says, and what that has brought. Source: kernel/entry/common.c:exit_to_user_mode_loop()."""
    while work:
        if work & TIF_NEED_RESCHED and thread.rq is not None:
            schedule(thread.rq)
        if work & TIF_SIGPENDING:
            arch_do_signal_or_restart(thread)
        work = thread.flags & EXIT_TO_USER_MODE_WORK


def sysvec_apic_timer_interrupt(thread: Thread) -> None:
    """The running thread's slice of time is over: the processor goes to the loop, and the thread behind all that wait.

    Source: Linux v6.8 arch/x86/kernel/apic/apic.c:sysvec_apic_timer_interrupt().
    """
    if thread.rq is not None:
        scheduler_tick(thread.rq)
    irqentry_exit(thread)
