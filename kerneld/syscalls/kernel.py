"""The kernel: joins all parts of the machine.

Owns the machine, its processes, files, views and the shadow table, from start to shutdown. The server uses only this
class and `kerneld.syscalls.dispatch`. Knows no socket.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import NamedTuple, Protocol

import structlog

from kerneld.errors import SysError
from kerneld.fs.file_limits import FileRules
from kerneld.fs.file_table import FileTable
from kerneld.fs.inotify import Inotify
from kerneld.fs.procfs import ProcFs
from kerneld.fs.userfaultfd import PipeWatch, Userfaultfds
from kerneld.hw.processor import Processor
from kerneld.hw.ram import Ram
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.frames.frames import Frames
from kerneld.mm.frames.swap import SwapFile
from kerneld.mm.ksm.ksmd import Ksmd
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.reclaim.oom import OomKiller
from kerneld.mm.reclaim.page_alloc import PageAlloc
from kerneld.mm.reclaim.vmscan import Vmscan
from kerneld.mm.space.dying import Dying
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.overcommit import init_reserves
from kerneld.mm.space.writeback import sync_mm
from kerneld.shadowpt.session import ShadowPt
from kerneld.task.exec import fresh_mm
from kerneld.task.exit import do_exit, kill_process
from kerneld.task.oom_tasks import OomTasks
from kerneld.task.real_process import find_effective_ids, find_ppid
from kerneld.task.sched import RunQueue, run_task
from kerneld.task.shm import ShmSegments
from kerneld.task.table import ProcessTable
from kerneld.task.task import Inherited, Process, Thread
from kerneld.tlb.advances import AllAdvances
from kerneld.tlb.debts import Debts
from kerneld.tlb.tlbs import Tlbs
from kerneld.tlb.view import Agent
from shared.uapi.page import PAGE_MASK, PAGE_SIZE, Pid
from shared.uapi.shadowpt import ATTACH_HOST
from shared.uapi.syscalls import ABI_VERSION

MIN_RAM_BYTES = 4 << 20
_SHUTDOWN_SECONDS = 1.0
"""How long a machine that ends frees its memory in order. The rest is freed with the daemon's process."""
_log = structlog.get_logger("kerneld.task")


class HostTargets(Enum):
    """Whether a table may show a real process that is not attached, if the caller may ptrace that process."""

    NEVER = "never"
    ASKED = "asked"
    """If the caller asks for it: a program of `kerneld run`, or inspector."""
    ALWAYS = "always"

    def allows(self, asked: bool) -> bool:
        """Return whether an open may name such a process."""
        return self is HostTargets.ALWAYS or (asked and self is HostTargets.ASKED)


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """The configuration of the machine."""

    ram_bytes: int = 1 << 30
    superuser_uid: int = 0
    host_targets: HostTargets = HostTargets.ASKED
    swap_bytes: int = 0
    """The size of the swap file; 0 for none. Its first page is not used."""
    sysctl: Sysctl = field(default_factory=Sysctl)
    """The values of vm.* and of transparent huge pages at the start."""
    files: FileRules = field(default_factory=FileRules)
    """The limits on open files, and the kinds of files that may be used."""
    pku: bool = True
    """Whether the processor has memory protection keys."""
    native: bool = False
    """Whether native programs are allowed (`kerneld exec`). The superuser can then map the RAM writable."""
    check_invariants: bool = False
    """Check all invariants after every request, for tests."""


class Sender(NamedTuple):
    """The sender of a datagram, from the host's kernel (SCM_CREDENTIALS)."""

    pid: Pid
    uid: int
    gid: int


class TraceCalls(Protocol):
    """The interface to tracing: the layer `kerneld.trace` is above the kernel."""

    @property
    def is_on(self) -> bool:
        """Whether anybody traces anything."""

    def open(self, thread: Thread, data: bytes) -> Generator[None, None, tuple[int, tuple[int, int]]]:
        """Open a trace for a thread, from a packed request. Return its handle and the reader's descriptors."""

    def close(self, thread: Thread, handle: int) -> None:
        """Close a trace of the thread's process. Raises SysError(EBADF)."""

    def reap(self) -> None:
        """Close the traces whose thread has ended."""

    def reader_gone(self, pipe: int) -> None:
        """Note that the pipe which wakes a trace's reader has no reader any more."""

    def shutdown(self) -> None:
        """Close every trace."""


class Lines(Protocol):
    """The interface to the server: it makes further connections for native programs."""

    def open(self, thread: Thread) -> tuple[int, int]:
        """Return the client's end of a new connection, and its number.

        It counts to the thread's process until a process attaches. A thread that attaches by it has what `thread` has.
        `ProcessTable.line_lost` is told when it ends before that. Raises SysError(EAGAIN) over a limit, or without a
        descriptor.
        """

    def expect_child(self, thread: Thread, token: int) -> None:
        """Note that the real fork of a native thread comes, whose child will attach with a token."""

    def find_child(self, thread: Thread, token: int) -> Pid:
        """Return the pid of the child of a token, as the thread has said; 0 if it has not said."""

    def admit(self, pid: Pid, make: Callable[[], Process]) -> None:
        """Make the process of a real process, which is watched from now on; nothing if that is not possible."""

    def hire(self, process: Process) -> tuple[Agent, int]:
        """Return an agent for the memory of a process, and the agent's end of its connection. Raises as `open`.

        If the connection ends before the agent is dismissed, the process is killed.
        """


class Kernel:
    """A running machine."""

    def __init__(self, config: KernelConfig) -> None:
        """Build the machine.

        Raises ValueError for an impossible size of RAM or swap, and OSError when the host refuses it.
        """
        if config.swap_bytes & ~PAGE_MASK or config.swap_bytes == PAGE_SIZE:
            raise ValueError("swap must be a multiple of 4 KiB, and more than one page: the first is its header")
        if config.ram_bytes < MIN_RAM_BYTES or config.ram_bytes & ~PAGE_MASK:
            raise ValueError(f"RAM must be a multiple of 4 KiB and at least {MIN_RAM_BYTES >> 20} MiB")
        self.config = config
        self.start_time = time.monotonic()
        self.ram = Ram(config.ram_bytes, is_shared=config.native)
        self.frames = Frames(self.ram, SwapFile(config.swap_bytes), Processor(ospke=config.pku))
        self.sysctl = replace(config.sysctl)
        init_reserves(self.frames, self.sysctl)
        self._inotify = Inotify()
        self.file_changes_fd = self._inotify.fd
        """Readable while files_changed() has something to do; -1 on a host without inotify."""
        self.files = FileTable(self.frames, self._inotify, config.files)
        self.shm = ShmSegments(self.frames)
        self.shadowpt = ShadowPt(self.ram)
        self.table = ProcessTable(config.superuser_uid, self._new_mm)
        self.mmap_locks = self.table.mmap_locks
        self.tlbs = Tlbs(Debts(self.frames, self.mmap_locks.unsettled), are_checked=config.check_invariants)
        """The TLBs of the native programs."""
        self.advances = AllAdvances(self.frames, lambda: self.tracing is not None and self.tracing.is_on)
        """The pages that native programs may take by themselves."""
        self.userfaultfds = Userfaultfds(self.files.accounts, self.table.mmap_locks, lambda: self.pipe_watch)
        self.processes = self.table.processes
        self.ended = self.table.ended
        """Not empty exactly when take_ended() returns something. The server checks it after each request."""
        self.procfs = ProcFs(self)
        self.rq = RunQueue(self.frames.processor)
        """The processor: the running thread, and the threads that wait for it."""
        self.oom_tasks = OomTasks(self.processes, self.rq, self.table.unattached_of)
        self._oom_killer = OomKiller(
            self.frames, self.oom_tasks.tasks, self.oom_tasks.current_comm, self.oom_tasks.kill
        )
        self.vmscan = Vmscan(self.frames, self.sysctl)
        self._stalls, self._has_waited = 0, False
        """The direct reclaims until the last turn of the background pass, and whether that has waited for one."""
        self.dying = self.frames.dying = Dying()
        """Address spaces of ended processes that are not freed yet."""
        page_alloc = PageAlloc(self.frames, self.sysctl, self.vmscan, self._out_of_memory)
        self.frames.slowpath = self.advances.recalling(self.tlbs.debts.unasked(page_alloc.slowpath))
        self.ksmd = Ksmd(self.frames, self.table.mmap_locks.are_held)
        self.load_tracing: Callable[[Kernel], Iterator[None]] | None = None
        """Sets `tracing` at its first use, in pieces. None for a machine that cannot be traced."""
        self.tracing: TraceCalls | None = None
        """The layer `kerneld.trace`, set by the builder of a machine that can be traced."""
        self.pipe_watch: PipeWatch | None = None
        """Set by the server while it runs."""
        self.lines: Lines | None = None
        """Set by the server while it runs."""

    def _out_of_memory(self) -> bool:
        """Run the OOM killer.

        Source: Linux v6.8 mm/page_alloc.c:__alloc_pages_may_oom(): a dying task fails at once.
        """
        return not self.oom_tasks.current_is_dying() and self._oom_killer.out_of_memory()

    def _new_mm(self) -> MmStruct:
        return fresh_mm(self.frames, Rlimits(), self.sysctl)

    def attach(
        self, sender: Sender, version: int, tid: Pid, token: int, flags: int = 0, inherited: Inherited | None = None
    ) -> Thread:
        """Make a thread of the sender's process for a new connection; `flags` are ATTACH_ ones.

        `inherited` is for a further thread of a process, as for `ProcessTable.attach`.

        Raises SysError(EPROTO) for another ABI version, and as `ProcessTable.attach` does.
        """
        if version != ABI_VERSION:
            raise SysError(errno.EPROTO)
        # No task runs now: if memory is short, the OOM killer must not blame the task of the last request.
        run_task(self.rq, None)
        # A new client is not made to wait for the memory of others: it needs one frame.
        self.frames.may_use_reserve = True
        try:
            return self._attach(sender, tid, token, flags, inherited)
        finally:
            self.frames.may_use_reserve = False

    def _attach(self, sender: Sender, tid: Pid, token: int, flags: int, inherited: Inherited | None) -> Thread:
        uid, gid = sender.uid, sender.gid
        if flags & ATTACH_HOST:
            # A real program acts as its effective user. The credentials of the datagram have the real user.
            uid, gid = find_effective_ids(sender.pid) or (uid, gid)
        thread = self.table.attach(sender.pid, uid, gid, tid, token, inherited)
        run_task(self.rq, thread)
        if flags & ATTACH_HOST:
            thread.process.memory_is_host = True
        self.check()
        return thread

    def find_process(self, pid: Pid) -> Process | None:
        """Return the living process of a pid, also the child of a real fork that has not attached yet."""
        if pid not in self.processes:
            self.admit_children()
        return self.processes.get(pid)

    def admit_children(self) -> None:
        """Make the processes of the native programs' children that live and have not attached yet.

        Whoever asks for a child right after the fork finds it, as in Linux. The parent does not wait for its attach.
        """
        if self.lines is None:
            return
        for token, thread in self.table.forking():
            pid = self.lines.find_child(thread, token)
            if pid and pid not in self.processes and find_ppid(pid) == thread.process.pid:
                self.lines.admit(pid, partial(self.table.admit, pid, token))

    def thread_exited(self, thread: Thread) -> None:
        """End a thread, because its connection is gone. The last thread ends the process."""
        do_exit(thread)
        self._reap_traces()
        self.check()

    def process_died(self, process: Process) -> None:
        """End a process, because the real process has ended."""
        kill_process(process)
        self.check()

    def begin_reaping(self) -> None:
        """Free some memory of processes that have just ended or changed their program, and have their answer."""
        self.dying.begin_fresh()
        self.check()

    def reap_memory(self) -> None:
        """Free some memory of ended processes, once in each turn of the loop."""
        self.dying.turn()
        self.check()

    def run_kswapd(self) -> None:
        """Continue the background pass of reclaim, once in each turn of the loop.

        A turn in which an allocation has reclaimed is long enough: then the pass waits for the next turn.
        """
        stalls, self._stalls = self._stalls, self.frames.vmstat["allocstall_movable"]
        self._has_waited = stalls != self._stalls and not self._has_waited
        if self._has_waited:
            return
        self.vmscan.kswapd()
        self.shadowpt.flush()
        self.check()

    def run_ksmd(self) -> None:
        """Continue the scan for equal pages, once in each turn of the loop."""
        if self.ksmd.is_due:
            # If memory is short, the OOM killer must not blame the task of the last request.
            run_task(self.rq, None)
            with self.frames.stalling():
                self.ksmd.run()
            self.shadowpt.flush()
            self.check()

    def files_changed(self) -> None:
        """Handle changes of mapped files by other programs: unmap truncated pages, and update the shadow table."""
        self.advances.recall()
        with self.frames.stalling():
            self.files.take_changes()
        self.shadowpt.flush()
        self.check()

    def take_ended(self) -> list[Process]:
        """Return the processes that have ended since the last call. The shadow table of an ended opener is closed."""
        ended = self.table.take_ended()
        for process in ended:
            self.shadowpt.opener_gone(process)
            _log.debug("process ended", pid=process.pid, signal=process.exit_signal)
        self._reap_traces()
        return ended

    def find_tracing(self) -> Generator[None, None, TraceCalls | None]:
        """Return the tracing of this machine, and load it in pieces at first; None if it cannot be traced."""
        if self.tracing is None and self.load_tracing is not None:
            yield from self.load_tracing(self)
        return self.tracing

    def reader_gone(self, pipe: int) -> None:
        """Note that a pipe which the machine writes to has no reader any more, given its writing end."""
        if self.userfaultfds.reader_gone(pipe):
            self.shadowpt.flush()
            self.check()
        elif self.tracing is not None:
            self.tracing.reader_gone(pipe)

    def release_userfaultfds(self) -> None:
        """Go on with userfaultfds whose last descriptor is closed, once in each turn of the loop."""
        self.userfaultfds.release_some()
        self.shadowpt.flush()
        self.check()

    def _reap_traces(self) -> None:
        if self.tracing is not None:
            self.tracing.reap()

    def take_killed(self) -> list[Process]:
        """Return the processes that the OOM killer has chosen since the last call. Their real processes get SIGKILL.

        They have ended here, except the process of the current request, which ends with its answer.
        """
        return self.oom_tasks.take_killed()

    def check(self) -> None:
        """Check every invariant of the machine, in tests. Raises KernelBug."""
        if self.config.check_invariants:
            mms = [*self.table.address_spaces(), *self.dying.mms]
            unmapped = [*self.dying.mappings, *self.files.kept.mappings, *self.files.held, *self.shm.mappings()]
            check_machine(self.frames, mms, unmapped)
            self.rq.check(mms)
            self.shadowpt.check()
            self.tlbs.check()

    def shutdown(self) -> None:
        """End every process and free the memory."""
        for process in list(self.processes.values()):
            kill_process(process)
        self.take_ended()
        until = time.monotonic() + _SHUTDOWN_SECONDS
        self.dying.finish(lambda: time.monotonic() >= until)
        self.ksmd.stop()
        for mm in self.dying.mms:
            sync_mm(mm)
        if self.tracing is not None:
            self.tracing.shutdown()
        self.userfaultfds.shutdown()
        self.table.close()
        self._inotify.close()
        self.files.close()
        self.frames.swap.close()
        self.ram.close()
