"""mlock, munlock, mlockall: pages that stay resident.

Answers to Linux v6.8 mm/mlock.c and mm/mmap.c:mlock_future_ok().
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Generator

from kerneld.errors import SysError
from kerneld.mm.space.locked_pages import mlock_range, munlock_range
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps, run_at_once
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import vma_modify
from kerneld.mm.vm_flags import VM_LOCKED, VM_LOCKED_MASK, VM_LOCKONFAULT, VM_PFNMAP
from shared.uapi.mman import Mcl
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, Vaddr, page_align
from shared.uapi.resource import RLIM_INFINITY, Rlimit

_CURRENT, _FUTURE, _ONFAULT = Mcl.CURRENT.value, Mcl.FUTURE.value, Mcl.ONFAULT.value


def can_do_mlock(mm: MmStruct, privileged: bool) -> bool:
    """Return whether the process may lock memory at all: it has CAP_IPC_LOCK, or an RLIMIT_MEMLOCK that is not 0."""
    return privileged or mm.rlimits.soft[Rlimit.MEMLOCK] != 0


def mlock_future_ok(mm: MmStruct, vm_flags: int, length: int, privileged: bool) -> bool:
    """Return whether `length` more bytes of memory with these VM_ flags stay within RLIMIT_MEMLOCK."""
    if not vm_flags & VM_LOCKED or privileged:
        return True
    return mm.locked_vm + (length >> PAGE_SHIFT) <= _limit_pages(mm)


def _limit_pages(mm: MmStruct) -> int:
    limit = mm.rlimits.soft[Rlimit.MEMLOCK]
    return RLIM_INFINITY if limit == RLIM_INFINITY else limit >> PAGE_SHIFT


def do_mlock(mm: MmStruct, start: Vaddr, length: int, vm_flags: int, *, privileged: bool) -> tuple[Vaddr, Vaddr]:
    """Do the same as `mlock_in_pieces`, at once; return the range, for the caller to fault in."""
    run_at_once(mlock_in_pieces(mm, start, length, vm_flags, privileged=privileged))
    return lock_range(start, length)


def mlock_in_pieces(mm: MmStruct, start: Vaddr, length: int, vm_flags: int, *, privileged: bool) -> Steps:
    """Mark [start, start + length), rounded outward to pages, as locked; yield when other clients may be served.

    `vm_flags` is VM_LOCKED, with VM_LOCKONFAULT if pages are locked only when they are faulted in.
    Raises SysError(EPERM) without the right, SysError(ENOMEM) over RLIMIT_MEMLOCK, for a hole or with too many VMAs,
    SysError(EINVAL) if the range wraps. Source: Linux v6.8 mm/mlock.c:do_mlock().
    """
    if not can_do_mlock(mm, privileged):
        raise SysError(errno.EPERM)
    start, end = lock_range(start, length)
    if not privileged:
        locked = mm.locked_vm + ((end - start) >> PAGE_SHIFT)
        if locked > _limit_pages(mm) and locked - _locked_pages(mm, start, end) > _limit_pages(mm):
            raise SysError(errno.ENOMEM)
    yield from lock_flags_in_pieces(mm, start, end, vm_flags)


def lock_range(start: Vaddr, length: int) -> tuple[Vaddr, Vaddr]:
    """Round a range outward to pages; the length wraps at 64 bits, as Linux's does."""
    length = page_align(length + (start & ~PAGE_MASK)) % (1 << 64)
    start &= PAGE_MASK
    return start, start + length


def _locked_pages(mm: MmStruct, start: Vaddr, end: Vaddr) -> int:
    """Source: Linux v6.8 mm/mlock.c:count_mm_mlocked_page_nr()."""
    return sum(
        (min(end, vma.end) - max(start, vma.start)) >> PAGE_SHIFT
        for vma in mm.vmas.overlapping(start, end)
        if vma.vm_flags & VM_LOCKED
    )


def do_munlock(mm: MmStruct, start: Vaddr, length: int) -> None:
    """Unlock [start, start + length), rounded outward to pages. Raises as `do_mlock` does for the range."""
    apply_vma_lock_flags(mm, *lock_range(start, length), 0)


def munlock_in_pieces(mm: MmStruct, start: Vaddr, length: int) -> Steps:
    """Do the same as `do_munlock`; yield when other clients may be served."""
    yield from lock_flags_in_pieces(mm, *lock_range(start, length), 0)


def apply_vma_lock_flags(mm: MmStruct, start: Vaddr, end: Vaddr, vm_flags: int) -> None:
    """Do the same as `lock_flags_in_pieces`, at once."""
    run_at_once(lock_flags_in_pieces(mm, start, end, vm_flags))


def lock_flags_in_pieces(mm: MmStruct, start: Vaddr, end: Vaddr, vm_flags: int) -> Steps:
    """Give the VMAs of a page-aligned range these lock flags, up to the first hole; yield after a VMA.

    Source: Linux v6.8 mm/mlock.c:apply_vma_lock_flags().
    """
    if end >= 1 << 64:
        raise SysError(errno.EINVAL)
    pace = Pace()
    while start < end:
        vma = mm.vmas.lookup(start)
        if vma is None:
            raise SysError(errno.ENOMEM)
        stop = min(end, vma.end)
        start = yield from mlock_fixup(mm, vma, start, stop, (vma.vm_flags & ~VM_LOCKED_MASK) | vm_flags, pace)
        if start < end and pace.is_over():
            yield
            pace.begin()


def mlock_fixup(
    mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, vm_flags: int, pace: Pace
) -> Generator[None, None, Vaddr]:
    """Give a part of a VMA other lock flags, then lock or unlock its pages; return the end of the VMA that covers it.

    Source: Linux v6.8 mm/mlock.c:mlock_fixup().
    """
    if vm_flags == vma.vm_flags or vma.vm_flags & VM_PFNMAP:
        return vma.end
    before = vma.vm_flags
    covered = vma_modify(mm, vma, start, end, vm_flags).end
    while (vm_flags ^ before) & VM_LOCKED and start < end:
        stop = pace.far_stop(mm.page_table.walk, start, end)
        (mlock_range if vm_flags & VM_LOCKED else munlock_range)(mm, start, stop)
        start = stop
        if start < end and pace.is_over():
            yield
            pace.begin()
    return covered


def do_mlockall(mm: MmStruct, flags: int, *, privileged: bool) -> None:
    """Do the same as `mlockall_in_pieces`, at once."""
    run_at_once(mlockall_in_pieces(mm, flags, privileged=privileged))


def mlockall_in_pieces(mm: MmStruct, flags: int, *, privileged: bool) -> Steps:
    """Lock the present mappings (MCL_CURRENT), future mappings (MCL_FUTURE), or both; the caller faults pages in.

    Raises SysError(EINVAL) for other flags, SysError(EPERM) without the right, SysError(ENOMEM) over RLIMIT_MEMLOCK.
    Source: Linux v6.8 mm/mlock.c:SYSCALL_DEFINE1(mlockall).
    """
    if not flags or flags & ~(_CURRENT | _FUTURE | _ONFAULT) or flags == _ONFAULT:
        raise SysError(errno.EINVAL)
    if not can_do_mlock(mm, privileged):
        raise SysError(errno.EPERM)
    if flags & _CURRENT and not privileged and mm.total_vm > _limit_pages(mm):
        raise SysError(errno.ENOMEM)
    yield from mlockall_flags_in_pieces(mm, flags)


def mlockall_flags_in_pieces(mm: MmStruct, flags: int) -> Steps:
    """Apply mlockall's flags; 0 unlocks everything. Yields when other clients may be served.

    Source: Linux v6.8 mm/mlock.c:apply_mlockall_flags().
    """
    bits = VM_LOCKED | VM_LOCKONFAULT if flags & _ONFAULT else VM_LOCKED
    mm.def_flags &= ~VM_LOCKED_MASK
    if flags & _FUTURE:
        mm.def_flags |= bits
        if not flags & _CURRENT:
            return
    added = bits if flags & _CURRENT else 0
    pace = Pace()
    vma = mm.vmas.find(0)
    while vma is not None:
        end = vma.end
        with contextlib.suppress(SysError):
            end = yield from mlock_fixup(mm, vma, vma.start, end, (vma.vm_flags & ~VM_LOCKED_MASK) | added, pace)
        if pace.is_over():
            yield
            pace.begin()
        vma = mm.vmas.find(end)
