"""/proc/PID/mem: what a process's memory holds. Answers to Linux v6.8 fs/proc/base.c: mem_rw()."""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.calls.access import read_remote_vm
from kerneld.mm.space.mm import MmStruct
from shared.uapi.page import PAGE_SIZE, Vaddr


def read_mem(mm: MmStruct, vaddr: Vaddr, length: int) -> bytes:
    """Return up to `length` bytes from `vaddr` on, also where the process itself may not read.

    Fewer bytes before the first page that cannot be had. Raises SysError(EIO) if that is the first one.
    """
    parts = []
    end = vaddr + length
    while vaddr < end:
        count = min(end - vaddr, PAGE_SIZE - vaddr % PAGE_SIZE)
        try:
            parts.append(read_remote_vm(mm, vaddr, count, force=True))
        except SysError:
            if mm.frames.has_stalled:
                raise
            break
        vaddr += count
    if length and not parts:
        raise SysError(errno.EIO)
    return b"".join(parts)
