"""The end of threads and processes.

A thread that ends itself, by a call or by a signal, is `curr`. Its last function gives the processor to another thread.
`Process.on_exit` is called at the end of a process. Answers to Linux v6.8 kernel/exit.c.
"""

from __future__ import annotations

from kerneld.task.sched import TASK_DEAD, do_task_dead, enter_lazy_tlb
from kerneld.task.task import Process, Thread


def do_exit(thread: Thread) -> None:
    """End one thread. The end of the last thread ends its process. A second call does nothing.

    Source: Linux v6.8 kernel/exit.c:do_exit().
    """
    if thread.state == TASK_DEAD:
        return
    process = thread.process
    process.threads.remove(thread)
    if thread.tlb is not None:
        thread.tlb.leave()
    enter_lazy_tlb(thread)
    if not process.threads:
        process.exit_mm()
        exit_notify(process)
    do_task_dead(thread)


def exit_notify(process: Process) -> None:
    """Call `on_exit` at the end of the process. Source: Linux v6.8 kernel/exit.c:exit_notify()."""
    if process.on_exit is not None:
        process.on_exit(process)


def do_group_exit(thread: Thread, signo: int) -> None:
    """End the process of a thread. `signo` is the fatal signal, 0 for an exit.

    Source: Linux v6.8 kernel/exit.c:do_group_exit().
    """
    process = thread.process
    if process.ended:
        return
    process.exit_signal = signo
    zap_other_threads(thread)
    do_exit(thread)


def zap_other_threads(thread: Thread) -> None:
    """Kill every other thread of a thread's process. Source: Linux v6.8 kernel/signal.c:zap_other_threads().

    Differs from Linux: the threads have ended on return. None of them is in the middle of a call, so there is no wait.
    """
    for other in [other for other in thread.process.threads if other is not thread]:
        do_exit(other)


def kill_process(process: Process, signo: int = 0) -> None:
    """End a process whose real process has died, or that the kernel kills. The process has ended on return."""
    if process.threads:
        do_group_exit(process.threads[0], signo)
