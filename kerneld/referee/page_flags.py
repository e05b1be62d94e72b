"""The flags of the frames that a program has mapped, as /proc/kpageflags shows them: which are compared.

Knows neither kernel. Answers to Linux v6.8 fs/proc/page.c:stable_page_flags() and
include/uapi/linux/kernel-page-flags.h.
"""

from __future__ import annotations

_NAMES = {
    2: "REFERENCED", 3: "UPTODATE", 4: "DIRTY", 5: "LRU", 6: "ACTIVE", 7: "SLAB", 10: "BUDDY", 11: "MMAP", 12: "ANON",
    13: "SWAPCACHE", 14: "SWAPBACKED", 15: "COMPOUND_HEAD", 16: "COMPOUND_TAIL", 17: "HUGE", 18: "UNEVICTABLE",
    20: "NOPAGE", 22: "THP", 24: "ZERO_PAGE", 26: "PGTABLE", 33: "MLOCKED",
}  # fmt: skip
"""The flags that are compared, by bit.

Not compared: LOCKED, WRITEBACK and RECLAIM depend on the moment. Other programs clear IDLE. Kernels from v6.10 on
(dee3d0bef2b0) showed KSM at each anonymous page. The rest is of hardware, of file systems and of the kernel's own
memory.
"""
_ZERO_PAGE = 1 << 24
_OF_ACCESSES = sum(1 << bit for bit in (2, 6))
"""REFERENCED and ACTIVE: they come from the accessed bits of entries too."""
_OTHERS = sum(1 << bit for bit in _NAMES) & ~_OF_ACCESSES
_OF_HISTORY = _OF_ACCESSES | 1 << 4
"""These and DIRTY: the zero pages keep them of all processes that the machine ever had."""


def find_different_flags(
    ours: dict[int, int], hosts: dict[int, int], *, of_accesses: bool = False
) -> tuple[int, str, str] | None:
    """Return the address of the first page whose flags differ, and the flags of both sides in words, or None.

    Compared are the flags that come from accessed bits, or the others.
    """
    if ours == hosts:
        return None
    flags = _OF_ACCESSES if of_accesses else _OTHERS
    for vaddr, mine in sorted(ours.items()):
        theirs = hosts.get(vaddr, mine)
        compared = flags & ~_OF_HISTORY if mine & theirs & _ZERO_PAGE else flags
        if (mine ^ theirs) & compared:
            return vaddr, _show(mine & compared), _show(theirs & compared)
    return None


def _show(word: int) -> str:
    return " ".join(name for bit, name in _NAMES.items() if word >> bit & 1) or "none"
