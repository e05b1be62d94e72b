"""The VMAs that map one inode, and which of them map some of its pages.

Knows bounds alone. A file may be mapped 65,530 times by one process: who has a page and looks for its entries must not
go through all of them. Answers to Linux v6.8 mm/interval_tree.c.

Differs from Linux: no tree. The bounds are kept as arrays, made anew when somebody asks after they have changed.
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
"""So many are gone through as fast as they are looked up."""
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
        """A VMA has other bounds."""
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
