"""The way back from the kernel to user mode. On this way signals are delivered, and another thread may be scheduled.

Owns the order of this work. A thread that entered the kernel by a request or an exception leaves it through these
functions if `Thread.flags` has work to do. Answers to Linux v6.8 kernel/entry/common.c.
"""

from __future__ import annotations

from kerneld.task.sched import EXIT_TO_USER_MODE_WORK, TIF_NEED_RESCHED, TIF_SIGPENDING, schedule, scheduler_tick
from kerneld.task.signal import arch_do_signal_or_restart
from kerneld.task.task import Thread


def irqentry_exit(thread: Thread) -> None:
    """Leave an exception or an interrupt. Here all of them come from user mode.

    Source: Linux v6.8 kernel/entry/common.c:irqentry_exit().
    """
    irqentry_exit_to_user_mode(thread)


def irqentry_exit_to_user_mode(thread: Thread) -> None:
    """Go back to user mode. Source: Linux v6.8 kernel/entry/common.c:irqentry_exit_to_user_mode()."""
    exit_to_user_mode_prepare(thread)


def exit_to_user_mode_prepare(thread: Thread) -> None:
    """Do the pending work of a thread before it goes back to user mode.

    Source: Linux v6.8 include/linux/entry-common.h:exit_to_user_mode_prepare().
    """
    work = thread.flags & EXIT_TO_USER_MODE_WORK
    if work:
        exit_to_user_mode_loop(thread, work)


def exit_to_user_mode_loop(thread: Thread, work: int) -> None:
    """Do `work`, and the work that comes from it. Source: kernel/entry/common.c:exit_to_user_mode_loop()."""
    while work:
        if work & TIF_NEED_RESCHED and thread.rq is not None:
            schedule(thread.rq)
        if work & TIF_SIGPENDING:
            arch_do_signal_or_restart(thread)
        work = thread.flags & EXIT_TO_USER_MODE_WORK


def sysvec_apic_timer_interrupt(thread: Thread) -> None:
    """End the running thread's slice of time: the loop gets the processor, and the thread goes to the end of the queue.

    Source: Linux v6.8 arch/x86/kernel/apic/apic.c:sysvec_apic_timer_interrupt().
    """
    if thread.rq is not None:
        scheduler_tick(thread.rq)
    irqentry_exit(thread)
