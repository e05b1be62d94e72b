"""Requests of this machine that have no Linux number: the processor, /proc, and the RAM itself.

Translates arguments and does nothing else. Answers to ABI.md, "Requests of this machine".
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.hw.paging import PF_INSTR, PF_WRITE
from kerneld.syscalls.answer import Answer, Call
from kerneld.task import cpu
from shared.uapi.page import PAGE_SHIFT
from shared.wire import MAX_INLINE

_ACCESS = (0, PF_WRITE, PF_INSTR)
_END = 1 << 64


def load(call: Call) -> int | Answer:
    """args: vaddr, length. Raises SysError(EINVAL) over 65,536 bytes or where the range wraps."""
    vaddr, length = call.args[0], call.args[1]
    if length > MAX_INLINE or vaddr + length > _END:
        raise SysError(errno.EINVAL)
    data = cpu.load(call.thread, call.kernel.ram, vaddr, length)
    return Answer(len(data), data)


def store(call: Call) -> int:
    """args: vaddr, length; inline: the bytes.

    Raises SysError(EINVAL) as `load`, or where the inline data is not that long.
    """
    vaddr, length = call.args[0], call.args[1]
    if length > MAX_INLINE or vaddr + length > _END or length != len(call.data):
        raise SysError(errno.EINVAL)
    return cpu.store(call.thread, call.kernel.ram, vaddr, call.data)


def touch(call: Call) -> int:
    """args: vaddr, length, access. Raises SysError(EINVAL) for an unknown access or where the range wraps."""
    vaddr, length, access = call.args[:3]
    if access >= len(_ACCESS) or vaddr + length > _END:
        raise SysError(errno.EINVAL)
    return cpu.touch(call.thread, call.kernel.ram, vaddr, length, _ACCESS[access])


def procread(call: Call) -> Answer:
    """args: offset, length; inline: a path under /proc. Raises SysError(EINVAL) over 65,536 bytes, ENOENT, EACCES."""
    offset, length = call.args[0], call.args[1]
    if length > MAX_INLINE:
        raise SysError(errno.EINVAL)
    try:
        path = call.data.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise SysError(errno.ENOENT) from None
    data = call.kernel.procfs.read(call.process, path, offset, length)
    return Answer(len(data), data)


def ram(call: Call) -> Answer:
    """args: pid. Returns its CR3 and a read-only descriptor of the RAM. Raises SysError(EPERM), SysError(ESRCH)."""
    if not call.process.cred.superuser:
        raise SysError(errno.EPERM)
    process = call.kernel.processes.get(call.args[0])
    if process is None:
        raise SysError(errno.ESRCH)
    root = process.live_mm.page_table.root
    return Answer(root << PAGE_SHIFT, fds=(call.kernel.ram.open_readonly(),))
