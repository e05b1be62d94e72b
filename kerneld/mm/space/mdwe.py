"""PR_SET_MDWE of prctl: memory that can be written does not become executable.

Owns `MmStruct.mdwe`. Knows no task. Answers to Linux v6.8 include/linux/mman.h:map_deny_write_exec(),
include/linux/sched/coredump.h:mmf_init_flags() and kernel/sys.c:prctl_set_mdwe().
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_EXEC, VM_WRITE
from shared.uapi.mman import PR_MDWE_NO_INHERIT, PR_MDWE_REFUSE_EXEC_GAIN

_BOTH = VM_EXEC | VM_WRITE


def set_mdwe(mm: MmStruct, bits: int) -> None:
    """Set the PR_MDWE_ flags of an address space. They cannot be changed later.

    Raises SysError(EINVAL) for other bits, or NO_INHERIT alone; SysError(EPERM) if other flags are set already.
    """
    if bits & ~(PR_MDWE_REFUSE_EXEC_GAIN | PR_MDWE_NO_INHERIT) or bits == PR_MDWE_NO_INHERIT:
        raise SysError(errno.EINVAL)
    if mm.mdwe and mm.mdwe != bits:
        raise SysError(errno.EPERM)
    mm.mdwe = bits


def inherit_mdwe(new: MmStruct, old: MmStruct) -> None:
    """Give the flags to a child's address space, or to that of the next program, unless NO_INHERIT is among them."""
    new.mdwe = 0 if old.mdwe & PR_MDWE_NO_INHERIT else old.mdwe


def map_deny_write_exec(mm: MmStruct, old_flags: int, new_flags: int) -> bool:
    """Return whether an address space refuses memory with VM_ flags `new_flags` that has had `old_flags`."""
    if not mm.mdwe or not new_flags & VM_EXEC:
        return False
    return new_flags & _BOTH == _BOTH or not old_flags & VM_EXEC
