"""mbind: the policy of a range. Answers to Linux v6.8 mm/mempolicy.c: do_mbind(), mbind_range()."""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.space.mempolicy import new_policy
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import Pace, Steps
from kerneld.mm.space.vma_merge import vma_modify
from shared.uapi.page import PAGE_MASK, Vaddr, page_align

MPOL_MF_STRICT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL = 1, 2, 4
_VALID = MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL


def mbind_in_pieces(
    mm: MmStruct, start: Vaddr, length: int, mode: int, nodes: int, flags: int, *, may_move_all: bool
) -> Steps:
    """Give the VMAs of [start, start + length) a policy; `length` in bytes is rounded up to pages.

    Yields when other clients may be served.
    Every page is on node 0 already, so none is moved. Raises SysError(EINVAL) for unknown flags, an unaligned start, a
    range that wraps, and as `new_policy` does; SysError(EPERM) for MPOL_MF_MOVE_ALL without CAP_SYS_NICE;
    SysError(EFAULT) at a hole, before any change (with the default policy only if all is a hole); SysError(ENOMEM) over
    vm.max_map_count.
    Source: Linux v6.8 mm/mempolicy.c:do_mbind().
    """
    if flags & ~_VALID:
        raise SysError(errno.EINVAL)
    if flags & MPOL_MF_MOVE_ALL and not may_move_all:
        raise SysError(errno.EPERM)
    if start & ~PAGE_MASK:
        raise SysError(errno.EINVAL)
    end = start + (page_align(length) & ((1 << 64) - 1))
    if end >> 64:
        raise SysError(errno.EINVAL)
    if end == start:
        return
    policy = new_policy(mode, nodes)
    _check_covered(mm, start, end, may_have_holes=not policy)
    pace = Pace()
    while start < end and (vma := mm.vmas.find(start)) is not None and vma.start < end:
        start, stop = max(start, vma.start), min(end, vma.end)
        if vma.policy != policy:
            vma_modify(mm, vma, start, stop, vma.vm_flags, vma.traits._replace(policy=policy))
        start = stop
        if pace.is_over():
            yield
            pace.begin()


def _check_covered(mm: MmStruct, start: Vaddr, end: Vaddr, *, may_have_holes: bool) -> None:
    """Raise SysError(EFAULT) if no VMA covers a page; if there may be holes, only if none covers any.

    Source: Linux v6.8 mm/mempolicy.c: queue_pages_test_walk(), queue_pages_range().
    """
    vmas = list(mm.vmas.overlapping(start, end))
    for vma in vmas:
        if vma.start > start and not may_have_holes:
            raise SysError(errno.EFAULT)
        start = vma.end
    if not vmas or (start < end and not may_have_holes):
        raise SysError(errno.EFAULT)
