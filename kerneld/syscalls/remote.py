"""The calls that reach into another process's memory. Answers to Linux v6.8 mm/process_vm_access.c and mm/madvise.c."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from kerneld.errors import SysError
from kerneld.mm.calls.access import pin_user_pages, unpin_user_pages
from kerneld.mm.calls.madvise import PROCESS_ADVICE, madvise_in_pieces
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import mmput
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.userfaultfd import AwaitsPage
from kerneld.mm.space.wait import Wait
from kerneld.syscalls.answer import Answer, Call, Pieces, Work
from kerneld.syscalls.call_faults import counting_faults
from kerneld.task.capability import CAP_SYS_NICE
from kerneld.task.ptrace import ptrace_may_access
from kerneld.task.task import Process
from kerneld.task.uaccess import access_ok, copy_from_user, copy_to_user
from shared.uapi.page import PAGE_SIZE, Pid, Vaddr

UIO_MAXIOV = 1024
_IOVEC = struct.Struct("<QQ")
_MAX_RW_COUNT = 0x7FFF_F000
_PINNED_PAGES = 1024
"""The most remote pages that are pinned at once (Linux: PVM_MAX_KMALLOC_PAGES, as pointers)."""
_FEWEST_PINNED_PAGES = 64
"""The least number of pages in a batch. A batch becomes smaller when its pages come from swap."""
Piece = tuple[Vaddr, int]
Lock = Callable[[MmStruct], Iterator[Wait | None]]
"""Yields as long as an address space may not be used: `Call.wait_for`."""


def sys_process_vm_readv(call: Call) -> int | Answer | Work:
    """args: pid, local iovecs, count, remote iovecs, count, flags; inline: the local iovecs, then the remote ones.

    Both sides are simulated memory. Returns the number of bytes copied. It is smaller if a page cannot be accessed.
    Raises SysError(EFAULT) if the first page cannot be accessed, or iovecs are missing or not in user space; EINVAL for
    flags, too many iovecs or a length that is negative as a signed number; ESRCH; EPERM for another user's process.
    """
    return Work(_process_vm_rw(call, write=False)).go_on()


def sys_process_vm_writev(call: Call) -> int | Answer | Work:
    """The same as process_vm_readv, but from the local iovecs to the remote ones."""
    return Work(_process_vm_rw(call, write=True)).go_on()


def _process_vm_rw(call: Call, *, write: bool) -> Pieces:
    """Source: Linux v6.8 mm/process_vm_access.c:process_vm_rw(), process_vm_rw_core()."""
    pid = call.int_arg(0)
    _local, nr_local, _remote, nr_remote, flags = call.args[1:]
    if flags or nr_local > UIO_MAXIOV:
        raise SysError(errno.EINVAL)
    split = nr_local * _IOVEC.size
    local = _LocalIter(call.mm, _unpack_iovecs(call.data[:split], nr_local))
    if not local.left:
        return 0
    if nr_remote > UIO_MAXIOV:
        raise SysError(errno.EINVAL)
    remote = _unpack_iovecs(call.data[split:], nr_remote)
    if any(length >> 63 for _, length in remote):
        raise SysError(errno.EINVAL)
    if not any(length for _, length in remote):
        return 0
    process = call.get_process(pid)
    if not ptrace_may_access(call.process, process):
        raise SysError(errno.EPERM)
    wanted = local.left
    try:
        pieces = _rw_in_pieces(process, remote, local, call.wait_for, write=write)
        if process.live_mm is not call.mm:
            pieces = counting_faults(call.process, process.live_mm, pieces)
        yield from counting_faults(call.process, call.mm, pieces)
    except SysError:
        if local.left == wanted:
            raise
    return wanted - local.left


def _rw_in_pieces(process: Process, remote: list[Piece], local: _LocalIter, lock: Lock, *, write: bool) -> Pieces:
    """Copy, and yield between two batches of pages. Linux takes mmap_lock for each batch.

    Raises SysError(EFAULT). Differs from Linux: if the other process ends or execs during the call, its memory is
    freed, and the call returns the number of bytes copied until then. In Linux the call holds the memory
    (mm_access()), unless the OOM reaper comes.
    """
    mm = process.live_mm
    pace = Pace()
    most_pages = _PINNED_PAGES
    for start, length in remote:
        vaddr, end = start, start + length
        while vaddr < end and local.left:
            if pace.is_over():
                if pace.is_late():
                    # The pages of this batch come from swap, one by one.
                    most_pages = max(most_pages // 2, _FEWEST_PINNED_PAGES)
                yield None
                pace.begin()
            yield from lock(mm)
            if process.mm is not mm:
                raise SysError(errno.EFAULT)
            count = min(end - vaddr, most_pages * PAGE_SIZE - vaddr % PAGE_SIZE)
            left, fault = local.save(), None
            try:
                with held(mm):
                    vaddr += _rw_batch(mm, vaddr, count, local, write)
            except AwaitsPage as awaits:
                fault = awaits.fault
            except SysError:
                if not mm.frames.take_stall():
                    raise
                # Pinned pages and the caller's own have to fit into memory together.
                most_pages = max(most_pages // 2, _FEWEST_PINNED_PAGES)
                local.restore(left)
                yield None
                pace.begin()
            if fault is not None:
                # The batch is copied once more, from its start.
                local.restore(left)
                with held(mm):
                    yield from fault.wait()
    return 0


def _rw_batch(mm: MmStruct, vaddr: Vaddr, length: int, local: _LocalIter, write: bool) -> int:
    """Copy a part of a remote piece. All pages that can be pinned are pinned before the first is copied.

    Returns the number of bytes copied. Raises SysError(EFAULT).
    Source: Linux v6.8 mm/process_vm_access.c:process_vm_rw_single_vec().
    """
    pages = pin_user_pages(mm, vaddr, length, write=write)
    try:
        return _rw_pages(mm, pages, vaddr % PAGE_SIZE, length, local, write=write)
    finally:
        unpin_user_pages(mm, pages, dirty=write)


def _rw_pages(mm: MmStruct, pages: list[int], offset: int, length: int, local: _LocalIter, *, write: bool) -> int:
    """Copy up to `length` bytes from or to pinned pages, from `offset` in the first page. Return the number of bytes.

    Raises SysError(EFAULT) if the caller's own memory cannot be accessed.
    Source: Linux v6.8 mm/process_vm_access.c:process_vm_rw_pages().
    """
    ram = mm.frames.ram
    done = 0
    for paddr in pages:
        wanted = min(length - done, PAGE_SIZE - offset, local.left)
        if not wanted:
            break
        if write:
            data = local.take(wanted)
            ram.write(paddr + offset, data)
            copied = len(data)
        else:
            copied = local.put(bytes(ram.read(paddr + offset, wanted)))
        if copied < wanted:
            raise SysError(errno.EFAULT)
        done += copied
        offset = 0
    return done


class _LocalIter:
    """The caller's own pieces, used up one after another (Linux: struct iov_iter)."""

    def __init__(self, mm: MmStruct, pieces: list[Piece]) -> None:
        """Raises the exceptions of `import_iovec`."""
        self._mm = mm
        self._pieces = import_iovec(pieces)
        self.left = sum(length for _, length in self._pieces)
        """The number of bytes that are not copied yet."""

    def _next(self, most: int) -> Piece:
        """Return the address of the next bytes, and the number of consecutive bytes there."""
        while not self._pieces[0][1]:
            del self._pieces[0]
        vaddr, length = self._pieces[0]
        return vaddr, min(length, most)

    def _use_up(self, count: int) -> None:
        vaddr, length = self._pieces[0]
        self._pieces[0] = (vaddr + count, length - count)
        self.left -= count

    def save(self) -> tuple[int, list[Piece]]:
        """Return the present position."""
        return self.left, self._pieces.copy()

    def restore(self, position: tuple[int, list[Piece]]) -> None:
        """Go back to a saved position."""
        self.left, self._pieces = position

    def put(self, data: bytes) -> int:
        """Write to the caller's memory. Return the number of bytes written."""
        done = 0
        while done < len(data) and self.left:
            vaddr, count = self._next(len(data) - done)
            copied = copy_to_user(self._mm, vaddr, data[done : done + count])
            self._use_up(copied)
            done += copied
            if copied < count:
                break
        return done

    def take(self, length: int) -> bytes:
        """Read from the caller's memory. The result is shorter if a part cannot be read."""
        data = b""
        while len(data) < length and self.left:
            vaddr, count = self._next(length - len(data))
            chunk = copy_from_user(self._mm, vaddr, count)
            self._use_up(len(chunk))
            data += chunk
            if len(chunk) < count:
                break
        return data


def import_iovec(pieces: list[Piece]) -> list[Piece]:
    """Return the caller's pieces, cut to the most bytes of one call.

    Raises SysError(EINVAL) for a negative length, and SysError(EFAULT) for an address outside user space.
    Source: Linux v6.8 lib/iov_iter.c:__import_iovec().
    """
    if any(length >> 63 for _, length in pieces):
        raise SysError(errno.EINVAL)
    taken: list[Piece] = []
    left = _MAX_RW_COUNT
    for vaddr, length in pieces:
        capped = min(length, left)
        if not access_ok(vaddr, capped if len(pieces) == 1 else length):
            raise SysError(errno.EFAULT)
        taken.append((vaddr, capped))
        left -= capped
    return taken


def _unpack_iovecs(data: bytes, count: int) -> list[Piece]:
    if len(data) != count * _IOVEC.size:
        raise SysError(errno.EFAULT)
    return list(_IOVEC.iter_unpack(data))


def sys_process_madvise(call: Call) -> int | Answer | Work:
    """args: pidfd, iovecs, count, advice, flags; inline: the iovecs. Consumes a pidfd; without one args[0] is a pid.

    A native program must have a pidfd.

    Returns the number of bytes advised. Raises SysError(EINVAL) for flags, and for advice that is not allowed for other
    processes; EFAULT as process_vm_readv; EBADF for a descriptor that is no pidfd; ESRCH; EACCES for a process that the
    caller may not access; EPERM for a caller without CAP_SYS_NICE; and as `do_madvise` does for the first range.
    Source: Linux v6.8 mm/madvise.c:SYSCALL_DEFINE5(process_madvise).
    """
    pid, advice, flags = call.int_arg(0), call.int_arg(3), call.int_arg(4)
    count = call.args[2]
    pidfd = call.take_fd() if call.has_fd else None
    if flags or count > UIO_MAXIOV:
        raise SysError(errno.EINVAL)
    ranges = import_iovec(_unpack_iovecs(call.data, count))
    if pidfd is None and call.thread.tlb is not None:
        # A native program names a pidfd: it has no such descriptor.
        raise SysError(errno.EBADF)
    process = call.get_process(pid if pidfd is None else _pid_of(pidfd))
    check_process_madvise(call.process, process, advice)
    pieces = _vector_madvise(call, process, ranges, advice)
    return Work(counting_faults(call.process, process.live_mm, pieces)).go_on()


def check_process_madvise(caller: Process, process: Process, advice: int) -> None:
    """Check whether `caller` may give this advice to `process`. Raises SysError as `sys_process_madvise` says."""
    if advice not in PROCESS_ADVICE:
        raise SysError(errno.EINVAL)
    if not ptrace_may_access(caller, process):
        raise SysError(errno.EACCES)
    if not caller.cred.capable(CAP_SYS_NICE):
        raise SysError(errno.EPERM)


def _vector_madvise(call: Call, process: Process, ranges: list[Piece], advice: int) -> Pieces:
    """Advise one range after the other, until one is refused. Yield between pieces.

    If the process ends or execs during the call, its memory is freed, and the call ends there, as in `_rw_in_pieces`.
    """
    mm = process.live_mm
    total = left = sum(length for _, length in ranges)
    pace = Pace()
    for start, length in ranges:
        if not left:
            break
        steps = madvise_in_pieces(mm, start, length, advice, call.may_write)
        is_over = False
        while not is_over:
            yield from call.wait_for(mm)
            if process.mm is not mm:
                return total - left
            try:
                with held(mm):
                    is_over = next(steps, steps) is steps
            except SysError:
                if mm.frames.take_stall():
                    steps = madvise_in_pieces(mm, start, length, advice, call.may_write)
                elif left == total:
                    raise
                else:
                    return total - left
            if not is_over or pace.is_over():
                yield None
                pace.begin()
        left -= length
    return total - left


@contextlib.contextmanager
def held(mm: MmStruct) -> Iterator[MmStruct]:
    """Keep an address space during a call: the OOM killer may end its process meanwhile.

    Source: Linux v6.8 kernel/fork.c:mm_access(), mmput().
    """
    mm.users += 1
    try:
        yield mm
    finally:
        mmput(mm)


def _pid_of(pidfd: int) -> Pid:
    """Return the pid of a pidfd. Raises SysError(EBADF) for any other descriptor."""
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    except OSError:
        raise SysError(errno.EBADF) from None
    for line in lines:
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise SysError(errno.EBADF)
