"""madvise: advice of a program about its memory.

Answers to Linux v6.8 mm/madvise.c: do_madvise(), madvise_walk_vmas(), madvise_vma_behavior(), madvise_set_anon_name().

| advice                        | effect                                        | refused (EINVAL unless said)         |
|-------------------------------|-----------------------------------------------|--------------------------------------|
| NORMAL, RANDOM, SEQUENTIAL    | VM_RAND_READ, VM_SEQ_READ                     |                                      |
| DONTFORK, DOFORK              | VM_DONTCOPY                                   |                                      |
| WIPEONFORK, KEEPONFORK        | VM_WIPEONFORK                                 | WIPEONFORK: files, shared memory     |
| DONTDUMP, DODUMP              | VM_DONTDUMP                                   |                                      |
| HUGEPAGE, NOHUGEPAGE          | VM_HUGEPAGE, VM_NOHUGEPAGE                    |                                      |
| MERGEABLE, UNMERGEABLE        | VM_MERGEABLE, nothing if shared; see `ksm.py` |                                      |
| DONTNEED, DONTNEED_LOCKED     | entries cleared; anonymous memory reads zero  | DONTNEED: locked memory              |
| FREE                          | entries become clean and old                  | locked memory, files                 |
| COLD, PAGEOUT                 | entries become old                            | locked memory                        |
| WILLNEED                      | pages of the file, or from swap, are read in  |                                      |
| REMOVE                        | the hole is punched into the file             | locked, private; EACCES not writable |
| POPULATE_READ, POPULATE_WRITE | pages are faulted in                          | no right; EFAULT past the file's end |
| COLLAPSE                      | each whole 2 MiB becomes a huge page          | see `mm/fault/collapse.py`           |

Differs from Linux: memory failure is not built in; its advice is EINVAL, as on a Linux kernel without it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from functools import partial

from kerneld.errors import SysError
from kerneld.mm.calls.madvise_pages import MayWrite, madvise_cold, madvise_free, madvise_pageout, madvise_willneed
from kerneld.mm.fault.collapse import madvise_collapse
from kerneld.mm.fault.populate import count_second_try, fault_in_range
from kerneld.mm.fault.retry import take_userfault
from kerneld.mm.fault.vm_fault import VM_FAULT_OOM, VM_FAULT_RETRY
from kerneld.mm.files.file import File
from kerneld.mm.ksm.unmerge import unmerge_in_pieces
from kerneld.mm.space.ksm import ksm_compatible, ksm_enter
from kerneld.mm.space.locked_pages import zap_vma_range
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps, WaitingSteps, run_at_once
from kerneld.mm.space.pkeys import vma_access_permitted
from kerneld.mm.space.truncate import punch_hole_in_pieces
from kerneld.mm.space.vma import Traits, Vma
from kerneld.mm.space.vma_merge import vma_modify
from kerneld.mm.space.wait import Wait
from kerneld.mm.vm_flags import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WIPEONFORK,
    VM_WRITE,
)
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PMD_SIZE, Vaddr, page_align

_FLAG_CHANGES = {
    Madv.NORMAL: (0, VM_RAND_READ | VM_SEQ_READ),
    Madv.RANDOM: (VM_RAND_READ, VM_SEQ_READ),
    Madv.SEQUENTIAL: (VM_SEQ_READ, VM_RAND_READ),
    Madv.DONTFORK: (VM_DONTCOPY, 0),
    Madv.DOFORK: (0, VM_DONTCOPY),
    Madv.WIPEONFORK: (VM_WIPEONFORK, 0),
    Madv.KEEPONFORK: (0, VM_WIPEONFORK),
    Madv.DONTDUMP: (VM_DONTDUMP, 0),
    Madv.DODUMP: (0, VM_DONTDUMP),
    Madv.HUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
    Madv.NOHUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
    Madv.MERGEABLE: (VM_MERGEABLE, 0),
    Madv.UNMERGEABLE: (0, VM_MERGEABLE),
}
"""Advice that only sets and clears VM_ flags: (set, cleared)."""
_PAGE_ADVICE = frozenset(
    {Madv.DONTNEED, Madv.DONTNEED_LOCKED, Madv.FREE, Madv.COLD, Madv.PAGEOUT, Madv.WILLNEED, Madv.REMOVE, Madv.COLLAPSE}
)
_FAST_ADVICE = frozenset({Madv.DONTNEED, Madv.DONTNEED_LOCKED, Madv.FREE, Madv.COLD})
_READ_BYTES = PMD_SIZE // 4
"""What one piece of WILLNEED reads: a page is read in by itself, where PAGEOUT writes many at once."""
SLOW_ADVICE = frozenset({Madv.PAGEOUT, Madv.WILLNEED})
"""Advice that is given to a part of a VMA as well as to all of it: many page tables at once, or one."""
Visited = Generator[Wait | None, None, Vaddr]
Visit = Callable[[Vma, Vaddr, Vaddr, Pace], Visited]
"""A function that treats a part of a VMA, [start, end), and returns the end of the treated part."""
LONG_ADVICE = SLOW_ADVICE | {Madv.REMOVE, Madv.COLLAPSE}
"""Advice that may take long even for a short range: a page may be mapped many thousand times."""
POPULATE_ADVICE = frozenset({Madv.POPULATE_READ, Madv.POPULATE_WRITE})
_VALID = frozenset(_FLAG_CHANGES) | _PAGE_ADVICE | POPULATE_ADVICE
PROCESS_ADVICE = frozenset({Madv.COLD, Madv.PAGEOUT, Madv.WILLNEED, Madv.COLLAPSE})
"""What process_madvise accepts. Source: Linux v6.8 mm/madvise.c:process_madvise_behavior_valid()."""


def _is_open_for_writing(file: File) -> bool:
    return file.writable


def do_madvise(
    mm: MmStruct, start: Vaddr, length: int, advice: int, may_write: MayWrite = _is_open_for_writing
) -> None:
    """Apply advice to [start, start + length); `length` in bytes is rounded up to pages.

    `may_write` says whether the caller may write to a file: PAGEOUT asks.

    Raises SysError(EINVAL) for unknown advice, an unaligned start, a range that wraps, or as the table above says;
    SysError(ENOMEM) for a range with a hole (the mapped parts are advised anyway), SysError(EAGAIN) with too many VMAs.
    """
    run_at_once(madvise_in_pieces(mm, start, length, advice, may_write))


def madvise_in_pieces(
    mm: MmStruct, start: Vaddr, length: int, advice: int, may_write: MayWrite = _is_open_for_writing
) -> WaitingSteps:
    """Do the same as `do_madvise`; yield when other clients may be served (POPULATE_ADVICE: without mmap_lock)."""
    if advice in POPULATE_ADVICE:
        yield from madvise_populate_in_pieces(mm, start, length, advice)
        return
    _check_advice(advice)
    end = _range_end(start, length)
    if end > start:
        yield from _madvise_walk_vmas(mm, start, end, partial(_advise, mm, Madv(advice), may_write))


def _advise(mm: MmStruct, advice: Madv, may_write: MayWrite, vma: Vma, start: Vaddr, end: Vaddr, pace: Pace) -> Visited:
    """Advise a part of a VMA, or as much of it as one piece takes; return the end of the advised part."""
    if advice is Madv.UNMERGEABLE and vma.vm_flags & VM_MERGEABLE:
        yield from _unmerge(mm, vma, start, end)
    stop = _step_end(mm, vma, start, end, advice, pace)
    steps = _madvise_vma(mm, vma, start, stop, advice, may_write)
    if steps is not None:
        yield from steps
    return stop


def set_anon_name_in_pieces(mm: MmStruct, start: Vaddr, length: int, name: str | None) -> WaitingSteps:
    """Name the anonymous memory of [start, start + length), or take its name away; `length` in bytes, rounded up.

    Yields when other clients may be served. Raises SysError(EINVAL) for an unaligned start or a range that wraps;
    SysError(EBADF) at a file's mapping (what lies before it is named); SysError(ENOMEM) for a range with a hole (the
    mapped parts are named anyway); SysError(EAGAIN) with too many VMAs.
    Source: Linux v6.8 mm/madvise.c:madvise_set_anon_name().
    """
    end = _range_end(start, length)
    if end > start:
        yield from _madvise_walk_vmas(mm, start, end, partial(_set_anon_name, mm, name))


def _set_anon_name(mm: MmStruct, name: str | None, vma: Vma, start: Vaddr, end: Vaddr, _pace: Pace) -> Visited:
    """Source: Linux v6.8 mm/madvise.c:madvise_vma_anon_name(), and fs/proc/task_mmu.c:show_map_vma() for the words."""
    yield from ()
    if vma.vm_file is not None and not (vma.file is not None and vma.file.is_anon_shmem):
        raise SysError(errno.EBADF)
    anon_name = "" if name is None else f"[{'anon' if vma.file is None else 'anon_shmem'}:{name}]"
    if anon_name != vma.anon_name:
        _modify(mm, vma, start, end, vma.vm_flags, vma.traits._replace(anon_name=anon_name))
    return end


def _modify(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, vm_flags: int, traits: Traits | None = None) -> None:
    try:
        vma_modify(mm, vma, start, end, vm_flags, traits)
    except SysError:
        raise SysError(errno.EAGAIN) from None


def _check_advice(advice: int) -> None:
    if advice not in _VALID:
        raise SysError(errno.EINVAL)


def _range_end(start: Vaddr, length: int) -> Vaddr:
    if start & ~PAGE_MASK or page_align(length) >= 1 << 64:
        raise SysError(errno.EINVAL)
    end = start + page_align(length)
    if end >= 1 << 64:
        raise SysError(errno.EINVAL)
    return end


def _madvise_walk_vmas(mm: MmStruct, start: Vaddr, end: Vaddr, visit: Visit) -> WaitingSteps:
    """Visit the parts of VMAs that lie in [start, end), in order; yield when other clients may be served.

    Holes are skipped. Raises SysError(ENOMEM) at the end if there was a hole.
    Source: Linux v6.8 mm/madvise.c:madvise_walk_vmas().
    """
    has_hole = False
    pace = Pace()
    while start < end:
        vma = mm.vmas.find(start)
        if vma is None:
            raise SysError(errno.ENOMEM)
        if start < vma.start:
            has_hole = True
            start = vma.start
            continue
        start = yield from visit(vma, start, min(end, vma.end), pace)
        if start < end and pace.is_over():
            yield None
            pace.begin()
    if has_hole:
        raise SysError(errno.ENOMEM)


def _step_end(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, advice: Madv, pace: Pace) -> Vaddr:
    """Return the end of the part of a VMA that one piece advises."""
    if advice in _FAST_ADVICE:
        return pace.far_stop(mm.page_table.walk, start, end)
    if advice not in SLOW_ADVICE:
        return end
    if advice is Madv.WILLNEED and vma.file is not None:
        # The pages of the file matter here, not the mapped pages.
        is_inside = vma.page_index(start) < vma.file.mapping.last_index()
        return min(end, (start & -_READ_BYTES) + _READ_BYTES) if is_inside else end
    return pace.far_stop(mm.page_table.walk, start, end, _READ_BYTES if advice is Madv.WILLNEED else PMD_SIZE)


def _madvise_vma(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, advice: Madv, may_write: MayWrite) -> Steps | None:
    """Advise a part of a VMA, or return the steps of advice for which Linux releases mmap_lock.

    Source: Linux v6.8 mm/madvise.c:madvise_vma_behavior().
    """
    change = _FLAG_CHANGES.get(advice)
    if change is not None:
        if advice is Madv.WIPEONFORK and (vma.vm_file is not None or vma.vm_flags & VM_SHARED):
            raise SysError(errno.EINVAL)
        if advice is Madv.MERGEABLE and not ksm_compatible(vma.vm_flags):
            return None
        if advice is Madv.MERGEABLE:
            ksm_enter(mm)
        vm_flags = (vma.vm_flags | change[0]) & ~change[1]
        if vm_flags != vma.vm_flags:
            _modify(mm, vma, start, end, vm_flags)
    elif advice is Madv.WILLNEED:
        madvise_willneed(mm, vma, start, end)
    elif advice is Madv.REMOVE:
        return _madvise_remove(vma, start, end)
    elif advice is Madv.COLLAPSE:
        return madvise_collapse(mm, vma, start, end)
    elif vma.vm_flags & VM_LOCKED and advice is not Madv.DONTNEED_LOCKED:
        raise SysError(errno.EINVAL)
    elif advice in (Madv.DONTNEED, Madv.DONTNEED_LOCKED):
        madvise_dontneed(mm, vma, start, end)
    elif advice is Madv.FREE:
        if vma.file is not None:
            raise SysError(errno.EINVAL)
        madvise_free(mm, start, end)
    elif advice is Madv.COLD:
        madvise_cold(mm, start, end)
    else:
        madvise_pageout(mm, vma, start, end, may_write)
    return None


def _unmerge(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> Steps:
    """Source: Linux v6.8 mm/madvise.c:madvise_vma_behavior(): ENOMEM becomes EAGAIN."""
    try:
        yield from unmerge_in_pieces(mm, vma, start, end)
    except SysError:
        raise SysError(errno.EAGAIN) from None


def madvise_dontneed(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Unmap the pages of a part of a VMA. Source: Linux v6.8 mm/madvise.c:madvise_dontneed_single_vma()."""
    zap_vma_range(mm, vma, start, end)


def _madvise_remove(vma: Vma, start: Vaddr, end: Vaddr) -> Steps:
    """Source: Linux v6.8 mm/madvise.c:madvise_remove()."""
    if vma.vm_flags & VM_LOCKED or vma.file is None:
        raise SysError(errno.EINVAL)
    if vma.vm_flags & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
        raise SysError(errno.EACCES)
    first = vma.page_index(start)
    return punch_hole_in_pieces(vma.file.mapping, first, first + ((end - start) >> PAGE_SHIFT))


def madvise_populate_in_pieces(
    mm: MmStruct, start: Vaddr, length: int, advice: int
) -> Generator[Wait | None, None, int]:
    """Do the same as `do_madvise` for POPULATE_ADVICE, and yield when Linux may release mmap_lock; returns 0.

    Source: Linux v6.8 mm/madvise.c:madvise_walk_vmas(): the part behind a hole is populated too.
    """
    end = _range_end(start, length)
    yield from _madvise_walk_vmas(mm, start, end, partial(_populate, mm, advice == Madv.POPULATE_WRITE))
    return 0


def _populate(mm: MmStruct, write: bool, vma: Vma, start: Vaddr, end: Vaddr, pace: Pace) -> Visited:
    yield from faultin_range(mm, start, end, write, pace)
    return end


def faultin_range(mm: MmStruct, start: Vaddr, end: Vaddr, write: bool, pace: Pace) -> WaitingSteps:
    """Populate [start, end) for reading or writing, up to a hole, and yield when `pace` says so.

    Other calls may change the address space meanwhile, so the next VMA is looked up again. Raises SysError(ENOMEM) at
    a hole or without memory, SysError(EINVAL) without the right, SysError(EFAULT) past a file's end.
    Source: Linux v6.8 mm/madvise.c:madvise_populate() and mm/gup.c:check_vma_flags().
    """
    needed = VM_WRITE if write else VM_READ
    while start < end:
        vma = mm.vmas.lookup(start)
        if vma is None:
            raise SysError(errno.ENOMEM)
        if not vma.vm_flags & needed or not vma_access_permitted(mm.frames.processor.pkru, vma, write):
            raise SysError(errno.EINVAL)
        last = min(end, vma.end)
        while start < last:
            before = start
            start, fault = fault_in_range(mm, vma, start, pace.stop(start, last), write, foll_touch=True, pace=pace)
            count_second_try(mm, fault, start > before)
            stalled = fault & VM_FAULT_OOM and mm.frames.take_stall()
            if fault & VM_FAULT_RETRY:
                yield from take_userfault(mm).wait()
                break
            if fault and not stalled:
                raise SysError(errno.ENOMEM if fault & VM_FAULT_OOM else errno.EFAULT)
            if stalled or pace.is_over():
                break
        if start < end and (stalled or pace.is_over()):
            yield None
            pace.begin()
