"""Requests of this machine that have no Linux number: the processor, /proc, and the RAM itself.

Translates arguments and does nothing else. Answers to docs/abi.md, "Requests of this machine".
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.hw.paging import PF_INSTR, PF_WRITE
from kerneld.syscalls.answer import Answer, Call, Pieces, Work
from kerneld.task import cpu
from kerneld.task.trap import exc_invalid_op
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE
from shared.wire import MAX_INLINE

_ACCESS = (0, PF_WRITE, PF_INSTR)


def load(call: Call) -> int | Answer:
    """args: vaddr, length. Raises SysError(EINVAL) over 65,536 bytes."""
    vaddr, length = call.args[0], call.args[1]
    if length > MAX_INLINE:
        raise SysError(errno.EINVAL)
    data = cpu.load(call.thread, call.kernel.ram, vaddr, length)
    return Answer(len(data), data)


def store(call: Call) -> int:
    """args: vaddr, length; inline: the bytes.

    Raises SysError(EINVAL) as `load`, or if the inline data has another length.
    """
    vaddr, length = call.args[0], call.args[1]
    if length > MAX_INLINE or length != len(call.data):
        raise SysError(errno.EINVAL)
    return cpu.store(call.thread, call.kernel.ram, vaddr, call.data)


def touch(call: Call) -> int | Answer | Work:
    """args: vaddr, length, access. Raises SysError(EINVAL) for an unknown access.

    The processor touches page after page; this is no system call. A long touch runs in pieces. It ends at a signal: at
    the end of user space at the latest.
    """
    vaddr, length, access = call.args[:3]
    if access >= len(_ACCESS):
        raise SysError(errno.EINVAL)
    if length <= PMD_SIZE:
        return cpu.touch(call.thread, call.kernel.ram, vaddr, length, _ACCESS[access])
    return Work(cpu.touch_in_pieces(call.thread, call.kernel.ram, vaddr, length, _ACCESS[access])).go_on()


def rdpkru(call: Call) -> int:
    """No arguments. Returns PKRU. On a processor without protection keys the instruction does not exist: SIGILL.

    Source: Intel SDM, volume 2, RDPKRU.
    """
    processor = call.kernel.rq.processor
    if not processor.ospke:
        exc_invalid_op(call.thread)
    return processor.pkru


def wrpkru(call: Call) -> int:
    """args: the new PKRU in the lower 32 bits. SIGILL as for `rdpkru`. Source: Intel SDM, volume 2, WRPKRU."""
    processor = call.kernel.rq.processor
    if processor.ospke:
        processor.wrpkru(call.args[0])
    else:
        exc_invalid_op(call.thread)
    return 0


def ring_bell(call: Call) -> int:
    """Return 0. Its reply comes after the answer to what the client has in its ring: docs/abi.md, "Ring"."""
    return 0


def restart_syscall(call: Call) -> int | Answer | Work:
    """Run the next piece of a request that has begun. No client can make this call: see `table.RESTART`."""
    work, call.work = call.work, None
    assert work is not None
    return work.go_on()


def procread(call: Call) -> int | Answer | Work:
    """args: offset, length; inline: a path under /proc. Raises SysError(EINVAL) over 65,536 bytes, ENOENT, EACCES.

    The view of a large address space is made in pieces. Linux's readers release mmap_lock between two page tables.
    """
    offset, length = call.args[0], call.args[1]
    if length > MAX_INLINE:
        raise SysError(errno.EINVAL)
    return Work(_procread(call, _path(call.data), offset, length)).go_on()


def _procread(call: Call, path: str, offset: int, length: int) -> Pieces:
    data = yield from call.kernel.procfs.read_in_pieces(call.thread, path, offset, length)
    return Answer(len(data), data)


def _path(name: bytes) -> str:
    try:
        return name.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise SysError(errno.ENOENT) from None


def procwrite(call: Call) -> int | Answer | Work:
    """args: offset, length of the path; inline: a path under /proc, and what is written there.

    Returns how many bytes the setting has taken. Raises SysError(EINVAL) over 65,536 bytes of data, and as
    `ProcFs.write_in_pieces` does.
    """
    offset, length = call.args[0], call.args[1]
    data = call.data[length:]
    if len(data) > MAX_INLINE:
        raise SysError(errno.EINVAL)
    return Work(call.kernel.procfs.write_in_pieces(call.thread, _path(call.data[:length]), offset, data)).go_on()


def ram(call: Call) -> Answer:
    """args: pid.

    Returns the CR3 of the process and a read-only descriptor of the RAM. Raises SysError(EPERM, ESRCH).
    """
    if not call.process.cred.superuser:
        raise SysError(errno.EPERM)
    process = call.get_process(call.args[0])
    root = process.live_mm.page_table.root
    return Answer(root << PAGE_SHIFT, fds=(call.kernel.ram.open_readonly(),))
