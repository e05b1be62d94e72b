"""Processes and their threads.

Owns `Process` (Linux: a thread group with its mm, signals and credentials) and `Thread` (one connection). Knows no
socket: `Thread.session` is the server's own. Answers to Linux v6.8 include/linux/sched.h and
include/linux/sched/signal.h.

Invariants: `process.mm` is an address space until the process has `ended`, then None. `threads` holds no dead thread.
It is empty exactly when the process has ended or no thread is attached yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import SIGKILL
from typing import Protocol

from kerneld.hw.processor import INIT_PKRU
from kerneld.mm.files.file import File
from kerneld.mm.limits import Rlimits
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import mmput
from kerneld.task.capability import ALL_CAPS
from kerneld.task.sched import TASK_INTERRUPTIBLE, RunQueue, switch_mm
from shared.uapi.page import TASK_SIZE, Pid, Vaddr
from shared.uapi.signals import Disposition
from shared.wire import SigInfo


@dataclass(frozen=True, slots=True)
class Cred:
    """The credentials of a process.

    `superuser` are the rights in this machine: to inspect others, to see frames. `caps` are Linux's capabilities, as
    bits of `kerneld.task.capability`. Only a native program can have one without the other: it has the capabilities of
    its real process.
    """

    uid: int
    gid: int
    superuser: bool
    caps: int = -1
    """-1: all capabilities for the superuser, none for others."""

    def __post_init__(self) -> None:
        """Set the capabilities of a process that is not native."""
        if self.caps < 0:
            object.__setattr__(self, "caps", ALL_CAPS if self.superuser else 0)

    def capable(self, capability: int) -> bool:
        """Return whether the process has a capability: CAP_ of `kerneld.task.capability`."""
        return self.caps >> capability & 1 != 0


@dataclass(frozen=True, slots=True)
class Delivered:
    """A signal that was delivered to a thread. A fatal signal has ended its process."""

    signo: int
    info: SigInfo


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a new thread or a child has from the thread that makes it (Linux: dup_task_struct())."""

    pkru: int = INIT_PKRU
    mempolicy: int = 0
    personality: int = 0

    @classmethod
    def of(cls, thread: Thread, pkru: int) -> Inherited:
        """Return what a thread hands on; `pkru` is the register's value while it runs."""
        return cls(pkru, thread.mempolicy, thread.personality)


class ThreadTlb(Protocol):
    """The interface of a TLB for a thread's connection, which tells it when the program stops and continues."""

    def begin(self, datagram: memoryview) -> None:
        """Note that a request has come, in a buffer of at least 8 bytes: the thread does not run its program."""

    def take(self) -> bytes:
        """Return the record to append to the answer, and note that the thread runs its program again."""

    def left(self) -> None:
        """Note that the thread runs in this memory no more, although it has not asked for anything."""

    def leave(self) -> None:
        """Note that the thread has ended, or continues with other memory."""


class ThreadAdvances(Protocol):
    """The interface of what a native program's thread has been given in advance; see `kerneld.tlb.advances`."""

    is_answered_first: bool
    """Whether the thread has the answer to its fault before it is given pages."""

    def on_answered(self) -> None:
        """Give what the thread's last fault has asked for: it has its answer."""

    def begin_request(self) -> None:
        """Note that the thread makes a request."""

    def on_fault(self, address: Vaddr) -> None:
        """Note that the thread asks about an address."""

    def offer(self, mm: MmStruct, address: Vaddr, *, is_write: bool, is_present: bool) -> None:
        """Give pages in advance, after a fault at an address; `is_present`: at a page that could be read."""

    def book(self, *, and_windows: bool = False) -> None:
        """Book the faults of the pages that the thread has taken, and those of its windows."""

    def check(self) -> Iterator[str]:
        """Yield a line of text for each page that is given and must not be."""

    def recall(self, start: Vaddr = 0, end: Vaddr = TASK_SIZE) -> None:
        """Take back what is not taken yet and lies in [start, end), and the windows of the mappings there."""

    def end(self) -> None:
        """End the use of the memory, or of the ring: the thread takes no page any more."""


class Process:
    """One process of the machine's user space. It has a real process on the host."""

    def __init__(self, pid: Pid, cred: Cred, mm: MmStruct, comm: str, start_time: float) -> None:
        """`start_time` is CLOCK_MONOTONIC in seconds; `comm` the real process's name."""
        self.pid = pid
        self.cred = cred
        self.mm: MmStruct | None = mm
        """The address space; None after the end of the process."""
        self.new_mms: list[MmStruct] = []
        """The address spaces that execves are filling, one for each thread that is in one (Linux: bprm->mm)."""
        self.comm = comm
        self.start_time = start_time
        self.threads: list[Thread] = []
        self.dispositions: dict[int, Disposition] = {}
        """The dispositions set by rt_sigaction; a missing signal means DEFAULT."""
        self.min_flt = 0
        self.maj_flt = 0
        self.on_exit: Callable[[Process], None] | None = None
        """Called after the end of the process: the process table removes it."""
        self.oom_score_adj = self.oom_score_adj_min = 0
        """What a write to /proc/PID/oom_score_adj has set, and the least that one without privilege may set."""
        self.may_be_native = False
        """Whether the process, or the one that it was forked from, has been native: it may be so again as any user."""
        self.memory_is_host = False
        """The process said at attach that its program uses its real memory. An inspector then sees the real memory."""
        self.on_page_fault: Callable[[Vaddr], None] | None = None
        """Called with the address of each page fault; None without a listener."""
        self.explanation = ""
        """The explanation of its last refused call, in words; "" for none. The process itself may read it."""
        self.ended = False
        self.exit_signal = 0
        """The signal that ended the process; 0 for an exit."""

    @property
    def live_mm(self) -> MmStruct:
        """The address space of a living process, for example of the caller of a call."""
        assert self.mm is not None
        return self.mm

    @property
    def rlimits(self) -> Rlimits:
        """The resource limits. The address space uses them."""
        return self.live_mm.rlimits

    def exec_mmap(self, new_mm: MmStruct) -> None:
        """Switch to a new address space: first the processor and the listeners, then the old address space is freed.

        One that others go on with (vfork's parent) stays, with its listeners.
        Source: Linux v6.8 fs/exec.c:exec_mmap().
        """
        old = self.live_mm
        self.mm = new_mm
        self.new_mms.remove(new_mm)
        for thread in self.threads:
            if thread.rq is not None and thread.rq.mm is old:
                switch_mm(thread.rq, new_mm)
        if old.users == 1:
            for notifier in list(old.notifiers):
                notifier.exec_mmap(new_mm)
            old.notifiers.clear()
        mmput(old)

    def exit_mm(self) -> None:
        """Give up the address space at the end of the process. Source: Linux v6.8 kernel/exit.c:exit_mm()."""
        mm, self.mm = self.mm, None
        self.ended = True
        while self.new_mms:
            mmput(self.new_mms.pop())
        if mm is not None:
            mm.frames.vmstat["pgfault"] += self.min_flt + self.maj_flt
            mm.frames.vmstat["pgmajfault"] += self.maj_flt
            mmput(mm)


class Thread:
    """One thread of a process: one connection."""

    __slots__ = (
        "__weakref__", "advances", "delivered", "flags", "line", "mapped_file", "mempolicy", "on_rq", "pending",
        "personality", "pkru", "process", "rq", "session", "siginfo", "state", "tid", "tlb",
    )  # fmt: skip

    def __init__(self, tid: Pid, process: Process) -> None:
        self.tid = tid
        self.process = process
        self.session: object | None = None
        self.pkru = INIT_PKRU
        """PKRU while the thread does not run. `kerneld.task.sched` loads and saves it (Linux: thread.pkru)."""
        self.state = TASK_INTERRUPTIBLE
        """A TASK_ state of `kerneld.task.sched`: the current state, or the state after the thread leaves the
        processor."""
        self.on_rq = False
        self.rq: RunQueue | None = None
        """The run queue of the processor on which the thread runs or has run."""
        self.flags = 0
        """The work before the return to user mode, as TIF_ flags (Linux: thread_info.flags); nearly always 0."""
        self.pending = 0
        """Pending signals as a bit mask, bit signo - 1 (Linux: sigset_t)."""
        self.siginfo: dict[int, SigInfo] = {}
        self.mempolicy = 0
        """The policy by set_mempolicy; see `kerneld.mm.space.mempolicy`."""
        self.personality = 0
        """The flags of personality(2), all 32 bits; those about memory are in `shared.uapi.personality`."""
        self.line = 0
        """The number of the last connection that the kernel has made for it: its next child attaches by that."""
        self.tlb: ThreadTlb | None = None
        """The TLB of a native program's thread: the host's mappings of its memory (`kerneld.tlb`)."""
        self.advances: ThreadAdvances | None = None
        """The pages that a native program's thread may take by itself; None without a ring."""
        self.mapped_file: File | None = None
        """The file that it has mapped last, if it is native: the next mapping is mostly of the same one."""
        self.delivered: Delivered | None = None
        """The signal that the current request has raised. dispatch takes it."""

    def inherit(self, from_: Inherited) -> None:
        """Begin with what the thread has that made this one."""
        self.pkru, self.mempolicy, self.personality = from_.pkru, from_.mempolicy, from_.personality

    @property
    def is_killed(self) -> bool:
        """Whether a SIGKILL is pending."""
        return self.pending >> (SIGKILL - 1) & 1 != 0
