"""Rules for a host with page tables of five levels (LA57): its user space has 56 bits of addresses.

A mapping above the 47th bit is made only if a program asks for it. kerneld's four levels cannot have one, so operations
that would make one are skipped on both sides. On five levels an access there finds nothing mapped; on four levels the
address is not canonical. Calls treat ranges there as unmapped. Answers to Linux v6.8
arch/x86/include/asm/page_64.h:task_size_max().
"""

from __future__ import annotations

from typing import Any

from kerneld.mm.calls import mincore, mremap, userfaultfd
from kerneld.mm.space import munmap
from kerneld.referee import later_mremap, later_rules
from kerneld.task import cpu, trap
from shared.uapi.mman import Mremap
from shared.uapi.page import PAGE_SIZE, TASK_SIZE

_USER_END = 1 << 56
TASK_SIZE_5LEVEL = _USER_END - PAGE_SIZE
_NAMES_A_PLACE = (Mremap.FIXED | Mremap.DONTUNMAP).value
RULES: tuple[tuple[Any, str, int], ...] = (
    *(
        (module, "TASK_SIZE", TASK_SIZE_5LEVEL)
        for module in (mincore, mremap, munmap, trap, userfaultfd, later_mremap, later_rules)
    ),
    (cpu, "_CANONICAL_END", _USER_END),
    (cpu, "_KERNEL_HALF", (1 << 64) - _USER_END),
)
"""The rules, each only for the named module. In other modules the limit is what kerneld can map."""


def is_out_of_reach(name: str, args: tuple[int, ...]) -> bool:
    """Return whether a call may make a mapping that only five levels can have, or asks what lies above four.

    The arguments of shmat are the place and the length of the attach. UFFDIO_REGISTER and UNREGISTER there are EINVAL,
    and ENOMEM in v6.1, because nothing is mapped above them either.
    """
    if name in ("uffdio_register", "uffdio_unregister"):
        return args[0] >= TASK_SIZE
    if name in ("mmap", "shmat"):
        return args[0] > 0 and args[0] + args[1] > TASK_SIZE
    return name == "mremap" and args[3] & _NAMES_A_PLACE != 0 and args[4] + args[2] > TASK_SIZE
