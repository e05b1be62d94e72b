"""Whether the machine promises more memory than it has.

Answers to Linux v6.8 mm/util.c:__vm_enough_memory() and Documentation/mm/overcommit-accounting.rst, mode 0 and 1.
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.mm import MmStruct
from kerneld.mm.vm_flags import VM_NORESERVE, VM_SHARED, VM_WRITE


def accountable_mapping(vm_flags: int) -> bool:
    """Tell whether a mapping counts as promised memory: private and writable.

    Source: mm/mmap.c:accountable_mapping().
    """
    return vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE


def check_enough_memory(mm: MmStruct, pages: int) -> None:
    """Raise SysError(ENOMEM) where one request alone is more than the machine has (vm.overcommit_memory 0)."""
    if mm.sysctl.overcommit_memory == 0 and pages > mm.frames.total_pages:
        raise SysError(errno.ENOMEM)
