"""The calls about memory policies. Only translates arguments. Answers to Linux v6.8 mm/mempolicy.c."""

from __future__ import annotations

import errno
import struct

from kerneld.errors import SysError
from kerneld.mm.calls.access import get_user_page
from kerneld.mm.calls.mbind import mbind_in_pieces
from kerneld.mm.space.mempolicy import MPOL_INTERLEAVE, ONE_NODE, check_mode, get_nodes, mode_of, new_policy, nodes_of
from kerneld.syscalls.answer import Answer, Call, Work, in_pieces
from kerneld.syscalls.memory import with_mmap_lock
from kerneld.task.capability import CAP_SYS_NICE
from shared.uapi.page import PAGE_MASK

MPOL_F_NODE, MPOL_F_ADDR, MPOL_F_MEMS_ALLOWED = 1, 2, 4
_NR_NODE_IDS = 1
_TOLD = struct.Struct("<QQ")


def sys_mbind(call: Call) -> int | Answer | Work:
    """args: start, length, mode, pointer, maxnode, flags; inline: the mask of nodes, in words.

    Raises as `mbind_in_pieces`.
    """
    start, length, _, _, _, flags = call.args
    mode, nodes = _mode_and_nodes(call, 2)
    may = call.process.cred.capable(CAP_SYS_NICE)
    steps = mbind_in_pieces(call.mm, start, length, mode, nodes, flags & 0xFFFF_FFFF, may_move_all=may)
    return in_pieces(with_mmap_lock(call, steps))


def sys_set_mempolicy(call: Call) -> int:
    """args: mode, pointer, maxnode; inline: the mask of nodes. Sets the policy of the thread."""
    call.thread.mempolicy = new_policy(*_mode_and_nodes(call, 0))
    return 0


def _mode_and_nodes(call: Call, first: int) -> tuple[int, int]:
    mode = call.int_arg(first) if first == 0 else call.args[first]
    check_mode(mode)
    pointer, maxnode = call.args[first + 1], call.args[first + 2]
    return mode, get_nodes(maxnode, call.data) if pointer and maxnode != 1 else 0


def sys_get_mempolicy(call: Call) -> Answer:
    """args: two pointers with maxnode between them and flags: policy, mask, maxnode, address, flags.

    Returns inline, 64 bits each: what belongs at the first pointer, and the mask of nodes. Raises SysError(EINVAL) for
    a maxnode of 0 with a mask, unknown flags, flags that exclude each other, and an address without MPOL_F_ADDR;
    SysError(EFAULT) for an address where nothing is mapped. Source: Linux v6.8 mm/mempolicy.c: kernel_get_mempolicy(),
    do_get_mempolicy().
    """
    _policy, mask, maxnode, addr, flags = call.args[:5]
    if mask and maxnode < _NR_NODE_IDS:
        raise SysError(errno.EINVAL)
    if flags & ~(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
        raise SysError(errno.EINVAL)
    if flags & MPOL_F_MEMS_ALLOWED:
        if flags & (MPOL_F_NODE | MPOL_F_ADDR):
            raise SysError(errno.EINVAL)
        return Answer(0, _TOLD.pack(0, ONE_NODE))
    policy = call.thread.mempolicy
    if flags & MPOL_F_ADDR:
        vma = call.mm.vmas.lookup(addr)
        if vma is None:
            raise SysError(errno.EFAULT)
        policy = vma.policy
    elif addr:
        raise SysError(errno.EINVAL)
    told = mode_of(policy)
    if flags & MPOL_F_NODE:
        if flags & MPOL_F_ADDR:
            get_user_page(call.mm, addr & PAGE_MASK, write=False, force=False)
        elif told & 0xFF != MPOL_INTERLEAVE:
            raise SysError(errno.EINVAL)
        told = 0
    return Answer(0, _TOLD.pack(told, nodes_of(policy) & ((1 << 64) - 1)))
