"""/proc/PID/mem of a native program: the stub has the file, kerneld copies. See Linux v6.8 fs/proc/base.c."""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.calls.access import read_remote_vm, write_remote_vm
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.userfaultfd import AwaitsPage
from kerneld.syscalls.answer import Answer, Call, Pieces, Work
from kerneld.syscalls.call_faults import counting_faults
from kerneld.syscalls.remote import held
from kerneld.task.ptrace import ptrace_may_access
from kerneld.task.uaccess import copy_from_user, copy_to_user
from shared.uapi.page import PAGE_SIZE, Vaddr

_WRITE_INLINE = 2
"""The data come with the request: a word that a tracer pokes is in none of its pages."""


def mem_rw(call: Call) -> int | Answer | Work:
    """args: pid, address in its memory, address in the caller's, length in bytes, whether to write (2: inline data).

    Copies to the caller, or from it, also where the process itself may not read or write: a write to private memory
    without that right goes to a copy. Returns the number of bytes copied before the first page that cannot be had.
    Raises SysError(EIO) if that is the first one, EFAULT for a bad address of the caller's, ESRCH, and EPERM for
    another user's process. Source: Linux v6.8 fs/proc/base.c:mem_rw().
    """
    process = call.get_process(call.int_arg(0))
    if not ptrace_may_access(call.process, process):
        raise SysError(errno.EPERM)
    pieces = _copy_in_pieces(call, process.live_mm)
    if process.live_mm is not call.mm:
        pieces = counting_faults(call.process, process.live_mm, pieces)
    return Work(counting_faults(call.process, call.mm, pieces)).go_on()


def _copy_in_pieces(call: Call, mm: MmStruct) -> Pieces:
    _pid, vaddr, own, length, is_write, _ = call.args
    end, done = vaddr + length, 0
    pace = Pace()
    with held(mm):
        while vaddr + done < end:
            yield from call.wait_for(mm)
            at = vaddr + done
            count = min(end - at, PAGE_SIZE - at % PAGE_SIZE)
            fault = None
            try:
                if is_write == _WRITE_INLINE:
                    is_copied = _write(mm, at, call.data[done : done + count])
                else:
                    is_copied = _copy(call, mm, at, own + done, count, write=bool(is_write))
            except AwaitsPage as awaits:
                fault, is_copied = awaits.fault, False
            except SysError:
                if not mm.frames.has_stalled:
                    raise
                is_copied = False
            if fault is not None:
                yield from fault.wait()
                continue
            if mm.frames.take_stall():
                yield None
                pace.begin()
                continue
            if not is_copied:
                if not done:
                    raise SysError(errno.EIO)
                break
            done += count
            if pace.is_over():
                yield None
                pace.begin()
    return done


def _write(mm: MmStruct, vaddr: Vaddr, data: bytes) -> bool:
    """Write a part of a page, and return whether the page could be had."""
    try:
        write_remote_vm(mm, vaddr, data, force=True)
    except SysError:
        return False
    return True


def _copy(call: Call, mm: MmStruct, vaddr: Vaddr, own: Vaddr, count: int, *, write: bool) -> bool:
    """Copy a part of a page, and return whether the page could be had. Raises SysError(EFAULT) for the caller's."""
    data = copy_from_user(call.mm, own, count) if write else b""
    if write and len(data) < count:
        raise SysError(errno.EFAULT)
    if write:
        return _write(mm, vaddr, data)
    try:
        data = read_remote_vm(mm, vaddr, count, force=True)
    except SysError:
        return False
    if copy_to_user(call.mm, own, data) < count:
        raise SysError(errno.EFAULT)
    return True
