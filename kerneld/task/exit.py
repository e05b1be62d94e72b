"""The end of threads and processes.

Answers to Linux v6.8 kernel/exit.c. Whoever must know of an end has put itself into `Process.on_exit`.
"""

from __future__ import annotations

from kerneld.task.task import Process, Thread


def do_exit(thread: Thread) -> None:
    """End one thread; the last one ends its process. Source: Linux v6.8 kernel/exit.c:do_exit()."""
    process = thread.process
    if thread in process.threads:
        process.threads.remove(thread)
    if not process.threads:
        do_group_exit(process, 0)


def do_group_exit(process: Process, signo: int) -> None:
    """End a process with all its threads; `signo` is the signal that does it, 0 for an exit. A second time is nothing.

    Source: Linux v6.8 kernel/exit.c:do_group_exit().
    """
    if process.ended:
        return
    process.exit_signal = signo
    process.threads.clear()
    process.exit_mm()
    if process.on_exit is not None:
        process.on_exit(process)
