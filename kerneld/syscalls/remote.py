"""The calls that reach into another process's memory. Answers to Linux v6.8 mm/process_vm_access.c and mm/madvise.c."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from kerneld.errors import SysError
from kerneld.mm.access import read_remote_vm, write_remote_vm
from kerneld.mm.madvise import PROCESS_ADVICE, do_madvise
from kerneld.mm.mm import MmStruct
from kerneld.syscalls.answer import Call
from kerneld.task.task import Process
from shared.uapi.page import PAGE_SIZE, Pid, Vaddr

UIO_MAXIOV = 1024
_IOVEC = struct.Struct("<QQ")
_MAX_RW_COUNT = 0x7FFF_F000
Piece = tuple[Vaddr, int]


def sys_process_vm_readv(call: Call) -> int:
    """args: pid, local iovecs, count, remote iovecs, count, flags; inline: the local iovecs, then the remote ones.

    Both sides are simulated memory. Returns the bytes copied, fewer where a page on the way cannot be accessed.
    Raises SysError(EFAULT) where not even the first can, or iovecs are missing, EINVAL for flags or too many
    iovecs, ESRCH, and EPERM for another user's process.
    """
    remote, local, pieces = _prepare(call)
    return _copy(remote, local, pieces)


def sys_process_vm_writev(call: Call) -> int:
    """As process_vm_readv, from the local iovecs to the remote ones."""
    remote, local, pieces = _prepare(call)
    return _copy(local, remote, [(to, source, length) for source, to, length in pieces])


def _prepare(call: Call) -> tuple[MmStruct, MmStruct, list[tuple[Vaddr, Vaddr, int]]]:
    """Return the remote and the local address space, and what to copy as (remote address, local address, length)."""
    pid, _local, nr_local, _remote, nr_remote, flags = call.args
    if flags or nr_local > UIO_MAXIOV or nr_remote > UIO_MAXIOV:
        raise SysError(errno.EINVAL)
    pieces = _unpack_iovecs(call.data, nr_local + nr_remote)
    local, remote = pieces[:nr_local], pieces[nr_local:]
    if sum(length for _, length in local) > _MAX_RW_COUNT:
        raise SysError(errno.EINVAL)
    process = _get_accessible(call.process, pid, call.kernel.processes)
    return process.live_mm, call.mm, list(_pair(remote, local))


def _unpack_iovecs(data: bytes, count: int) -> list[Piece]:
    if len(data) != count * _IOVEC.size:
        raise SysError(errno.EFAULT)
    return list(_IOVEC.iter_unpack(data))


def _get_accessible(caller: Process, pid: Pid, processes: dict[Pid, Process]) -> Process:
    """Source: Linux v6.8 kernel/ptrace.c:__ptrace_may_access(), for PTRACE_MODE_ATTACH_REALCREDS."""
    process = processes.get(pid)
    if process is None:
        raise SysError(errno.ESRCH)
    same_user = process.cred.uid == caller.cred.uid and not process.cred.superuser
    if process is not caller and not caller.cred.superuser and not same_user:
        raise SysError(errno.EPERM)
    return process


def _pair(remote: list[Piece], local: list[Piece]) -> Iterator[tuple[Vaddr, Vaddr, int]]:
    """Yield what to copy, in order, each piece inside one page of either side: a page that fails stops it there."""
    sources = iter([piece for piece in remote if piece[1]])
    targets = iter([piece for piece in local if piece[1]])
    source, source_left = next(sources, (0, 0))
    target, target_left = next(targets, (0, 0))
    while source_left and target_left:
        length = min(source_left, target_left, PAGE_SIZE - source % PAGE_SIZE, PAGE_SIZE - target % PAGE_SIZE)
        yield source, target, length
        source, source_left = (source + length, source_left - length) if source_left > length else next(sources, (0, 0))
        target, target_left = (target + length, target_left - length) if target_left > length else next(targets, (0, 0))


def _copy(source: MmStruct, target: MmStruct, pieces: list[tuple[Vaddr, Vaddr, int]]) -> int:
    done = 0
    for source_addr, target_addr, length in pieces:
        try:
            write_remote_vm(target, target_addr, read_remote_vm(source, source_addr, length))
        except SysError:
            if not done:
                raise
            break
        done += length
    return done


def sys_process_madvise(call: Call) -> int:
    """args: pidfd, iovecs, count, advice, flags; inline: the iovecs; a pidfd as descriptor, or a pid in its place.

    Returns the bytes advised. Raises SysError(EINVAL) for flags or advice that cannot be given to others, EBADF for
    what is no pidfd, ESRCH, EPERM, and as `do_madvise` does for the first range. Source:
    mm/madvise.c:process_madvise().
    """
    pid, _pointer, count, advice, flags = call.args[:5]
    if call.fds:
        pid = _pid_of(call.take_fd())
    if flags or count > UIO_MAXIOV:
        raise SysError(errno.EINVAL)
    ranges = _unpack_iovecs(call.data, count)
    process = call.process if pid == call.process.pid else _get_accessible(call.process, pid, call.kernel.processes)
    if advice not in PROCESS_ADVICE:
        raise SysError(errno.EINVAL)
    if process is not call.process and not call.process.cred.superuser:
        raise SysError(errno.EPERM)
    done = 0
    for start, length in ranges:
        try:
            do_madvise(process.live_mm, start, length, advice)
        except SysError:
            if not done:
                raise
            break
        done += length
    return done


def _pid_of(pidfd: int) -> Pid:
    """Return the pid that a pidfd stands for, and close it. Raises SysError(EBADF) for any other descriptor."""
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    except OSError:
        raise SysError(errno.EBADF) from None
    finally:
        os.close(pidfd)
    for line in lines:
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise SysError(errno.EBADF)
