"""Whether a huge page is shared, as newer kernels know it. The rules replace kerneld's own while the referee runs.

A huge page has two places, each for an address space and the number of its mappings: entries of 2 MiB and small ones.
Mappings of a third address space are counted in the total alone. If a place becomes free, the next mapping takes it,
whosever it is; the earlier mappings of that address space stay uncounted. So a huge page that three had mapped may
count as shared although one maps it. Source: Linux v6.15 include/linux/rmap.h:folio_add_large_mapcount(),
folio_sub_large_mapcount().
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from kerneld.hw.paging import PTE_SPECIAL, counted_mask, pte_pfn
from kerneld.mm.frames.frames import Frames, Pfns
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE
from kerneld.mm.space.pages import Pages
from kerneld.mm.space.pagewalk import Words
from kerneld.mm.space.rss import RssStat
from kerneld.referee.difference import OnTop
from shared.uapi.page import Pfn, Vaddr


class _Place:
    __slots__ = ("mappings", "owner")

    def __init__(self) -> None:
        self.owner: RssStat | None = None
        self.mappings = 0


class Owners:
    """Who maps one huge page. An address space is named by its `RssStat`."""

    def __init__(self) -> None:
        self.total = 0
        self.is_shared = False
        self._places = (_Place(), _Place())

    def add(self, owner: RssStat, mappings: int) -> None:
        """Count new mappings of an address space."""
        self.total += mappings
        place = self._find(owner)
        if place is None:
            place = self._find(None)
            if place is None:
                return
            place.owner = owner
            self.is_shared |= self.total != mappings
        place.mappings += mappings

    def remove(self, owner: RssStat, mappings: int) -> None:
        """Uncount mappings that have gone."""
        self.total -= mappings
        place = self._find(owner)
        if place is not None:
            place.mappings -= mappings
            if place.mappings > 0:
                return
            place.owner, place.mappings = None, 0
        if any(place.mappings == self.total for place in self._places):
            self.is_shared = False

    def _find(self, owner: RssStat | None) -> _Place | None:
        return next((place for place in self._places if place.owner is owner), None)


_owners: WeakKeyDictionary[Frames, dict[Pfn, Owners]] = WeakKeyDictionary()
"""For each machine, by the first frame of a huge page. A huge page that has been split leaves its entry behind."""


def maybe_mapped_shared(frames: Frames, pfn: Pfn) -> bool:
    """Return whether a frame's huge page counts as shared. Source: Linux v6.15 mm.h:folio_maybe_mapped_shared()."""
    return _owners[frames][pfn & -HPAGE_PMD_NR].is_shared


def _add(rss: RssStat, pfns: Pfns) -> None:
    for owners, number in _large(rss, pfns):
        owners.add(rss, number)


def _remove(rss: RssStat, pfns: Pfns) -> None:
    for owners, number in _large(rss, pfns):
        owners.remove(rss, number)


def _large(rss: RssStat, pfns: Pfns) -> list[tuple[Owners, int]]:
    """Return the huge pages of which frames are among these, and how many."""
    frames = rss._frames
    heads, numbers = np.unique(pfns[frames.has(pfns, PG_LARGE)] & -HPAGE_PMD_NR, return_counts=True)
    return [(_owners[frames][head], number) for head, number in zip(heads.tolist(), numbers.tolist(), strict=True)]


def _hold_huge(earlier: Callable[[RssStat, Pfn], None]) -> Callable[[RssStat, Pfn], None]:
    def hold_huge(self: RssStat, head: Pfn) -> None:
        machine = _owners.setdefault(self._frames, {})
        if not self._frames.mapcount[head : head + HPAGE_PMD_NR].any():
            machine[head] = Owners()
        machine[head].add(self, 1)
        earlier(self, head)

    return hold_huge


def _let_go_huge(earlier: Callable[[RssStat, Pfn], None]) -> Callable[[RssStat, Pfn], None]:
    def let_go_huge(self: RssStat, head: Pfn) -> None:
        _owners[self._frames][head].remove(self, 1)
        earlier(self, head)

    return let_go_huge


def _split_huge_pmd(earlier: Callable[[Pages, int, Vaddr], None]) -> Callable[[Pages, int, Vaddr], None]:
    """The small entries come before the one of 2 MiB goes. Source: Linux v6.15 mm/huge_memory.c:
    __split_huge_pmd_locked()."""

    def split_huge_pmd(self: Pages, pmd: int, haddr: Vaddr) -> None:
        entry = self._words[pmd]
        if not entry & PTE_SPECIAL:
            owners = _owners[self._frames][pte_pfn(entry)]
            owners.add(self.rss, HPAGE_PMD_NR)
            owners.remove(self.rss, 1)
        earlier(self, pmd, haddr)

    return split_huge_pmd


def _share_pte(earlier: Callable[..., None]) -> Callable[..., None]:
    def share_pte(self: Pages, pte: int, vaddr: Vaddr, entry: int, pfn: Pfn) -> None:
        _add(self.rss, np.array([pfn]))
        earlier(self, pte, vaddr, entry, pfn)

    return share_pte


def _counted(count: Callable[[RssStat, Pfns], None], pfns: Callable[[Any], Pfns]) -> OnTop:
    """Return a rule that counts the frames of its argument, and then does as before."""

    def make(earlier: Callable[[RssStat, Any], None]) -> Callable[[RssStat, Any], None]:
        @functools.wraps(earlier)
        def counted(self: RssStat, given: Any) -> None:
            count(self, pfns(given))
            earlier(self, given)

        return counted

    return OnTop(make)


def _pfns(entries: Words) -> Pfns:
    return pte_pfn(entries[counted_mask(entries)]).astype(np.int64)


def _pfns_of_one(entry: int) -> Pfns:
    return _pfns(np.array([entry], dtype=np.uint64))


TRACKING: tuple[tuple[Any, str, Any], ...] = (
    (RssStat, "hold_huge", OnTop(_hold_huge)),
    (RssStat, "let_go_huge", OnTop(_let_go_huge)),
    (RssStat, "share_many", _counted(_add, _pfns)),
    (RssStat, "let_go", _counted(_remove, _pfns_of_one)),
    (RssStat, "let_go_many", _counted(_remove, _pfns)),
    (RssStat, "unmap", _counted(_remove, lambda pfns: pfns)),
    (Pages, "share_pte", OnTop(_share_pte)),
    (Pages, "split_huge_pmd", OnTop(_split_huge_pmd)),
)
"""What counts mappings of huge pages: the rules of a `Known`."""
