"""The kernel: one of each part, put together.

Owns the machine, its processes, files, views and the shadow table, from start to shutdown. The server talks to this
class and to `kerneld.syscalls.dispatch`, to nothing below. Knows no socket.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple, Protocol

import structlog

from kerneld.errors import SysError
from kerneld.fs.file_limits import FileRules
from kerneld.fs.file_table import FileTable
from kerneld.fs.inotify import Inotify
from kerneld.fs.procfs import ProcFs
from kerneld.hw.processor import Processor
from kerneld.hw.ram import Ram
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.frames.frames import Frames
from kerneld.mm.frames.swap import SwapFile
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
from kerneld.task.real_process import find_effective_ids
from kerneld.task.sched import RunQueue, run_task
from kerneld.task.table import ProcessTable
from kerneld.task.task import Process, Thread
from kerneld.tlb.tlbs import Tlbs
from shared.uapi.page import PAGE_MASK, PAGE_SIZE, Pid
from shared.uapi.shadowpt import ATTACH_HOST
from shared.uapi.syscalls import ABI_VERSION

MIN_RAM_BYTES = 4 << 20
_SHUTDOWN_SECONDS = 1.0
"""How long a machine that ends takes its memory down in order. What is left then goes with the daemon."""
_log = structlog.get_logger("kerneld.task")


class HostTargets(Enum):
    """Whether a table may be of a real process that is none of this kernel's, for a caller that may look at it."""

    NEVER = "never"
    ASKED = "asked"
    """When the caller asks for it: a program of `kerneld run`, or inspector."""
    ALWAYS = "always"

    def allows(self, asked: bool) -> bool:
        """Tell whether an open may be of such a process."""
        return self is HostTargets.ALWAYS or (asked and self is HostTargets.ASKED)


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What the machine is to be."""

    ram_bytes: int = 1 << 30
    superuser_uid: int = 0
    host_targets: HostTargets = HostTargets.ASKED
    swap_bytes: int = 0
    """The size of the swap file; 0 for none. Its first page is not used."""
    sysctl: Sysctl = field(default_factory=Sysctl)
    """vm.* and who gets huge pages, as the machine starts."""
    files: FileRules = field(default_factory=FileRules)
    """How many files of whom are used, and which are."""
    pku: bool = True
    """Whether the processor has memory protection keys."""
    native: bool = False
    """Whether native programs may come (`kerneld exec`): the RAM can be mapped to write by the superuser then."""
    check_invariants: bool = False
    """Check everything after every request: for tests."""


class Sender(NamedTuple):
    """Who sent a datagram, as the host's kernel says (SCM_CREDENTIALS)."""

    pid: Pid
    uid: int
    gid: int


class TraceCalls(Protocol):
    """What the kernel knows of tracing: `kerneld.trace` stands above it."""

    def open(self, thread: Thread, data: bytes) -> Generator[None, None, tuple[int, tuple[int, int]]]:
        """Open a trace for a thread, as a packed request says; return its handle and the reader's descriptors."""

    def close(self, thread: Thread, handle: int) -> None:
        """Close one of the thread's process. Raises SysError(EBADF)."""

    def reap(self) -> None:
        """Close the traces whose thread has ended."""

    def reader_gone(self, pipe: int) -> None:
        """Nobody holds the other end of the pipe any more that wakes a trace's reader."""

    def shutdown(self) -> None:
        """Close every trace."""


class PipeWatch(Protocol):
    """What the kernel knows of the server: it tells when the readers of pipes are gone (`TraceCalls.reader_gone`)."""

    def add(self, pipe: int) -> None:
        """Watch the writing end of a pipe. Raises OSError."""

    def remove(self, pipe: int) -> None:
        """Watch it no longer."""


class Kernel:
    """A running machine."""

    def __init__(self, config: KernelConfig) -> None:
        """Build the machine.

        Raises ValueError for a size of RAM or swap that will not do, OSError where the host refuses it.
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
        """Readable while files_changed() has something to do; -1 where the host cannot tell."""
        self.files = FileTable(self.frames, self._inotify, config.files)
        self.shadowpt = ShadowPt(self.ram)
        self.tlbs = Tlbs()
        """Of the native programs."""
        self.table = ProcessTable(config.superuser_uid, self._new_mm)
        self.processes = self.table.processes
        self.ended = self.table.ended
        """Not empty exactly while take_ended() has something to say: looked at after each request."""
        self.procfs = ProcFs(self)
        self.rq = RunQueue(self.frames.processor)
        """The processor: who runs, who waits for it."""
        self.oom_tasks = OomTasks(self.processes, self.rq, self.table.copies_of)
        self._oom_killer = OomKiller(
            self.frames, self.oom_tasks.tasks, self.oom_tasks.current_comm, self.oom_tasks.kill
        )
        self.vmscan = Vmscan(self.frames)
        self.dying = self.frames.dying = Dying()
        """Who has ended, and whose memory has not gone yet."""
        PageAlloc(self.frames, self.vmscan, self._out_of_memory)
        self.load_tracing: Callable[[Kernel], Iterator[None]] | None = None
        """Puts `tracing` in when it is first needed, in pieces; None where it never is."""
        self.tracing: TraceCalls | None = None
        """Put in by whoever builds a machine that can be traced: `kerneld.trace`."""
        self.pipe_watch: PipeWatch | None = None
        """Put in by the server, while there is one."""

    def _out_of_memory(self) -> bool:
        """Source: Linux v6.8 mm/page_alloc.c:__alloc_pages_may_oom(): who is dying fails at once."""
        return not self.oom_tasks.current_is_dying() and self._oom_killer.out_of_memory()

    def _new_mm(self) -> MmStruct:
        return fresh_mm(self.frames, Rlimits(), self.sysctl)

    def attach(self, sender: Sender, version: int, tid: Pid, token: int, flags: int = 0) -> Thread:
        """Make a thread of the sender's process for a new connection; `flags` are ATTACH_ ones.

        Raises SysError(EPROTO) for another ABI version, and as `ProcessTable.attach` does.
        """
        if version != ABI_VERSION:
            raise SysError(errno.EPROTO)
        # Nobody's request: should memory be short now, the OOM killer must not take the last one's maker for the asker.
        run_task(self.rq, None)
        uid, gid = sender.uid, sender.gid
        if flags & ATTACH_HOST:
            # A program of the host's acts as its effective user; what came with the datagram is the real one.
            uid, gid = find_effective_ids(sender.pid) or (uid, gid)
        thread = self.table.attach(sender.pid, uid, gid, tid, token)
        run_task(self.rq, thread)
        if flags & ATTACH_HOST:
            thread.process.memory_is_host = True
        self.check()
        return thread

    def thread_exited(self, thread: Thread) -> None:
        """A thread's connection is gone; the last one ends the process."""
        do_exit(thread)
        self._reap_traces()
        self.check()

    def process_died(self, process: Process) -> None:
        """The real process has ended."""
        kill_process(process)
        self.check()

    def reap_memory(self) -> None:
        """A turn of the loop: take down some of what processes have left behind."""
        self.dying.turn()
        self.check()

    def run_kswapd(self) -> None:
        """A turn of the loop: go on with the background pass of reclaim."""
        self.vmscan.kswapd()
        self.shadowpt.flush()
        self.check()

    def files_changed(self) -> None:
        """Files that are mapped have been modified behind our back: a truncation is acted upon, and shown."""
        self.files.take_changes()
        self.shadowpt.flush()
        self.check()

    def take_ended(self) -> list[Process]:
        """Return the processes that have ended since last asked; a shadow table that one had opened is closed."""
        ended = self.table.take_ended()
        for process in ended:
            self.shadowpt.opener_gone(process)
            _log.debug("process ended", pid=process.pid, signal=process.exit_signal)
        self._reap_traces()
        return ended

    def find_tracing(self) -> Generator[None, None, TraceCalls | None]:
        """Return what traces this machine, made in pieces where it is not there yet; None where it cannot be traced."""
        if self.tracing is None and self.load_tracing is not None:
            yield from self.load_tracing(self)
        return self.tracing

    def _reap_traces(self) -> None:
        if self.tracing is not None:
            self.tracing.reap()

    def take_killed(self) -> list[Process]:
        """Return the processes that the OOM killer has chosen since last asked: their real ones are to die by SIGKILL.

        They have ended, but for the one whose request is being answered, which ends with the answer.
        """
        return self.oom_tasks.take_killed()

    def check(self) -> None:
        """In tests: check every invariant of the machine. Raises KernelBug."""
        if self.config.check_invariants:
            mms = [*self.table.address_spaces(), *self.dying.mms]
            check_machine(self.frames, mms, self.dying.mappings)
            self.rq.check(mms)
            self.shadowpt.check()
            self.tlbs.check()

    def shutdown(self) -> None:
        """End every process and give the memory back."""
        for process in list(self.processes.values()):
            kill_process(process)
        self.take_ended()
        until = time.monotonic() + _SHUTDOWN_SECONDS
        self.dying.finish(lambda: time.monotonic() >= until)
        for mm in self.dying.mms:
            sync_mm(mm)
        if self.tracing is not None:
            self.tracing.shutdown()
        self.table.close()
        self._inotify.close()
        self.files.close()
        self.frames.swap.close()
        self.ram.close()
