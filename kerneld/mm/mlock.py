"""The right and the limit to lock memory.

Answers to Linux v6.8 mm/mlock.c:can_do_mlock() and mm/mmap.c:mlock_future_ok().
"""

from __future__ import annotations

from kerneld.mm.mm import MmStruct
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.page import PAGE_SHIFT
from shared.uapi.resource import RLIM_INFINITY, Rlimit


def can_do_mlock(mm: MmStruct, privileged: bool) -> bool:
    """Tell whether the process may lock memory at all: CAP_IPC_LOCK, or an RLIMIT_MEMLOCK that is not 0."""
    return privileged or mm.rlimits.soft[Rlimit.MEMLOCK] != 0


def mlock_future_ok(mm: MmStruct, vm_flags: int, length: int, privileged: bool) -> bool:
    """Tell whether `length` bytes more of memory with these VM_ flags stay within RLIMIT_MEMLOCK."""
    limit = mm.rlimits.soft[Rlimit.MEMLOCK]
    if not vm_flags & VM_LOCKED or privileged or limit == RLIM_INFINITY:
        return True
    return mm.locked_vm + (length >> PAGE_SHIFT) <= limit >> PAGE_SHIFT
