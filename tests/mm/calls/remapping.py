"""What the tests of mremap share: flags, a call in pages, and pages with a number in each."""

from __future__ import annotations

from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Map, Mremap
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import (
    ANON,
    page,
    pfn_of,
    store,
)

MAYMOVE = Mremap.MAYMOVE.value


TO = MAYMOVE | Mremap.FIXED.value


KEEP = MAYMOVE | Mremap.DONTUNMAP.value


LOCKED = ANON | Map.LOCKED.value


def remap(mm: MmStruct, first: int, old: int, new: int, flags: int = 0, to: int = 0) -> int:
    """Remap pages counted from BASE; `to` is an address."""
    return do_mremap(mm, page(first), old * PAGE_SIZE, new * PAGE_SIZE, flags, to, privileged=False)


def write_pages(mm: MmStruct, first: int, count: int) -> list[int]:
    """Write each page's number into it and return the frames."""
    for number in range(first, first + count):
        store(mm, page(number), bytes([number]))
    return frames(mm, page(first), count)


def frames(mm: MmStruct, start: int, count: int) -> list[int]:
    return [pfn_of(mm, start + number * PAGE_SIZE) for number in range(count)]
