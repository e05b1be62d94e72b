"""Pages and addresses: sizes, masks, and the names of three kinds of numbers that must not be mixed up.

`Vaddr`, `Pfn` and `Pid` are plain aliases of int. A NewType would not do: an arithmetic result of it is an int, and
each computation on the hottest paths of the kernel would need a call to convert it back. In signatures the names
document the kind of number.
"""

from __future__ import annotations

from typing import TypeAlias

Vaddr: TypeAlias = int
"""A virtual address, in bytes."""
Pfn: TypeAlias = int
"""A page frame number: a physical address divided by PAGE_SIZE."""
Pid: TypeAlias = int
"""A process id (Linux's tgid), as the daemon's pid namespace shows it."""

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = ~(PAGE_SIZE - 1)
PMD_SHIFT = 21
PMD_SIZE = 1 << PMD_SHIFT
"""The size that one leaf table, or one huge page, maps: 2 MiB."""
TASK_SIZE = 0x7FFF_FFFF_F000
"""The end of user space: Linux v6.8 arch/x86/include/asm/page_64_types.h TASK_SIZE_MAX with four-level tables."""


def page_align(length: int) -> int:
    """Round a length or an address in bytes up to a whole page (Linux: PAGE_ALIGN)."""
    return (length + PAGE_SIZE - 1) & PAGE_MASK
