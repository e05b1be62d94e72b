"""mbind: the policy of a range. Answers to Linux v6.8 mm/mempolicy.c: do_mbind() and what it calls."""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.space.mempolicy import ONE_NODE, new_policy
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
    Raises SysError(EINVAL) for unknown flags, an unaligned start, a range that wraps, and as `new_policy` does;
    SysError(EPERM) for MPOL_MF_MOVE_ALL without CAP_SYS_NICE; SysError(EFAULT) at a hole, before any change (with the
    default policy only if all is a hole); SysError(EIO) for MPOL_MF_STRICT alone, before any change, if a page is on a
    node that `nodes` does not name; SysError(ENOMEM) over vm.max_map_count.
    Source: Linux v6.8 mm/mempolicy.c:do_mbind().

    Differs from Linux: with a flag to move, Linux gives a page on a node that `nodes` does not name another frame, also
    where the machine has no other node. Here no page moves.
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
    pace = Pace()
    is_strict = flags == MPOL_MF_STRICT and policy != 0 and not nodes & ONE_NODE
    yield from _queue_pages(mm, start, end, pace, may_have_holes=not policy, is_strict=is_strict)
    while start < end and (vma := mm.vmas.find(start)) is not None and vma.start < end:
        start, stop = max(start, vma.start), min(end, vma.end)
        if vma.policy != policy:
            vma_modify(mm, vma, start, stop, None, vma.traits._replace(policy=policy))
        start = stop
        if pace.is_over():
            yield
            pace.begin()


def _queue_pages(mm: MmStruct, start: Vaddr, end: Vaddr, pace: Pace, *, may_have_holes: bool, is_strict: bool) -> Steps:
    """Raise SysError(EFAULT) if no VMA covers a page; if there may be holes, only if none covers any.

    Where it is strict, raise SysError(EIO) for the first VMA that has a page. A hole right behind this VMA comes first.
    Yields after a VMA, or a part of a large one. What is mapped then may have changed: it goes on at an address.
    Source: Linux v6.8 mm/mempolicy.c: queue_pages_test_walk(), queue_folios_pte_range(), queue_pages_range().
    """
    walk, covered = mm.page_table.walk, start
    is_empty = True
    while covered < end and (vma := mm.vmas.find_intersection(covered, end)) is not None:
        is_empty = False
        if not may_have_holes and (vma.start > covered or (vma.end < end and mm.vmas.lookup(vma.end) is None)):
            raise SysError(errno.EFAULT)
        begun, covered = max(covered, vma.start), min(end, vma.end)
        if is_strict:
            covered = pace.far_stop(walk, begun, covered)
            if any(len(walk.mapped(run)[1]) for run in walk.runs(begun, covered)):
                raise SysError(errno.EIO)
        if covered < end and pace.is_over():
            yield
            pace.begin()
    if is_empty or (covered < end and not may_have_holes):
        raise SysError(errno.EFAULT)
