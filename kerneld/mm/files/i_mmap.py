"""The VMAs that map one inode, and a search for the VMAs that map given pages.

Knows only bounds. One process may map a file 65,530 times. The search for the entries of one page must not look at
all of these VMAs. Answers to Linux v6.8 mm/interval_tree.c.

Differs from Linux: there is no tree. The bounds are in arrays, which are rebuilt at the first search after a change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shared.uapi.page import PAGE_SHIFT

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma

_FEW = 32
"""Up to this number of VMAs, a loop over all of them is as fast as a search in the arrays."""
_Bounds = tuple["list[Vma]", npt.NDArray[np.int64], npt.NDArray[np.int64]]


class IMmap(dict["Vma", "MmStruct"]):
    """Each VMA with its address space (Linux: mapping->i_mmap)."""

    def __init__(self) -> None:
        super().__init__()
        self._bounds: _Bounds | None = None

    def __setitem__(self, vma: Vma, mm: MmStruct) -> None:
        super().__setitem__(vma, mm)
        self._bounds = None

    def __delitem__(self, vma: Vma) -> None:
        super().__delitem__(vma)
        self._bounds = None

    def moved(self) -> None:
        """Note that the bounds of a VMA have changed."""
        self._bounds = None

    def overlapping(self, first: int, last: int) -> list[Vma]:
        """Return the VMAs that map a page of [first, last). Source: Linux v6.8 mm/interval_tree.c."""
        if len(self) <= _FEW:
            return [vma for vma in self if vma.pgoff < last and first < vma.pgoff + vma.nr_pages]
        if self._bounds is None:
            firsts = np.fromiter((vma.pgoff for vma in self), dtype=np.int64, count=len(self))
            sizes = np.fromiter((vma.end - vma.start for vma in self), dtype=np.int64, count=len(self))
            self._bounds = list(self), firsts, firsts + (sizes >> PAGE_SHIFT)
        vmas, firsts, lasts = self._bounds
        return [vmas[at] for at in np.flatnonzero((firsts < last) & (lasts > first)).tolist()]
