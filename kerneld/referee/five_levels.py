"""A host whose processor and kernel have page tables of five levels (LA57): its users have 56 bits of addresses.

Nothing is mapped above the 47th bit unless a program asks for it, and kerneld's four levels cannot: what would be put
there is passed over on both sides. An access there finds nothing mapped, where on four levels it is no address at all,
and calls take ranges there for empty. Answers to Linux v6.8 arch/x86/include/asm/page_64.h:task_size_max().
"""

from __future__ import annotations

from typing import Any

from kerneld.mm.calls import mincore, mremap
from kerneld.mm.space import munmap
from kerneld.referee import later_mremap, later_rules
from kerneld.task import cpu, trap
from shared.uapi.mman import Mremap
from shared.uapi.page import PAGE_SIZE, TASK_SIZE

_USER_END = 1 << 56
TASK_SIZE_5LEVEL = _USER_END - PAGE_SIZE
_NAMES_A_PLACE = (Mremap.FIXED | Mremap.DONTUNMAP).value
RULES: tuple[tuple[Any, str, int], ...] = (
    *((module, "TASK_SIZE", TASK_SIZE_5LEVEL) for module in (mincore, mremap, munmap, trap, later_mremap, later_rules)),
    (cpu, "_CANONICAL_END", _USER_END),
    (cpu, "_KERNEL_HALF", (1 << 64) - _USER_END),
)
"""Each in that module alone: others mean what kerneld can map."""


def is_out_of_reach(name: str, args: tuple[int, ...]) -> bool:
    """Tell whether a call may put a mapping where only five levels reach."""
    if name == "mmap":
        return args[0] > 0 and args[0] + args[1] > TASK_SIZE
    return name == "mremap" and args[3] & _NAMES_A_PLACE != 0 and args[4] + args[2] > TASK_SIZE
