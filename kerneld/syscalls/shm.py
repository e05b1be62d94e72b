"""The calls of System V shared memory: only translates arguments. Linux v6.8 ipc/shm.c."""

from __future__ import annotations

import contextlib
import errno
import time

from kerneld.errors import SysError
from kerneld.mm.calls.mmap import mmap_steps, wants_populate
from kerneld.mm.calls.remap_file_pages import held
from kerneld.mm.fault.populate import populate_in_pieces
from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import munmap_steps
from kerneld.mm.space.vma import Vma
from kerneld.syscalls.answer import Answer, Call, Pieces, Work
from kerneld.syscalls.call_faults import counted_work
from kerneld.syscalls.memory import implied_prot
from kerneld.task.capability import CAP_IPC_LOCK
from kerneld.task.shm import Caller, Segment, ShmSegments, check_owner, check_rights, set_locked
from shared.uapi import shm
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, Vaddr, page_align
from shared.uapi.resource import Rlimit

_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_READ, _WRITE, _EXEC = 0o444, 0o222, 0o111


def _caller(call: Call) -> Caller:
    cred = call.process.cred
    return Caller(cred.uid, cred.gid, call.process.pid, cred.caps)


def sys_shmget(call: Call) -> int:
    """args: key, size, flags. Returns the id of a segment. Raises as `ShmSegments.shmget` does."""
    key, size, flags = call.signed_int_arg(0), call.args[1], call.args[2] & _U32
    return call.kernel.shm.shmget(_caller(call), call.mm, key, size, flags)


def sys_shmat(call: Call) -> int | Answer | Work:
    """args: id, address or 0, flags. Maps a segment and returns the address.

    Raises SysError(EINVAL) for an unaligned address without SHM_RND, an occupied one without SHM_REMAP, or no segment;
    SysError(EACCES), and as `do_mmap` does. Source: Linux v6.8 ipc/shm.c:do_shmat().
    """
    number, addr, flags = call.signed_int_arg(0), call.args[1], call.args[2] & _U32
    if number < 0:
        raise SysError(errno.EINVAL)
    addr, map_flags = _place(addr, flags)
    writable = not flags & shm.SHM_RDONLY
    prot = Prot.READ.value | (Prot.WRITE.value if writable else 0) | (Prot.EXEC.value if flags & shm.SHM_EXEC else 0)
    wanted = _READ | (_WRITE if writable else 0) | (_EXEC if flags & shm.SHM_EXEC else 0)
    segment = call.kernel.shm.get(number)
    check_rights(segment, _caller(call), wanted)
    if addr and not flags & shm.SHM_REMAP and not _is_free(call.mm, addr, segment.size_bytes):
        raise SysError(errno.EINVAL)
    return counted_work(call, _attach(call, segment, addr, prot, map_flags, segment.open(writable=writable)))


def _attach(call: Call, segment: Segment, addr: Vaddr, prot: int, flags: int, file: File) -> Pieces:
    """Map a segment, which stays while what it replaces goes: that may be the last attach of a removed one."""
    mm, size = call.mm, segment.size_bytes
    prot = implied_prot(call, prot, file)
    privileged = call.process.cred.capable(CAP_IPC_LOCK)
    with held(file.mapping), call.kernel.table.mmap_locks.write(call.thread):
        addr = yield from mmap_steps(mm, addr, size, prot, flags, file, 0, privileged=privileged)
    segment.atime, segment.lpid = int(time.time()), call.process.pid
    if wants_populate(mm, flags):
        yield from populate_in_pieces(mm, addr, addr + page_align(size), ignore_errors=True)
    return addr


def _is_free(mm: MmStruct, addr: Vaddr, size: int) -> bool:
    return addr + size <= _U64 and next(mm.vmas.overlapping(addr, addr + size), None) is None


def _place(addr: Vaddr, flags: int) -> tuple[Vaddr, int]:
    """Return the address of an attach, 0 for any, and the flags of its mmap."""
    if not addr:
        if flags & shm.SHM_REMAP:
            raise SysError(errno.EINVAL)
        return 0, Map.SHARED.value
    if addr & ~PAGE_MASK:
        if not flags & shm.SHM_RND:
            raise SysError(errno.EINVAL)
        addr &= PAGE_MASK
        if not addr and flags & shm.SHM_REMAP:
            raise SysError(errno.EINVAL)
    return addr, (Map.SHARED | Map.FIXED).value


def sys_shmdt(call: Call) -> int | Answer | Work:
    """args: address. Unmaps what is left of the attach that began there; SysError(EINVAL) if there is none.

    Source: Linux v6.8 ipc/shm.c:ksys_shmdt().
    """
    addr, mm = call.args[0], call.mm
    if addr & ~PAGE_MASK:
        raise SysError(errno.EINVAL)
    first = next((vma for vma in mm.vmas.overlapping(addr, _U64) if _is_of_attach(vma, addr)), None)
    if first is None:
        raise SysError(errno.EINVAL)
    file = first.file
    assert file is not None
    end = addr + page_align(file.mapping.size_bytes())
    parts = [vma for vma in mm.vmas.overlapping(addr, end) if _is_of_attach(vma, addr) and vma.file is file]
    ranges = [(vma.start, vma.end - vma.start) for vma in parts if vma is first or vma.end <= end]
    return Work(_detach(call, file, ranges)).go_on()


def _detach(call: Call, file: File, ranges: list[tuple[Vaddr, int]]) -> Pieces:
    with call.kernel.table.mmap_locks.write(call.thread):
        for start, length in ranges:
            yield from munmap_steps(call.mm, start, length)
    with contextlib.suppress(SysError):  # A removed segment has gone with its last attach.
        segment = call.kernel.shm.get(file.ino)
        if segment.mapping is file.mapping:
            segment.dtime, segment.lpid = int(time.time()), call.process.pid
    return 0


def _is_of_attach(vma: Vma, addr: Vaddr) -> bool:
    return vma.file is not None and vma.file.is_sysv_shm and vma.start - addr >> PAGE_SHIFT == vma.pgoff


def sys_shmctl(call: Call) -> int | Answer:
    """args: id or index, command. IPC_SET has a shmid64_ds inline, and the reply has inline what is asked for.

    Raises SysError(EINVAL, EIDRM, EACCES, EPERM). Source: Linux v6.8 ipc/shm.c:ksys_shmctl().
    """
    number, command = call.signed_int_arg(0), call.signed_int_arg(1)
    segments, caller = call.kernel.shm, _caller(call)
    if command < 0 or number < 0:
        raise SysError(errno.EINVAL)
    if command == shm.IPC_INFO:
        return Answer(segments.most_used_index(), _limits(segments))
    if command == shm.SHM_INFO:
        return Answer(segments.most_used_index(), _usage(segments))
    if command in (shm.SHM_STAT, shm.SHM_STAT_ANY, shm.IPC_STAT):
        segment = segments.get(number) if command == shm.IPC_STAT else segments.at(number)
        if command != shm.SHM_STAT_ANY:
            check_rights(segment, caller, _READ)
        return Answer(0 if command == shm.IPC_STAT else segment.id, _status(segment))
    if command in (shm.SHM_LOCK, shm.SHM_UNLOCK):
        may_lock = call.mm.rlimits.soft[Rlimit.MEMLOCK] != 0
        set_locked(segments.get(number), caller, locked=command == shm.SHM_LOCK, may_lock=may_lock)
        return 0
    if command not in (shm.IPC_RMID, shm.IPC_SET):
        raise SysError(errno.EINVAL)
    segment = segments.get(number)
    check_owner(segment, caller)
    if command == shm.IPC_RMID:
        segments.remove(segment)
    else:
        _set(segment, call.data)
    return 0


def _set(segment: Segment, data: bytes) -> None:
    if len(data) < shm.SHMID_DS.size:
        raise SysError(errno.EFAULT)
    _, segment.uid, segment.gid, _, _, mode, *_ = shm.SHMID_DS.unpack(data[: shm.SHMID_DS.size])
    segment.mode = segment.mode & ~0o777 | mode & 0o777
    segment.ctime = int(time.time())


def _status(each: Segment) -> bytes:
    seq = each.id >> 15
    owner = each.key, each.uid, each.gid, each.cuid, each.cgid, each.mode, seq, 0, 0, 0, 0
    times = each.size_bytes, each.atime, each.dtime, each.ctime, each.cpid, each.lpid, each.nattch, 0, 0
    return shm.SHMID_DS.pack(*owner, *times)


def _limits(segments: ShmSegments) -> bytes:
    return shm.SHMINFO.pack(segments.ctlmax, 1, segments.ctlmni, segments.ctlmni, segments.ctlall, 0, 0, 0, 0)


def _usage(segments: ShmSegments) -> bytes:
    mappings = [each.mapping for each in segments]
    resident = sum(len(mapping.pages) for mapping in mappings)
    swapped = sum(len(mapping.swapped) for mapping in mappings)
    return shm.SHM_INFO_TEXT.pack(len(mappings), segments.nr_pages, resident, swapped, 0, 0)
