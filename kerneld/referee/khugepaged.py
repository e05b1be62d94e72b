"""Keeps khugepaged busy, so that it does not change the programs of a run.

khugepaged scans address spaces in the order in which they got huge pages, a few times 2 MiB every ten seconds. It would
make huge pages of a program's small pages; kerneld has no khugepaged. It skips an address space whose mmap_lock is
taken. So this is a separate process that does nothing. It also skips a mapping that never had a page, because that has
no anon_vma. So this process stores one byte. Source: Linux v6.8 mm/khugepaged.c:khugepaged_scan_mm_slot(),
__khugepaged_enter(), which wakes it where nobody was there before, and mm/huge_memory.c:hugepage_vma_check(). Run as a
program, by `keeper`.
"""

from __future__ import annotations

import mmap

from kerneld.referee.keeper import keep
from shared.uapi.mman import Madv, Map

_DECOY_BYTES = 64 << 30
"""At 16 MiB every ten seconds this takes hours."""


def main() -> None:
    """Give khugepaged empty memory of this process to scan, until standard input ends."""
    flags = (Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE).value
    with mmap.mmap(-1, _DECOY_BYTES, flags=flags) as decoy:
        decoy.madvise(Madv.HUGEPAGE)
        decoy[0] = 1
        keep()


if __name__ == "__main__":
    main()
