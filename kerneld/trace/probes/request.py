"""The entries and exits of the kernel: they note the served process and the call, and write the records at the end.

The kernel is entered only by these functions. They may be nested; the outermost writes the records.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kerneld.errors import SysError
from kerneld.mm.space.dying import Pieces, run_piece
from kerneld.mm.space.mm import MmStruct
from kerneld.shadowpt.session import ShadowPt
from kerneld.syscalls.answer import Answer, Call, Work
from kerneld.syscalls.dispatch import run
from kerneld.syscalls.kernel import Kernel, Sender
from kerneld.syscalls.table import RESTART
from kerneld.task.cpu import fault_ahead
from kerneld.task.exit import do_exit
from kerneld.task.task import Inherited, Process, Thread
from kerneld.trace.current import NOBODY
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from kerneld.trace.probes.rss import tell_rss
from shared.trace.events import ACCESS_ENTER, ACCESS_EXIT, SYS_ENTER, SYS_EXIT, Cause
from shared.uapi.syscalls import Nr

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing

_ACCESSES = frozenset({int(Nr.LOAD), int(Nr.STORE), int(Nr.TOUCH)})
"""Accesses of the processor. Every other request is a call."""
_BELL = int(Nr.RING_BELL)
"""How a client waits for an answer: no call of its program, and nothing happens by it."""
_U32 = (1 << 32) - 1


@probe(run)
def _run(tracing: Tracing, inner: Function) -> Function:
    now = tracing.current
    enter, leave = tracing.point(SYS_ENTER), tracing.point(SYS_EXIT)
    begin, end = tracing.point(ACCESS_ENTER), tracing.point(ACCESS_EXIT)
    unfinished: dict[int, int] = {}
    """By thread, the number of its unfinished request."""

    def run(call: Call, number: int) -> int | Answer | Work:
        if number == _BELL:
            answer: int | Answer | Work = inner(call, number)
            return answer
        # An unfinished request from before the trace counts as a touch: a piece of procread records nothing.
        nr = unfinished.pop(call.thread.tid, int(Nr.TOUCH)) if number == RESTART else number
        is_call = nr not in _ACCESSES
        now.pid, now.tid, now.nr = call.process.pid, call.thread.tid, nr
        now.causes = Cause.SYSCALL if is_call else Cause.ACCESS
        now.depth += 1
        if number != RESTART:
            if is_call and enter.traces:
                enter.emit(0, nr, *call.args, len(call.data))
            elif not is_call and begin.traces:
                begin.emit(0, nr, *call.args[:3])
        try:
            result: int | Answer | Work = inner(call, number)
            point = leave if is_call else end
            if isinstance(result, Work):
                unfinished[call.thread.tid] = nr
            elif point.traces:
                ret, signo = (result, 0) if isinstance(result, int) else (result.ret, result.signo)
                point.emit(0, nr, ret, signo)
            return result
        finally:
            _leave(tracing)

    return run


def _leave(tracing: Tracing) -> None:
    now = tracing.current
    now.depth -= 1
    if not now.depth:
        if tracing.rss_changed:
            tell_rss(tracing)
        now.pid = now.tid = now.nr = now.causes = now.address = 0
        tracing.flush()


@contextmanager
def entered(tracing: Tracing, pid: int, tid: int, cause: Cause) -> Iterator[None]:
    """Note the served thread and the cause. At the end, the outermost call writes the records."""
    now = tracing.current
    before = now.pid, now.tid, now.nr, now.causes
    if not now.depth:
        now.pid, now.tid = pid, tid
    now.depth += 1
    try:
        with now.under(cause):
            yield
    finally:
        now.pid, now.tid, now.nr, now.causes = before
        _leave(tracing)


@probe(fault_ahead)
def _fault_ahead(tracing: Tracing, inner: Function) -> Function:
    def fault_ahead(thread: Thread, start: int, end: int) -> None:
        tracing.current.nr = int(Nr.STORE)
        with entered(tracing, thread.process.pid, thread.tid, Cause.AHEAD):
            inner(thread, start, end)

    return fault_ahead


@probe(Kernel.attach)
def _attach(tracing: Tracing, inner: Function) -> Function:
    """attach is no request of a thread: it makes the thread."""
    enter, leave = tracing.point(SYS_ENTER), tracing.point(SYS_EXIT)

    def attach(
        self: Kernel,
        sender: Sender,
        version: int,
        tid: int,
        token: int,
        flags: int = 0,
        inherited: Inherited | None = None,
    ) -> Thread:
        with entered(tracing, sender.pid, tid & _U32 or sender.pid, Cause.ATTACH):
            if enter.traces:
                enter.emit(0, Nr.ATTACH, version, tid, token, flags, 0, 0, 0)
            ret = -errno.EIO
            try:
                thread: Thread = inner(self, sender, version, tid, token, flags, inherited)
                ret = thread.process.pid
            except SysError as error:
                ret = -error.errno
                raise
            finally:
                if leave.traces:
                    leave.emit(0, Nr.ATTACH, ret, 0)
            return thread

    return attach


@probe(Kernel.thread_exited)
def _thread_exited(tracing: Tracing, inner: Function) -> Function:
    def thread_exited(self: Kernel, thread: Thread) -> None:
        with entered(tracing, thread.process.pid, thread.tid, Cause.EXIT):
            inner(self, thread)

    return thread_exited


@probe(Kernel.process_died)
def _process_died(tracing: Tracing, inner: Function) -> Function:
    def process_died(self: Kernel, process: Process) -> None:
        with entered(tracing, process.pid, process.pid, Cause.EXIT):
            inner(self, process)

    return process_died


@probe(Kernel.take_ended)
def _take_ended(tracing: Tracing, inner: Function) -> Function:
    def take_ended(self: Kernel) -> list[Process]:
        if not self.ended:
            return []
        with entered(tracing, self.ended[0].pid, self.ended[0].pid, Cause.EXIT):
            ended: list[Process] = inner(self)
        tracing.forget_pids(process.pid for process in ended if process.pid not in self.processes)
        return ended

    return take_ended


@probe(Kernel.files_changed)
def _files_changed(tracing: Tracing, inner: Function) -> Function:
    def files_changed(self: Kernel) -> None:
        with entered(tracing, 0, 0, Cause.TRUNCATE):
            inner(self)

    return files_changed


def _of_shadow(function: Function) -> None:
    """The loop reads real processes of the host between requests."""

    @probe(function)
    def _look(tracing: Tracing, inner: Function) -> Function:
        def look(self: ShadowPt, *args: Any) -> None:
            with entered(tracing, 0, 0, Cause.REFRESH):
                inner(self, *args)

        return look


_of_shadow(ShadowPt.refresh)
_of_shadow(ShadowPt.take_look)
_of_shadow(ShadowPt.host_exited)


@probe(do_exit)
def _do_exit(tracing: Tracing, inner: Function) -> Function:
    def do_exit(thread: Thread) -> None:
        with _exiting(tracing):
            inner(thread)

    return do_exit


@contextmanager
def _exiting(tracing: Tracing) -> Iterator[None]:
    """Note the end of a task as a cause, only once."""
    if tracing.current.causes & 0xF == Cause.EXIT:
        yield
        return
    with tracing.current.under(Cause.EXIT):
        yield


@probe(Process.exit_mm)
def _exit_mm(tracing: Tracing, inner: Function) -> Function:
    """The records of the end of an address space belong to its process. After it the address space has no process."""

    def exit_mm(self: Process) -> None:
        mm: MmStruct | None = self.mm
        with _exiting(tracing):
            inner(self)
        if mm is not None:
            tracing.mm_left(mm)

    return exit_mm


@probe(run_piece)
def _run_piece(tracing: Tracing, inner: Function) -> Function:
    """The memory of an ended process is freed between requests, or in the middle of a request that needs memory.

    Its records name the ended process, unless another process has its pid by now. If the memory is freed in the end of
    the process itself, its records have the causes of that end.
    """
    now = tracing.current

    def is_its_own_end(pid: int) -> bool:
        return now.depth > 0 and now.pid == pid and now.causes & 0xF == Cause.EXIT

    def run_piece(mm: MmStruct, pieces: Pieces) -> bool:
        pid = tracing.find_pid(mm.number)
        if is_its_own_end(pid):
            is_gone: bool = inner(mm, pieces)
            if is_gone:
                tracing.forget_mm(mm)
            return is_gone
        before = now.pid, now.tid, now.nr, now.causes, now.address
        now.pid, now.tid, now.nr, now.address = pid if pid != NOBODY else 0, 0, 0, 0
        now.causes = Cause.EXIT
        now.depth += 1
        try:
            is_last: bool = inner(mm, pieces)
        finally:
            now.depth -= 1
            if not now.depth:
                if tracing.rss_changed:
                    tell_rss(tracing)
                tracing.flush()
            now.pid, now.tid, now.nr, now.causes, now.address = before
        if is_last:
            tracing.forget_mm(mm)
        return is_last

    return run_piece
