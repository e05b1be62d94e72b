"""munmap: split at the ends, clear the entries, remove the VMAs, free the tables.

Answers to Linux v6.8 mm/mmap.c: do_vmi_munmap(), do_vmi_align_munmap(), exit_mmap().
"""

from __future__ import annotations

import errno
import itertools

from kerneld.errors import SysError
from kerneld.mm.space.dying import take_down
from kerneld.mm.space.ksm import ksm_exit
from kerneld.mm.space.locked_pages import zap_vma_range
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps, is_wide, run_at_once
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import check_map_count
from kerneld.mm.space.writeback import write_range_in_pieces
from kerneld.mm.vm_flags import VM_SHARED
from shared.uapi.page import PAGE_MASK, PMD_SIZE, TASK_SIZE, Vaddr, page_align

_FEW = 64
"""Number of VMAs that one piece of a munmap removes."""
_OF_FILE_AT_ONCE = 8 * PMD_SIZE
"""The dirty bit of each entry of a file's page goes to the page: a table takes half a millisecond."""


def munmap_in_pieces(mm: MmStruct, start: Vaddr, length: int, *, writes: bool = True) -> Steps:
    """Do the same as `do_munmap`, in pieces; yield between them, when other clients may be served.

    All errors are raised before anything is removed. Then one part after the other is removed, the lowest first, since
    cutting off the lower end of a VMA does not add a VMA. Linux removes all VMAs from the tree first; then other
    threads may use the rest while entries and tables are freed (mm/mmap.c:do_vmi_align_munmap(),
    mmap_write_downgrade()). What another thread stores meanwhile is in its file after the next write-back.
    """
    _check_range(start, length)
    end = start + page_align(length)
    if not split_range(mm, start, end):
        return
    pace = Pace()
    while not mm.is_dying and (vma := mm.vmas.find(start)) is not None and vma.start < end:
        low = max(start, vma.start)
        stop = pace.far_stop(mm.page_table.walk, low, end, 0 if vma.file is None else _OF_FILE_AT_ONCE)
        start = stop if vma.end > stop else _end_of_few(mm, low, stop)
        if writes and _is_of_shared_file(vma):
            start = min(start, vma.end)
            zap_vma_range(mm, vma, low, start)
            yield from write_unmapped(vma, low, start)
        do_munmap(mm, low, start - low, writes=False)
        if start < end and pace.is_over():
            yield
            pace.begin()


def munmap_steps(mm: MmStruct, start: Vaddr, length: int, *, writes: bool = True) -> Steps:
    """Do the same as `do_munmap`, in pieces if it may take long."""
    if is_wide(mm.map_count, length):
        yield from munmap_in_pieces(mm, start, length, writes=writes)
    else:
        do_munmap(mm, start, length, writes=writes)


def _end_of_few(mm: MmStruct, start: Vaddr, end: Vaddr) -> Vaddr:
    """Return the end of the last VMA of the next piece, at most `end`; `end` itself if it lies in the first VMA.

    A VMA of a shared file begins a piece, whose pages are then written.
    """
    few = itertools.islice(mm.vmas.overlapping(start, end), _FEW)
    together = itertools.takewhile(lambda vma: vma.start <= start or not _is_of_shared_file(vma), few)
    return max([vma.end for vma in together if vma.end <= end], default=end)


def _is_of_shared_file(vma: Vma) -> bool:
    return vma.file is not None and vma.vm_flags & VM_SHARED != 0


def _check_range(start: Vaddr, length: int) -> None:
    if start & ~PAGE_MASK or start > TASK_SIZE or length > TASK_SIZE - start or not length:
        raise SysError(errno.EINVAL)


def do_munmap(mm: MmStruct, start: Vaddr, length: int, *, writes: bool = True) -> None:
    """Unmap [start, start + length), which may have holes; `length` in bytes is rounded up to pages.

    The dirty pages of shared files are written to their files, unless `writes` is False: they are mapped elsewhere, or
    have been written.

    Raises SysError(EINVAL) for an unaligned start, a length of 0 or a range outside user space, SysError(ENOMEM) if
    splitting a VMA in three would exceed vm.max_map_count; nothing has changed then.
    """
    _check_range(start, length)
    end = start + page_align(length)
    first = mm.vmas.find_intersection(start, end)
    if first is None:
        return
    if first.start < start and end < first.end:
        check_map_count(mm, 1)
        mm.split_vma(first, end)
    for vma in [first] if end <= first.end else list(mm.vmas.overlapping(start, end)):
        low, high = max(start, vma.start), min(end, vma.end)
        steps = write_unmapped(vma, low, high) if writes and _is_of_shared_file(vma) else None
        unmap_vma(mm, vma, low, high)
        if steps is not None:
            run_at_once(steps)
    mm.free_pgtables(start, end)


def unmap_vma(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    """Clear the entries of [start, end), all of a VMA or one of its ends, and cut it off the VMA.

    Linux splits an end off first, and removes it then (mm/mmap.c:do_vmi_align_munmap()), which comes to the same.
    """
    zap_vma_range(mm, vma, start, end)
    if vma.start < start:
        mm.move_vma_bounds(vma, vma.start, start)
    elif end < vma.end:
        mm.move_vma_bounds(vma, end, vma.end)
    else:
        mm.remove_vma(vma)


def write_unmapped(vma: Vma, start: Vaddr, end: Vaddr) -> Steps:
    """Return the steps that write the pages of a VMA of a shared file, in [start, end), to the file.

    They may begin when the VMA has gone. If nothing maps the file any more, all has been written.
    Differs from Linux: an unmap writes nothing there, for mappings and calls see one page cache.
    """
    assert vma.file is not None
    mapping, first, last = vma.file.mapping, vma.page_index(start), vma.page_index(end)

    def steps() -> Steps:
        if mapping.i_mmap:
            yield from write_range_in_pieces(mapping, first, last)

    return steps()


def exit_mmap(mm: MmStruct) -> None:
    """Take an address space down: tell listeners first, then free entries, VMAs and tables, at once or in pieces.

    Source: Linux v6.8 mm/mmap.c:exit_mmap().
    """
    for notifier in list(mm.notifiers):
        notifier.release()
    mm.notifiers.clear()
    mm.is_dying = True
    ksm_exit(mm)
    dying = mm.frames.dying
    if dying is not None:
        dying.begin(mm)
        return
    for _ in take_down(mm):
        pass


def mmput(mm: MmStruct) -> None:
    """Drop one user of an address space; without users it is taken down. Source: Linux v6.8 kernel/fork.c:mmput()."""
    mm.users -= 1
    if not mm.users:
        exit_mmap(mm)


def split_range(mm: MmStruct, start: Vaddr, end: Vaddr) -> list[Vma]:
    """Split the VMAs at `start` and `end` and return the VMAs between.

    Raises SysError(ENOMEM) as `do_munmap` does, before any change.
    """
    first = mm.vmas.find_intersection(start, end)
    if first is None:
        return []
    vmas = [first] if end <= first.end else list(mm.vmas.overlapping(start, end))
    if first.start < start:
        if end < first.end:
            check_map_count(mm, 1)
        vmas[0] = mm.split_vma(first, start)
    if end < vmas[-1].end:
        mm.split_vma(vmas[-1], end)
    return vmas
