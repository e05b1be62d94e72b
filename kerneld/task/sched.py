"""The run queue of the one processor, and the switch from one thread to another.

Owns who is `curr` (Linux: current), which address space CR3 names, whose PKRU is loaded, and who waits for the
processor. A thread is on the run queue (`on_rq`) while a request of its is run or waits for its next slice of time; it
sleeps while its client has nothing to ask. Knows no socket: the server's loop stands where Linux's idle task does. It
hears who has something to ask (as interrupts tell it), has that thread run (`run_task`), and gets the processor back
when a thread has used up its slice or has died: `curr` is None then.

A thread that has answered stays `curr` until another is to run: it is in user mode, as far as can be known. Its sleep
is therefore noted late, when it no longer costs its next request anything.

Invariants: `curr` is on_rq and not in `queue`; every thread in `queue` is on_rq and TASK_RUNNING; CR3 is 0 or names the
page table of an address space that lives; where there is a `curr`, of its process.

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
        """Who runs; None: the loop, which is no thread."""
        self.next: Thread | None = None
        """Whom the loop has chosen (Linux: the next buddy)."""
        self.queue: deque[Thread] = deque()
        """Those that could run and wait for the processor, the one that has waited longest first."""
        self.mm: MmStruct | None = None
        """The address space whose page table is loaded (Linux: cpu_tlbstate.loaded_mm)."""
        self.pgd: PageTable | None = None
        """Its page table: what the processor translates by."""
        self.processor = processor or Processor()
        """The other registers that a switch saves and loads."""
        self.nr_switches = 0

    @property
    def cr3(self) -> int:
        """The physical address of the page table that is loaded, in bytes; 0 where none is."""
        return self.pgd.cr3 if self.pgd is not None else 0

    def check(self, mms: Collection[MmStruct]) -> None:
        """Check the invariants; `mms` are the address spaces that live. Raises KernelBug."""
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
    """Give the processor to a thread that has something to do, or to the loop: `curr` is that one on return.

    Who has run until now has answered, and sleeps until its client asks again.
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
    """Take a running thread off the processor until what is returned is called; once it is dead that does nothing.

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
    """Take a thread out of those that wait; the running one does not. Source: kernel/sched/core.c:dequeue_task()."""
    if thread is not rq.curr:
        rq.queue.remove(thread)


def schedule(rq: RunQueue) -> None:
    """Let another run. Source: Linux v6.8 kernel/sched/core.c:schedule().

    Differs from Linux: it returns at once. Who calls it for a thread must not go on with that thread's work.
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
    """Return who runs next: whom the loop has chosen, else the loop itself, which comes before all that wait.

    `prev` goes behind those where it could go on. Source: Linux v6.8 kernel/sched/core.c:pick_next_task().
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
    """A thread that ends needs its address space no more: where CR3 names it, load none, for it may be about to go.

    Source: Linux v6.8 kernel/exit.c:exit_mm(), arch/x86/mm/tlb.c:enter_lazy_tlb(), leave_mm().
    """
    rq = thread.rq
    if rq is not None and rq.mm is thread.process.mm and rq.curr in (thread, None):
        rq.mm = rq.pgd = None


def scheduler_tick(rq: RunQueue) -> None:
    """The running thread's slice of time is over: note that another is to run.

    Source: Linux v6.8 kernel/sched/core.c:scheduler_tick(), resched_curr().
    """
    if rq.curr is not None:
        rq.curr.flags |= TIF_NEED_RESCHED


def do_task_dead(thread: Thread) -> None:
    """The last thing that is done for a thread: it runs no more. Source: Linux v6.8 kernel/sched/core.c:do_task_dead().

    Differs from Linux: one that does not run itself (its real process has died, another has killed it) is not run for
    it, it is only taken off the queue.
    """
    thread.state = TASK_DEAD
    rq = thread.rq
    if rq is None or not thread.on_rq:
        return
    if rq.curr is thread:
        __schedule(rq)
    else:
        deactivate_task(rq, thread)
