"""Memory policies: on which nodes memory is allocated. This machine has one node, 0.

So a policy changes no allocation. It is checked and kept as in Linux, a VMA with another policy does not merge, and
get_mempolicy tells it. A policy is a number: its mode, its flags (bits 13 to 15), and from bit 16 on its nodes; for a
policy with flags these are the caller's. 0 is the default policy.
Answers to Linux v6.8 mm/mempolicy.c.
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError

MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, MPOL_LOCAL, MPOL_PREFERRED_MANY, MPOL_MAX = range(7)
MPOL_F_NUMA_BALANCING, MPOL_F_RELATIVE_NODES, MPOL_F_STATIC_NODES = 1 << 13, 1 << 14, 1 << 15
ONE_NODE = 1
"""The mask of the machine's nodes."""
MAX_NUMNODES = 1024
_USERS_NODES = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES
_MODE_FLAGS = _USERS_NODES | MPOL_F_NUMA_BALANCING
_NODES_SHIFT = 16
_MOST_BITS = 8 * 4096


def check_mode(mode: int) -> None:
    """Raise SysError(EINVAL) for a mode with flags that does not exist.

    Source: Linux v6.8 mm/mempolicy.c:sanitize_mpol_flags().
    """
    plain = mode & ~_MODE_FLAGS
    if plain >= MPOL_MAX or mode & _USERS_NODES == _USERS_NODES:
        raise SysError(errno.EINVAL)
    if mode & MPOL_F_NUMA_BALANCING and plain != MPOL_BIND:
        raise SysError(errno.EINVAL)


def get_nodes(maxnode: int, data: bytes) -> int:
    """Return the mask of nodes that a caller has passed; `maxnode` is one more than the number of its bits.

    Raises SysError(EINVAL) for too many bits, or a node that no machine has, and SysError(EFAULT) if the mask could not
    be read. Source: Linux v6.8 mm/mempolicy.c:get_nodes().
    """
    bits = (maxnode - 1) & ((1 << 64) - 1)
    if bits > _MOST_BITS:
        raise SysError(errno.EINVAL)
    if len(data) < (bits + 63) // 64 * 8:
        raise SysError(errno.EFAULT)
    nodes = int.from_bytes(data, "little") & ((1 << bits) - 1)
    if nodes >> MAX_NUMNODES:
        raise SysError(errno.EINVAL)
    return nodes


def new_policy(mode: int, nodes: int) -> int:
    """Return the policy of a checked mode and a mask of nodes.

    Raises SysError(EINVAL) where a mode needs nodes and none of the machine's is named, and where it can have none.
    Source: Linux v6.8 mm/mempolicy.c: mpol_new(), mpol_set_nodemask().
    """
    plain, flags = mode & ~_MODE_FLAGS, mode & _MODE_FLAGS
    if plain == MPOL_DEFAULT:
        if nodes:
            raise SysError(errno.EINVAL)
        return 0
    if plain == MPOL_LOCAL or (plain == MPOL_PREFERRED and not nodes):
        if nodes or flags & _USERS_NODES:
            raise SysError(errno.EINVAL)
        return MPOL_LOCAL
    # Relative nodes are counted among the allowed ones, round and round: each is node 0.
    ours = ONE_NODE if flags & MPOL_F_RELATIVE_NODES and nodes else nodes & ONE_NODE
    if not ours:
        raise SysError(errno.EINVAL)
    return mode | (nodes if flags else ours) << _NODES_SHIFT


def mode_of(policy: int) -> int:
    """Return the mode of a policy, with its flags, as get_mempolicy tells it."""
    return policy & ((1 << _NODES_SHIFT) - 1)


def nodes_of(policy: int) -> int:
    """Return the mask of nodes of a policy, as get_mempolicy tells it."""
    return policy >> _NODES_SHIFT
