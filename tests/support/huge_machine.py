"""A machine whose anonymous memory gets huge pages, a listener that must see every change, and what its tests ask."""

from __future__ import annotations

import numpy as np

from kerneld.hw.paging import PTE_PSE, entry_pfn, present_mask, pte_pfn
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space.mm import MmStruct
from kerneld.shadowpt.describe import describe, describe_page
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Vaddr
from tests.support.machine import ANON, BASE, RW, Machine, load, mmap, store

HUGE = PMD_SIZE >> PAGE_SHIFT
"""Pages of a huge page."""


class HugeMachine(Machine):
    """A machine with `--thp always`, or as said."""

    def __init__(
        self,
        ram_bytes: int = 24 << 20,
        thp: TransparentHugepage = TransparentHugepage.ALWAYS,
        pages: int = 4 * HUGE,
        *,
        swap_bytes: int = 0,
        reclaims: bool = False,
    ) -> None:
        super().__init__(ram_bytes, swap_bytes, reclaims=reclaims)
        self.sysctl.transparent_hugepage = thp
        self.watched = (BASE, BASE + pages * PAGE_SIZE)

    def new_mm(self) -> MmStruct:
        mm = super().new_mm()
        mm.notifiers.append(Shadow(mm, *self.watched))
        return mm

    def fork(self, mm: MmStruct) -> MmStruct:
        child = super().fork(mm)
        child.notifiers.append(Shadow(child, *self.watched))
        return child

    def check(self) -> None:
        super().check()
        for mm in self.mms:
            for shadow in mm.notifiers:
                assert isinstance(shadow, Shadow)
                shadow.check()


class Shadow:
    """A copy of what `describe` says of a range, brought up to date by notifications alone."""

    def __init__(self, mm: MmStruct, start: Vaddr, end: Vaddr) -> None:
        self.mm, self.start, self.end = mm, start, end
        self.flags, self.pfns = describe(mm, start, end)
        self.released = False

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        low, high = max(start, self.start), min(end, self.end)
        if low < high:
            first, last = (low - self.start) >> PAGE_SHIFT, (high - self.start) >> PAGE_SHIFT
            self.flags[first:last], self.pfns[first:last] = describe(self.mm, low, high)

    def release(self) -> None:
        self.released = True

    def exec_mmap(self, new_mm: MmStruct) -> None:
        raise AssertionError

    def check(self) -> None:
        """The copy is what is there, and one page at a time the same is said."""
        flags, pfns = describe(self.mm, self.start, self.end)
        assert np.array_equal(flags, self.flags)
        assert np.array_equal(pfns, self.pfns)
        for page in range(0, len(flags), 37):
            said = describe_page(self.mm, self.start + (page << PAGE_SHIFT))
            assert said == (int(flags[page]), int(pfns[page]))


def huge(number: int) -> Vaddr:
    """Return the address of a huge page counted from BASE."""
    return BASE + number * PMD_SIZE


def sizes(mm: MmStruct, count: int = 4) -> str:
    """Return how each 2 MiB from BASE on is mapped: H huge page, Z huge zero page, t leaf table, - not at all."""
    found = ""
    words = mm.frames.ram.words
    for number in range(count):
        pmd = mm.page_table.find_pmd(huge(number))
        entry = words[pmd] if pmd is not None else 0
        zero = pte_pfn(entry) == mm.frames.huge.zero_pfn
        found += "-" if not entry else "t" if not entry & PTE_PSE else "Z" if zero else "H"
    return found


def entry_at(mm: MmStruct, vaddr: Vaddr) -> int:
    """Return the entry, of either size, that is there for an address; 0 where none is."""
    at = mm.page_table.find_leaf(vaddr)
    return 0 if at is None else mm.frames.ram.words[at]


def frame_at(mm: MmStruct, vaddr: Vaddr) -> int:
    """Return the frame that an address is mapped to."""
    entry = entry_at(mm, vaddr)
    assert entry
    return entry_pfn(entry, vaddr)


def frames_of(mm: MmStruct, start: Vaddr, end: Vaddr) -> list[int]:
    """Return the frame of each page of a range, 0 where none is mapped."""
    entries = mm.page_table.walk.entries(start, end)
    frames: list[int] = (pte_pfn(entries) * present_mask(entries)).tolist()
    return frames


def marked(mm: MmStruct, pages: int, at: int = BASE) -> None:
    """Make writable memory in which some pages have a mark of their own, in huge pages as far as there are some."""
    mmap(mm, pages, RW, ANON, at=at)
    for number in [*range(0, pages, 61), pages - 1]:
        store(mm, at + number * PAGE_SIZE, number.to_bytes(4, "little"))


def check_marks(mm: MmStruct, pages: int, at: int = BASE) -> None:
    for number in [*range(0, pages, 61), pages - 1]:
        assert load(mm, at + number * PAGE_SIZE, 4) == number.to_bytes(4, "little")
