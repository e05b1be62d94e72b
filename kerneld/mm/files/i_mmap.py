"""The VMAs that map one inode, and a search for the VMAs that map given pages.

Knows only bounds. One process may map a file 65,530 times, and each of its VMAs may be inserted, moved or removed
between two searches. So neither may look at all VMAs. Answers to Linux v6.8 mm/interval_tree.c.

Differs from Linux: there is no tree. VMAs of the same length, to the next power of two, are in buckets by their first
page: a VMA of up to 2^k pages that begins in bucket b, of 2^k pages, ends in bucket b or b + 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma

_FEW = 32
"""Up to this number of VMAs, a loop over all of them is as fast as a search in buckets, and there are none."""
_Buckets = dict[int, "Vma | dict[Vma, None]"]
"""By number, the VMAs of each bucket that has any: very often it is one."""


class IMmap(dict["Vma", "MmStruct"]):
    """Each VMA with its address space (Linux: mapping->i_mmap)."""

    def __init__(self) -> None:
        super().__init__()
        self._by_shift: dict[int, _Buckets] | None = None
        """The buckets of 2^shift pages each; None while there are few VMAs."""

    def __setitem__(self, vma: Vma, mm: MmStruct) -> None:
        super().__setitem__(vma, mm)
        if self._by_shift is not None:
            self.insert(vma)
        elif len(self) > _FEW:
            self._by_shift = {}
            for each in self:
                self.insert(each)

    def __delitem__(self, vma: Vma) -> None:
        super().__delitem__(vma)
        self.remove(vma)
        if len(self) <= _FEW // 2:
            self._by_shift = None

    def insert(self, vma: Vma) -> None:
        """Put a VMA into the bucket of its bounds: after they have changed (Linux: vma_interval_tree_insert())."""
        if self._by_shift is None:
            return
        shift, number = _bucket_of(vma)
        buckets = self._by_shift.setdefault(shift, {})
        there = buckets.get(number)
        if there is None:
            buckets[number] = vma
        elif isinstance(there, dict):
            there[vma] = None
        else:
            buckets[number] = {there: None, vma: None}

    def remove(self, vma: Vma) -> None:
        """Take a VMA out of its bucket: before its bounds change (Linux: vma_interval_tree_remove())."""
        if self._by_shift is None:
            return
        shift, number = _bucket_of(vma)
        buckets = self._by_shift[shift]
        there = buckets[number]
        if isinstance(there, dict) and len(there) > 1:
            del there[vma]
        else:
            del buckets[number]
            if not buckets:
                del self._by_shift[shift]

    def overlapping(self, first: int, last: int) -> list[Vma]:
        """Return the VMAs that map a page of [first, last). Source: Linux v6.8 mm/interval_tree.c."""
        if self._by_shift is None:
            return _those_in(self, first, last)
        found: list[Vma] = []
        for shift, buckets in self._by_shift.items():
            low, high = (first >> shift) - 1, (last - 1) >> shift
            few = high - low < len(buckets)
            for number in range(low, high + 1) if few else list(buckets):
                there = buckets.get(number)
                if there is not None:
                    vmas = there if isinstance(there, dict) else (there,)
                    is_inside = first <= number << shift and (number + 1) << shift <= last
                    found += vmas if is_inside else _those_in(vmas, first, last)
        return found


def _bucket_of(vma: Vma) -> tuple[int, int]:
    shift = (vma.nr_pages - 1).bit_length()
    return shift, vma.pgoff >> shift


def _those_in(vmas: Iterable[Vma], first: int, last: int) -> list[Vma]:
    return [vma for vma in vmas if vma.pgoff < last and first < vma.pgoff + vma.nr_pages]
