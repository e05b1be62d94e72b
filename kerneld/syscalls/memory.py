"""The memory calls: turn raw arguments into typed calls of memory management. Answers to Linux v6.8 mm/mmap.c's
syscalls."""

from __future__ import annotations

import errno
from contextlib import closing, nullcontext

from kerneld.errors import SysError
from kerneld.mm.calls.brk import brk_in_pieces, do_brk
from kerneld.mm.calls.madvise import (
    LONG_ADVICE,
    POPULATE_ADVICE,
    do_madvise,
    madvise_in_pieces,
    madvise_populate_in_pieces,
)
from kerneld.mm.calls.mincore import mincore_in_pieces
from kerneld.mm.calls.mlock import (
    lock_range,
    mlock_in_pieces,
    mlockall_flags_in_pieces,
    mlockall_in_pieces,
    munlock_in_pieces,
)
from kerneld.mm.calls.mmap import clears_in_pieces, do_mmap, mmap_in_pieces, mmap_steps, wants_populate
from kerneld.mm.calls.mprotect import do_mprotect, mprotect_in_pieces
from kerneld.mm.calls.mremap import do_mremap, mremap_in_pieces
from kerneld.mm.calls.remap_file_pages import Remap, check_remap, held
from kerneld.mm.fault.populate import populate_in_pieces
from kerneld.mm.fault.vm_fault import VM_FAULT_OOM
from kerneld.mm.files.file import File
from kerneld.mm.files.hugetlb import align_to_huge_pages, hugetlb_file_setup
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap, munmap_in_pieces
from kerneld.mm.space.pace import Steps, WaitingSteps, is_wide
from kerneld.mm.space.pkeys import NO_PKEY, pkey_alloc, pkey_free
from kerneld.mm.space.writeback import msync_in_pieces
from kerneld.mm.vm_flags import VM_EXEC, VM_LOCKED, VM_LOCKONFAULT
from kerneld.syscalls.answer import Answer, Call, Pieces, Work, in_pieces
from kerneld.syscalls.call_faults import counted_work
from kerneld.task.capability import CAP_IPC_LOCK
from shared.uapi.mman import MLOCK_ONFAULT, Madv, Map, Mcl, Prot
from shared.uapi.native import MMAP_SAME_FILE
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PMD_SIZE, TASK_SIZE, Vaddr, page_align
from shared.uapi.personality import READ_IMPLIES_EXEC
from shared.wire import MAX_REPLY

_U32 = (1 << 32) - 1
_READ, _EXEC = Prot.READ.value, Prot.EXEC.value
_ANONYMOUS, _HUGETLB = Map.ANONYMOUS.value, Map.HUGETLB.value
_HUGE_SHIFT, _HUGE_MASK = 26, 0x3F
_HUGE_LOGS = (0, 21)
"""The huge page sizes of the machine in the encoding of MAP_HUGE_*: the default, and 2 MiB."""


def sys_mmap(call: Call) -> int | Answer | Work:
    """args: addr, length, prot, flags, fd, offset. Consumes a descriptor unless MAP_ANONYMOUS is set.

    Raises as `do_mmap` does, EBADF, and for a native program ESTALE as `_file_to_map`.

    MAP_HUGETLB finds an empty pool: ENOMEM. It is EINVAL for a size that the machine does not have, or for a file that
    is not on hugetlbfs. Source: Linux v6.8 arch/x86/kernel/sys_x86_64.c and mm/mmap.c:ksys_mmap_pgoff(), mm/util.c:
    vm_mmap_pgoff().
    """
    addr, length, prot, flags, fd, offset = call.args
    mm = call.mm
    if offset & ~PAGE_MASK:
        if not flags & _ANONYMOUS and call.has_fd:
            call.take_fd()
        raise SysError(errno.EINVAL)
    if clears_in_pieces(mm, length, flags):
        return counted_work(call, _mmap_over(call))
    file: File | None = None
    try:
        if not flags & _ANONYMOUS:
            file = _file_to_map(call, fd)
        mapped, length = _check_hugetlb(call, flags, file, length)
        privileged = call.process.cred.capable(CAP_IPC_LOCK)
        if call.thread.personality:
            prot = implied_prot(call, prot, mapped)
        addr = do_mmap(mm, addr, length, prot, flags, mapped, offset >> PAGE_SHIFT, privileged=privileged)
    finally:
        if file is not None:
            call.kernel.files.put_unused(file)
    if wants_populate(mm, flags):
        return _populate(call, addr, addr + page_align(length), addr)
    return addr


def _file_to_map(call: Call, fd: int) -> File:
    """Return the file of an mmap, held: that of the descriptor that came with it, or the one that was mapped last.

    Raises SysError(ESTALE) if the client has named its own descriptor, and it is not known to be of that file; and as
    `FileTable.open_fd` does.
    """
    thread, files = call.thread, call.kernel.files
    if fd & ~_U32 == MMAP_SAME_FILE and not call.has_fd and thread.tlb is not None:
        last = thread.mapped_file
        if last is None or not files.hold_same(last, fd & _U32, thread.tid):
            raise SysError(errno.ESTALE)
        return last
    file = files.open_fd(call.take_own_fd(), call.process)
    if thread.tlb is not None:
        thread.mapped_file = file
    return file


def implied_prot(call: Call, prot: int, file: File | None) -> int:
    """Return the rights of a new mapping: with READ_IMPLIES_EXEC what can be read can be executed too.

    A file on a noexec mount is not executable. Source: Linux v6.8 mm/mmap.c:do_mmap().
    """
    implies = call.thread.personality & READ_IMPLIES_EXEC and prot & _READ and not (file is not None and file.noexec)
    return prot | _EXEC if implies else prot


def _mmap_over(call: Call) -> Pieces:
    """Do the work of `sys_mmap` in pieces, for a mapping that replaces much memory."""
    addr, length, prot, flags, fd, offset = call.args
    file: File | None = None
    try:
        if not flags & _ANONYMOUS:
            file = _file_to_map(call, fd)
        mapped, length = _check_hugetlb(call, flags, file, length)
        pgoff, privileged = offset >> PAGE_SHIFT, call.process.cred.capable(CAP_IPC_LOCK)
        prot = implied_prot(call, prot, mapped)
        with call.kernel.table.mmap_locks.write(call.thread):
            yield from mmap_in_pieces(call.mm, addr, length, prot, flags, mapped, pgoff, privileged=privileged)
    finally:
        if file is not None:
            call.kernel.files.put_unused(file)
    if wants_populate(call.mm, flags):
        yield from populate_in_pieces(call.mm, addr, addr + page_align(length), ignore_errors=True)
    return addr


def sys_remap_file_pages(call: Call) -> int | Answer | Work:
    """args: start, size, prot (0), pgoff, flags. Raises as `check_remap` and `do_mmap` do.

    Source: Linux v6.8 mm/mmap.c:SYSCALL_DEFINE5(remap_file_pages).
    """
    start, size, prot, pgoff, flags = call.args[:5]
    remap = check_remap(call.mm, start, size, prot & _U32, pgoff, flags & _U32)
    return counted_work(call, _remap(call, remap, pgoff))


def _remap(call: Call, remap: Remap, pgoff: int) -> Pieces:
    start, length, prot, flags, file = remap
    call.kernel.files.look_at_seals(file)
    prot = implied_prot(call, prot, file)
    privileged = call.process.cred.capable(CAP_IPC_LOCK)
    # A removed segment of System V is not kept by its file, but by its attaches: it may go with the old mapping.
    with nullcontext() if file.is_sysv_shm else held(file.mapping), call.kernel.table.mmap_locks.write(call.thread):
        yield from mmap_steps(call.mm, start, length, prot, flags, file, pgoff, privileged=privileged)
    if wants_populate(call.mm, flags):
        yield from populate_in_pieces(call.mm, start, start + length, ignore_errors=True)
    return 0


def _populate(call: Call, start: Vaddr, end: Vaddr, ret: int) -> int | Answer | Work:
    """Fault in the range that a call has mapped or locked, as far as possible, and return `ret`.

    Linux has released mmap_lock before, and releases it repeatedly here. So a long range runs in pieces.
    """

    def pieces() -> Pieces:
        yield from populate_in_pieces(call.mm, start, end, ignore_errors=True)
        return ret

    return counted_work(call, pieces())


def _check_hugetlb(call: Call, flags: int, file: File | None, length: int) -> tuple[File | None, int]:
    """Return the file and the length of a mapping. An anonymous mapping of huge pages gets a file of huge pages.

    Raises SysError(EINVAL) for a size without a pool, and for a file that is not on hugetlbfs.
    """
    if flags & _HUGETLB and (file is None or not file.huge_page_bytes):
        if file is not None or flags >> _HUGE_SHIFT & _HUGE_MASK not in _HUGE_LOGS:
            raise SysError(errno.EINVAL)
        file = hugetlb_file_setup(call.mm.frames, PMD_SIZE)
    if file is not None and file.huge_page_bytes:
        length = align_to_huge_pages(length, file.huge_page_bytes)
    return file, length


def sys_munmap(call: Call) -> int | Answer | Work:
    """args: addr, length."""
    start, length = call.args[:2]
    mm = call.mm
    if is_wide(mm.map_count, length):
        return in_pieces(munmap_in_pieces(mm, start, length))
    do_munmap(mm, start, length)
    return 0


def sys_mprotect(call: Call) -> int | Answer | Work:
    """args: addr, length, prot."""
    return _mprotect(call, NO_PKEY)


def sys_pkey_mprotect(call: Call) -> int | Answer | Work:
    """args: addr, length, prot, key. A key of -1 means none: then it is mprotect."""
    return _mprotect(call, call.signed_int_arg(3))


def _mprotect(call: Call, pkey: int) -> int | Answer | Work:
    start, length, prot = call.args[:3]
    mm, rier = call.mm, call.thread.personality & READ_IMPLIES_EXEC != 0
    if is_wide(mm.map_count, length):
        return in_pieces(mprotect_in_pieces(mm, start, length, prot, pkey, rier=rier))
    do_mprotect(mm, start, length, prot, pkey, rier=rier)
    return 0


def sys_pkey_alloc(call: Call) -> int:
    """args: flags, the accesses that PKRU shall deny for the key. Returns the key."""
    return pkey_alloc(call.mm, call.args[0], call.args[1])


def sys_pkey_free(call: Call) -> int:
    """args: key."""
    pkey_free(call.mm, call.signed_int_arg(0))
    return 0


def sys_brk(call: Call) -> int | Answer | Work:
    """args: the new break. Returns the break after the call, as the raw call does."""
    mm = call.mm
    if is_wide(mm.map_count, mm.brk - call.args[0]) or mm.def_flags & VM_LOCKED:
        return counted_work(call, _brk(call))
    privileged = call.process.cred.capable(CAP_IPC_LOCK)
    if call.thread.personality:
        return do_brk(mm, call.args[0], privileged=privileged, vm_flags=_heap_flags(call))
    return do_brk(mm, call.args[0], privileged=privileged)


def _heap_flags(call: Call) -> int:
    return VM_EXEC if call.thread.personality & READ_IMPLIES_EXEC else 0


def _brk(call: Call) -> Pieces:
    mm = call.mm
    old = page_align(mm.brk)
    with call.kernel.table.mmap_locks.write(call.thread):
        privileged = call.process.cred.capable(CAP_IPC_LOCK)
        brk = yield from brk_in_pieces(mm, call.args[0], privileged=privileged, vm_flags=_heap_flags(call))
    if mm.def_flags & VM_LOCKED and page_align(brk) > old:
        yield from populate_in_pieces(mm, old, page_align(brk), ignore_errors=True)
    return brk


def sys_mremap(call: Call) -> int | Answer | Work:
    """args: addr, old length, new length, flags, new addr."""
    addr, old_len, new_len, flags, new_addr = call.args[:5]
    mm = call.mm
    if is_wide(mm.map_count, max(old_len, new_len)) or mm.locked_vm or mm.frames.has_merged:
        return counted_work(call, _mremap(call))
    privileged = call.process.cred.capable(CAP_IPC_LOCK)
    return do_mremap(mm, addr, old_len, new_len, flags, new_addr, privileged=privileged)


def _mremap(call: Call) -> Pieces:
    addr, old_len, new_len, flags, new_addr = call.args[:5]
    privileged = call.process.cred.capable(CAP_IPC_LOCK)
    with closing(mremap_in_pieces(call.mm, addr, old_len, new_len, flags, new_addr, privileged=privileged)) as steps:
        while True:
            with call.kernel.table.mmap_locks.write(call.thread):
                try:
                    while (waits_for := next(steps)) is None:
                        yield None
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
            # A userfaultfd has to give a page of what a locked mapping has grown by: Linux has released mmap_lock.
            yield waits_for


def sys_madvise(call: Call) -> int | Answer | Work:
    """args: addr, length, advice."""
    advice = call.int_arg(2)
    if advice in POPULATE_ADVICE:
        return counted_work(call, madvise_populate_in_pieces(call.mm, call.args[0], call.args[1], advice))
    start, length = call.args[:2]
    mm = call.mm
    if advice == Madv.UNMERGEABLE and mm.frames.has_merged:
        return in_pieces(with_mmap_lock(call, madvise_in_pieces(mm, start, length, advice)))
    if is_wide(mm.map_count, length) or advice in LONG_ADVICE:
        return in_pieces(madvise_in_pieces(mm, start, length, advice, call.may_write))
    do_madvise(mm, start, length, advice, call.may_write)
    return 0


def with_mmap_lock(call: Call, steps: WaitingSteps) -> WaitingSteps:
    """Hold mmap_lock for writing from the first piece to the last, as Linux does for this call."""
    with call.kernel.table.mmap_locks.write(call.thread):
        yield from steps


def sys_mincore(call: Call) -> int | Answer | Work:
    """args: addr, length, pointer. Returns 0, and inline one byte for each page."""

    def pieces() -> Pieces:
        told = yield from mincore_in_pieces(call.mm, call.args[0], call.args[1], MAX_REPLY, call.may_write)
        return Answer(0, told)

    return Work(pieces()).go_on()


def sys_mlock(call: Call) -> int | Answer | Work:
    """args: addr, length."""
    return _mlock(call, VM_LOCKED)


def sys_mlock2(call: Call) -> int | Answer | Work:
    """args: addr, length, flags: MLOCK_ONFAULT or 0."""
    flags = call.int_arg(2)
    if flags & ~MLOCK_ONFAULT:
        raise SysError(errno.EINVAL)
    return _mlock(call, VM_LOCKED | VM_LOCKONFAULT if flags else VM_LOCKED)


def _mlock(call: Call, vm_flags: int) -> int | Answer | Work:
    """Lock the range, then fault it in. A page that cannot be faulted in is ENOMEM; no free frame is EAGAIN.

    Source: Linux v6.8 mm/mlock.c:do_mlock() and __mlock_posix_error_return().
    """
    mm, start, length = call.mm, *call.args[:2]
    steps = mlock_in_pieces(mm, start, length, vm_flags, privileged=call.process.cred.capable(CAP_IPC_LOCK))
    return counted_work(call, _lock_and_populate(mm, steps, *lock_range(start, length)))


def _lock_and_populate(mm: MmStruct, steps: Steps, start: Vaddr, end: Vaddr) -> Pieces:
    yield from steps
    fault = yield from populate_in_pieces(mm, start, end, ignore_errors=False)
    if fault:
        raise SysError(errno.EAGAIN if fault & VM_FAULT_OOM else errno.ENOMEM)
    return 0


def sys_munlock(call: Call) -> int | Answer | Work:
    """args: addr, length."""
    return in_pieces(munlock_in_pieces(call.mm, call.args[0], call.args[1]))


def sys_mlockall(call: Call) -> int | Answer | Work:
    """args: flags."""
    flags = call.int_arg(0)
    steps = mlockall_in_pieces(call.mm, flags, privileged=call.process.cred.capable(CAP_IPC_LOCK))
    return counted_work(call, _mlockall(call.mm, steps, is_populated=bool(flags & Mcl.CURRENT.value)))


def _mlockall(mm: MmStruct, steps: Steps, *, is_populated: bool) -> Pieces:
    yield from steps
    if is_populated:
        yield from populate_in_pieces(mm, 0, TASK_SIZE, ignore_errors=True)
    return 0


def sys_munlockall(call: Call) -> int | Answer | Work:
    """No arguments."""
    return in_pieces(mlockall_flags_in_pieces(call.mm, 0))


def sys_msync(call: Call) -> int | Answer | Work:
    """args: addr, length, flags."""
    return in_pieces(msync_in_pieces(call.mm, call.args[0], call.args[1], call.int_arg(2)))
