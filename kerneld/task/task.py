"""Processes and their threads.

Owns `Process` (Linux: a thread group with its mm, signals and credentials) and `Thread` (one connection). Knows no
socket: `Thread.session` is the server's own. Answers to Linux v6.8 include/linux/sched.h and
include/linux/sched/signal.h.

Invariants: `process.mm` is an address space until `ended`, None from then on; `threads` is empty exactly when it
has ended or nothing is attached yet, and holds no dead one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from signal import SIGKILL
from typing import Protocol

from kerneld.hw.processor import INIT_PKRU
from kerneld.mm.limits import Rlimits
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import mmput
from kerneld.task.sched import TASK_INTERRUPTIBLE, RunQueue, switch_mm
from shared.uapi.page import Pid, Vaddr
from shared.uapi.signals import Disposition
from shared.wire import SigInfo


@dataclass(frozen=True, slots=True)
class Cred:
    """Who a process acts as. `superuser` is what Linux's capabilities are together; dropped for good by setuid."""

    uid: int
    gid: int
    superuser: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """A signal that has reached a thread; a fatal one has ended its process."""

    signo: int
    info: SigInfo


class ThreadTlb(Protocol):
    """What a thread's connection must know of a TLB: it is told when the program stops and goes on."""

    def begin(self) -> None:
        """A request has come: the thread is not in its program."""

    def take(self) -> bytes:
        """Return what goes behind the answer; the thread is in its program again."""

    def leave(self) -> None:
        """The thread has ended, or goes on with other memory."""


class Process:
    """One process of the machine's user space, behind which a real one stands."""

    def __init__(self, pid: Pid, cred: Cred, mm: MmStruct, comm: str, start_time: float) -> None:
        """`start_time` is CLOCK_MONOTONIC in seconds; `comm` the real process's name."""
        self.pid = pid
        self.cred = cred
        self.mm: MmStruct | None = mm
        """The address space, None once the process has ended."""
        self.comm = comm
        self.start_time = start_time
        self.threads: list[Thread] = []
        self.dispositions: dict[int, Disposition] = {}
        """What rt_sigaction has said; absent means DEFAULT."""
        self.min_flt = 0
        self.maj_flt = 0
        self.on_exit: Callable[[Process], None] | None = None
        """Called once it has ended: the process table takes it out."""
        self.memory_is_host = False
        """Whether it said so itself: its program uses its real memory, and an inspector is to be shown that."""
        self.on_page_fault: Callable[[Vaddr], None] | None = None
        """Told the address of each page fault; None while nobody wants to know."""
        self.explanation = ""
        """What its last call has to say beside the errno; "" for nothing. It may read that itself."""
        self.ended = False
        self.exit_signal = 0
        """The signal that ended it, 0 for an exit."""

    @property
    def live_mm(self) -> MmStruct:
        """The address space of a process that is known to live: it makes a call."""
        assert self.mm is not None
        return self.mm

    @property
    def rlimits(self) -> Rlimits:
        """The resource limits, which the address space consults."""
        return self.live_mm.rlimits

    def exec_mmap(self, new_mm: MmStruct) -> None:
        """Go on with a new address space: the processor and the listeners move over, then the old one is taken down.

        One that others go on with (vfork's parent) stays, with its listeners.
        Source: Linux v6.8 fs/exec.c:exec_mmap().
        """
        old = self.live_mm
        self.mm = new_mm
        for thread in self.threads:
            if thread.rq is not None and thread.rq.mm is old:
                switch_mm(thread.rq, new_mm)
        if old.users == 1:
            for notifier in list(old.notifiers):
                notifier.exec_mmap(new_mm)
            old.notifiers.clear()
        mmput(old)

    def exit_mm(self) -> None:
        """Give the address space up; the process has ended then. Source: Linux v6.8 kernel/exit.c:exit_mm()."""
        mm, self.mm = self.mm, None
        self.ended = True
        if mm is not None:
            mm.frames.vmstat["pgfault"] += self.min_flt + self.maj_flt
            mm.frames.vmstat["pgmajfault"] += self.maj_flt
            mmput(mm)


class Thread:
    """One thread of a process: one connection."""

    __slots__ = (
        "__weakref__", "delivered", "flags", "on_rq", "pending", "pkru", "process", "rq", "session", "siginfo", "state",
        "tid", "tlb",
    )  # fmt: skip

    def __init__(self, tid: Pid, process: Process) -> None:
        self.tid = tid
        self.process = process
        self.session: object | None = None
        self.pkru = INIT_PKRU
        """PKRU while it does not run: `kerneld.task.sched` loads and saves it (Linux: thread.pkru)."""
        self.state = TASK_INTERRUPTIBLE
        """TASK_ of `kerneld.task.sched`: what it is, or is to be once it is off the processor."""
        self.on_rq = False
        self.rq: RunQueue | None = None
        """The processor that it runs or has run on."""
        self.flags = 0
        """What is to be done before user mode goes on: TIF_ (Linux: thread_info.flags); 0 nearly always."""
        self.pending = 0
        """Pending signals as a bit mask, bit signo - 1 (Linux: sigset_t)."""
        self.siginfo: dict[int, SigInfo] = {}
        self.tlb: ThreadTlb | None = None
        """Of a native program's thread: what the host maps of its memory (`kerneld.tlb`)."""
        self.delivered: Delivered | None = None
        """The signal that the current request has raised; dispatch takes it."""

    @property
    def is_killed(self) -> bool:
        """Whether a SIGKILL is pending."""
        return self.pending >> (SIGKILL - 1) & 1 != 0
