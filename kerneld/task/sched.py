"""The run queue of the one processor, and the switch from one thread to another.

Owns `curr` (Linux: current), the address space in CR3, the loaded PKRU, and the threads that wait for the processor. A
thread is on the run queue (`on_rq`) while its request runs or waits for its next slice of time. It sleeps while its
client makes no request. Knows no socket: the server's loop has the place of Linux's idle task. The loop learns which
client has sent a request (as interrupts tell it), and runs that thread (`run_task`). It gets the processor back when a
thread has used up its slice or has died; then `curr` is None.

After its reply a thread stays `curr` until another thread runs: it may be in user mode, the kernel does not know. So
its sleep is noted late, and its next request does not pay for a switch.

Invariants: `curr` is on_rq and not in `queue`; every thread in `queue` is on_rq and TASK_RUNNING; CR3 is 0 or names the
page table of a living address space; if there is a `curr`, it is the address space of its process.

Answers to Linux v6.8 kernel/sched/core.c and, for CR3, arch/x86/mm/tlb.c. The policy is SCHED_RR's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from kerneld.errors import KernelBug
from kerneld.hw.processor import Processor

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.pagetable import PageTable
    from kerneld.task.task import Thread

TASK_RUNNING, TASK_INTERRUPTIBLE, TASK_DEAD = 0x00, 0x01, 0x80
"""States of a thread: Linux v6.8 include/linux/sched.h."""
TIF_SIGPENDING, TIF_NEED_RESCHED = 1 << 2, 1 << 3
"""Work to be done before user mode: Linux v6.8 arch/x86/include/asm/thread_info.h."""
EXIT_TO_USER_MODE_WORK = TIF_SIGPENDING | TIF_NEED_RESCHED


class RunQueue:
    """The processor's run queue (Linux: struct rq)."""

    __slots__ = ("curr", "mm", "next", "nr_switches", "pgd", "processor", "queue")

    def __init__(self, processor: Processor | None = None) -> None:
        self.curr: Thread | None = None
        """The running thread; None while the loop runs, which is no thread."""
        self.next: Thread | None = None
        """The thread that the loop has chosen to run next (Linux: the next buddy)."""
        self.queue: deque[Thread] = deque()
        """The runnable threads that wait for the processor. The one that has waited longest is first."""
        self.mm: MmStruct | None = None
        """The address space whose page table is loaded (Linux: cpu_tlbstate.loaded_mm)."""
        self.pgd: PageTable | None = None
        """The loaded page table, by which the processor translates."""
        self.processor = processor or Processor()
        """The other registers that a switch saves and loads."""
        self.nr_switches = 0

    @property
    def cr3(self) -> int:
        """The physical address of the loaded page table in bytes; 0 if none is loaded."""
        return self.pgd.cr3 if self.pgd is not None else 0

    def check(self, mms: Collection[MmStruct]) -> None:
        """Check the invariants. `mms` are the living address spaces. Raises KernelBug."""
        runnable = [*self.queue, *([self.curr] if self.curr is not None else [])]
        if len(set(runnable)) != len(runnable):
            raise KernelBug("a thread runs and waits to run, or waits twice")
        for thread in runnable:
            if not thread.on_rq or thread.state != TASK_RUNNING or thread.process.mm is None:
                raise KernelBug(f"thread {thread.tid} is on the run queue: state {thread.state:#x}")
        if self.mm is not None and self.mm not in mms:
            raise KernelBug("CR3 names the page table of an address space that has gone")
        if self.pgd is not (self.mm.page_table if self.mm is not None else None):
            raise KernelBug("CR3 names another page table than the address space's that is loaded")
        if self.curr is not None and self.curr.process.mm is not self.mm:
            raise KernelBug("CR3 names the page table of another process than the one that runs")


def run_task(rq: RunQueue, thread: Thread | None) -> None:
    """Give the processor to a thread with work, or to the loop (None). It is `curr` on return.

    The thread that ran before has answered its client. It sleeps until the client makes a request.
    """
    if thread is rq.curr:
        return
    if thread is not None:
        try_to_wake_up(rq, thread)
    rq.next = thread
    if rq.curr is not None:
        rq.curr.state = TASK_INTERRUPTIBLE
    __schedule(rq)


def try_to_wake_up(rq: RunQueue, thread: Thread) -> None:
    """Make a sleeping thread runnable. Source: Linux v6.8 kernel/sched/core.c:try_to_wake_up()."""
    if not thread.on_rq:
        thread.state = TASK_RUNNING
        activate_task(rq, thread)


def sleep(thread: Thread | None) -> Callable[[], None]:
    """Take a running thread off the processor. The returned function wakes it; for a dead thread it does nothing.

    Source: Linux v6.8 kernel/sched/wait.c:prepare_to_wait() and autoremove_wake_function().
    """
    assert thread is not None
    assert thread.rq is not None
    rq = thread.rq
    thread.state = TASK_INTERRUPTIBLE
    schedule(rq)

    def wake() -> None:
        if thread.state == TASK_INTERRUPTIBLE:
            try_to_wake_up(rq, thread)

    return wake


def activate_task(rq: RunQueue, thread: Thread) -> None:
    """Put a thread on the run queue. Source: Linux v6.8 kernel/sched/core.c:activate_task(), enqueue_task()."""
    thread.rq = rq
    rq.queue.append(thread)
    thread.on_rq = True


def deactivate_task(rq: RunQueue, thread: Thread) -> None:
    """Take a thread off the run queue. Source: Linux v6.8 kernel/sched/core.c:deactivate_task()."""
    thread.on_rq = False
    dequeue_task(rq, thread)


def dequeue_task(rq: RunQueue, thread: Thread) -> None:
    """Take a thread out of the queue of waiting threads; the running thread is not in it.

    Source: Linux v6.8 kernel/sched/core.c:dequeue_task().
    """
    if thread is not rq.curr:
        rq.queue.remove(thread)


def schedule(rq: RunQueue) -> None:
    """Let another thread run. Source: Linux v6.8 kernel/sched/core.c:schedule().

    Differs from Linux: it returns at once. The caller must not continue the work of the old thread.
    """
    __schedule(rq)


def __schedule(rq: RunQueue) -> None:
    """Put the running thread aside, asleep, dead or runnable, and switch to the next one.

    Source: Linux v6.8 kernel/sched/core.c:__schedule().
    """
    prev = rq.curr
    if prev is not None:
        if prev.state:
            deactivate_task(rq, prev)
        prev.flags &= ~TIF_NEED_RESCHED
    following = pick_next_task(rq, prev)
    if following is not prev:
        context_switch(rq, prev, following)


def pick_next_task(rq: RunQueue, prev: Thread | None) -> Thread | None:
    """Return the next thread: the loop's choice, else None for the loop itself, which goes before all waiting threads.

    If `prev` is still runnable, it goes to the end of the queue. Source: Linux v6.8
    kernel/sched/core.c:pick_next_task().
    """
    if prev is not None and prev.on_rq:
        rq.queue.append(prev)
    following, rq.next = rq.next, None
    if following is not None:
        rq.queue.remove(following)
    return following


def context_switch(rq: RunQueue, prev: Thread | None, following: Thread | None) -> None:
    """Make another thread `curr`, and load its page table. Source: Linux v6.8 kernel/sched/core.c:context_switch().

    The loop has no address space of its own: CR3 stays what it was (Linux: lazy TLB). PKRU is a thread's own:
    arch/x86/kernel/process_64.c:x86_pkru_load().
    """
    rq.nr_switches += 1
    rq.curr = following
    if prev is not None:
        prev.pkru = rq.processor.pkru
    if following is not None and rq.processor.ospke:
        rq.processor.pkru = following.pkru
    mm = following.process.mm if following is not None else None
    if mm is not None and mm is not rq.mm:
        switch_mm(rq, mm)


def switch_mm(rq: RunQueue, mm: MmStruct) -> None:
    """Load CR3 with an address space's page table. Source: Linux v6.8 arch/x86/mm/tlb.c:switch_mm_irqs_off()."""
    rq.mm = mm
    rq.pgd = mm.page_table


def enter_lazy_tlb(thread: Thread) -> None:
    """Unload the address space of a thread that ends, if it is in CR3, because it may be freed soon.

    Source: Linux v6.8 kernel/exit.c:exit_mm(), arch/x86/mm/tlb.c:enter_lazy_tlb(), leave_mm().
    """
    rq = thread.rq
    if rq is not None and rq.mm is thread.process.mm and rq.curr in (thread, None):
        rq.mm = rq.pgd = None


def scheduler_tick(rq: RunQueue) -> None:
    """Note that the running thread's slice of time is over and another thread has to run.

    Source: Linux v6.8 kernel/sched/core.c:scheduler_tick(), resched_curr().
    """
    if rq.curr is not None:
        rq.curr.flags |= TIF_NEED_RESCHED


def do_task_dead(thread: Thread) -> None:
    """End the scheduling of a thread: it never runs again. Source: Linux v6.8 kernel/sched/core.c:do_task_dead().

    Differs from Linux: a thread that is not running (its real process has died, or another thread has killed it) does
    not run for this. It is only taken off the queue.
    """
    thread.state = TASK_DEAD
    rq = thread.rq
    if rq is None or not thread.on_rq:
        return
    if rq.curr is thread:
        __schedule(rq)
    else:
        deactivate_task(rq, thread)
