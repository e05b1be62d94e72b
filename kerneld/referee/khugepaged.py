"""Something for khugepaged to look at: while it does, it leaves the programs of a run alone.

It takes address spaces in the order in which they came to have huge pages, a few times 2 MiB every ten seconds, and
would make a huge page of a program's small ones, which kerneld has nobody for. It goes on to the next where one has its
mmap_lock taken: so this is a process that does nothing. Source: Linux v6.8 mm/khugepaged.c:khugepaged_scan_mm_slot(),
and __khugepaged_enter(), which wakes it where nobody was there before. Run as a program, by `keeper`.
"""

from __future__ import annotations

import mmap

from kerneld.referee.keeper import keep
from shared.uapi.mman import Madv, Map

_DECOY_BYTES = 64 << 30
"""Hours of work, at 16 MiB every ten seconds."""


def main() -> None:
    """Have it look at empty memory of this process, until nobody has the other end of standard input."""
    flags = (Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE).value
    with mmap.mmap(-1, _DECOY_BYTES, flags=flags, prot=0) as decoy:
        decoy.madvise(Madv.HUGEPAGE)
        keep()


if __name__ == "__main__":
    main()
