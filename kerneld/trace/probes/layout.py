"""What names the mappings of an address space: the files of its VMAs, and where its heap and its stack are."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from kerneld.mm.calls.brk import set_brk
from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from kerneld.task.exec import Binprm, exec_binprm
from kerneld.task.exec_stack import Arguments
from kerneld.task.table import ProcessTable
from kerneld.task.task import Process
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from shared.trace.state_events import MM_BRK, MM_LAYOUT, VMA_FILE
from shared.uapi.page import Vaddr

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing

_NAME_BYTES = 127


def file_name(tracing: Tracing, file: File) -> bytes:
    """Return the path of a file as /proc shows it; the end of a long one, which says more than its beginning."""
    return os.fsencode(tracing.kernel.files.find_path(file))[-_NAME_BYTES:]


@probe(MmStruct.insert_vma, VMA_FILE)
def _insert_vma(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(VMA_FILE).emit

    def insert_vma(self: MmStruct, vma: Vma) -> None:
        inner(self, vma)
        file = vma.file
        if file is not None:
            name = file_name(tracing, file)
            emit(tracing.owner(self.number), self.number, file.mapping.number, vma.start, file.dev, file.ino, name)

    return insert_vma


def tell_layout(tracing: Tracing, process: Process) -> None:
    """Record where the heap and the stack of a process begin."""
    mm = process.mm
    if mm is not None:
        point = tracing.point(MM_LAYOUT)
        point.emit(process.pid, mm.number, process.pid, mm.start_brk, mm.brk, mm.start_stack)


@probe(ProcessTable.add, MM_LAYOUT)
def _add(tracing: Tracing, inner: Function) -> Function:
    def add(self: ProcessTable, process: Process) -> None:
        inner(self, process)
        tell_layout(tracing, process)

    return add


@probe(exec_binprm, MM_LAYOUT)
def _exec_binprm(tracing: Tracing, inner: Function) -> Function:
    def exec_binprm(
        process: Process, bprm: Binprm, mm: MmStruct, arguments: Arguments, open_interpreter: Callable[[str], File]
    ) -> Vaddr:
        entry: Vaddr = inner(process, bprm, mm, arguments, open_interpreter)
        tell_layout(tracing, process)
        return entry

    return exec_binprm


@probe(set_brk, MM_BRK)
def _set_brk(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(MM_BRK).emit

    def set_brk(mm: MmStruct, brk: Vaddr) -> None:
        before = mm.brk
        inner(mm, brk)
        if mm.brk != before:
            emit(tracing.owner(mm.number), mm.number, mm.brk)

    return set_brk
