"""The VMAs that map one inode, and a search for the VMAs that map given pages.

Knows only bounds. Answers to Linux v6.8 include/linux/fs.h (address_space.i_mmap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerneld.mm.intervals import Intervals

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma

    _MmOfVma = Intervals[Vma, MmStruct]
else:
    _MmOfVma = Intervals


class IMmap(_MmOfVma):
    """Each VMA with its address space (Linux: mapping->i_mmap)."""

    def bounds(self, item: Vma) -> tuple[int, int]:
        """Return the pages of the file that a VMA maps."""
        return item.pgoff, item.pgoff + item.nr_pages
