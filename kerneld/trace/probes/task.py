"""Processes and signals: attach, fork, execve and exit of processes; raised and delivered signals."""

from __future__ import annotations

from collections.abc import Callable
from signal import SIGKILL
from typing import TYPE_CHECKING

from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct
from kerneld.task.exec import Binprm, bprm_mm_init, exec_binprm
from kerneld.task.exec_stack import Arguments
from kerneld.task.signal import get_signal, send_signal_locked
from kerneld.task.table import ProcessTable
from kerneld.task.task import Process, Thread
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from shared.trace.events import (
    PROCESS_EXEC,
    PROCESS_EXIT,
    PROCESS_FORK,
    SIGNAL_DELIVER,
    SIGNAL_GENERATE,
    TASK_NEWTASK,
)
from shared.uapi.page import Vaddr
from shared.uapi.signals import Disposition
from shared.wire import SigInfo

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing


def comm_bytes(comm: str) -> bytes:
    """Return a process's name in the format of a record."""
    return comm.encode("utf-8", "surrogateescape")[:15]


@probe(ProcessTable.add)
def _add(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(TASK_NEWTASK)

    def add(self: ProcessTable, process: Process) -> None:
        inner(self, process)
        tracing.note_process(process)
        point.emit(process.pid, comm_bytes(process.comm), process.pid, process.live_mm.number)

    return add


@probe(ProcessTable._take_token, PROCESS_FORK)
def _take_token(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(PROCESS_FORK).emit

    def _take_token(self: ProcessTable, pid: int, token: int) -> object:
        copy = inner(self, pid, token)
        comm = comm_bytes(copy.parent.comm)
        emit(copy.parent.pid, comm, copy.parent.pid, comm, pid, copy.mm.number)
        return copy

    return _take_token


@probe(ProcessTable.setuid)
def _setuid(tracing: Tracing, inner: Function) -> Function:
    """The credentials decide which traces may see a process. So a change of them is noted."""

    def setuid(self: ProcessTable, process: Process, uid: int) -> None:
        inner(self, process, uid)
        tracing.note_process(process)

    return setuid


@probe(Process.exec_mmap)
def _exec_mmap(tracing: Tracing, inner: Function) -> Function:
    def exec_mmap(self: Process, new_mm: MmStruct) -> None:
        old = self.mm
        tracing.note_mm(new_mm, self.pid)
        inner(self, new_mm)
        if old is not None:
            tracing.mm_left(old)

    return exec_mmap


@probe(bprm_mm_init)
def _bprm_mm_init(tracing: Tracing, inner: Function) -> Function:
    """Others may run before the execve has come to its end, and reclaim what it has written."""

    def bprm_mm_init(process: Process, bprm: Binprm) -> MmStruct:
        mm: MmStruct = inner(process, bprm)
        tracing.note_mm(mm, process.pid)
        return mm

    return bprm_mm_init


@probe(exec_binprm)
def _exec_binprm(tracing: Tracing, inner: Function) -> Function:
    point = tracing.point(PROCESS_EXEC)

    def exec_binprm(
        process: Process, bprm: Binprm, mm: MmStruct, arguments: Arguments, open_interpreter: Callable[[str], File]
    ) -> Vaddr:
        entry: Vaddr = inner(process, bprm, mm, arguments, open_interpreter)
        tracing.note_process(process)
        name = bprm.filename[:63]
        point.emit(process.pid, name, process.pid, process.pid, process.live_mm.number)
        return entry

    return exec_binprm


@probe(Process.exit_mm, PROCESS_EXIT)
def _exit(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(PROCESS_EXIT).emit

    def exit_mm(self: Process) -> None:
        emit(self.pid, comm_bytes(self.comm), self.pid, self.exit_signal)
        inner(self)

    return exit_mm


@probe(send_signal_locked, SIGNAL_GENERATE)
def _send_signal(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SIGNAL_GENERATE).emit

    def send_signal_locked(thread: Thread, signo: int, info: SigInfo) -> None:
        # A pending signal is not sent again: TRACE_SIGNAL_ALREADY_PENDING.
        result = 2 if thread.pending >> (signo - 1) & 1 else 0
        process = thread.process
        emit(process.pid, signo, 0, info.si_code, comm_bytes(process.comm), thread.tid, 0, result)
        inner(thread, signo, info)

    return send_signal_locked


@probe(get_signal, SIGNAL_DELIVER)
def _get_signal(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(SIGNAL_DELIVER).emit

    def get_signal(thread: Thread) -> object:
        signo = int(SIGKILL) if thread.is_killed else (thread.pending & -thread.pending).bit_length()
        is_caught = thread.process.dispositions.get(signo) is Disposition.CAUGHT and signo != SIGKILL
        info = thread.siginfo[signo]
        emit(thread.process.pid, signo, 0, info.si_code, not is_caught, info.si_pkey)
        return inner(thread)

    return get_signal
