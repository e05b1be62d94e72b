"""Compares two moments of an address space: what came, what went, what changed, what moved. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from shared.recording.address_space import AddressSpace, Vma
from shared.recording.physical import entry_pfn
from shared.trace.event import PRESENT, PSE, SPECIAL, nth_of, run_of
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE


class How(Enum):
    """What became of a page or of a VMA. The value is the mark in a text view."""

    CAME = "+"
    WENT = "-"
    CHANGED = "*"
    MOVED = ">"
    """The same frame at another address."""


class VmaChange(NamedTuple):
    """What became of a VMA."""

    how: How
    before: Vma | None
    after: Vma | None


class PageChange(NamedTuple):
    """What became of pages in a row: the entries of the first page, before and after."""

    how: How
    vaddr: int
    nr_pages: int
    before: int
    after: int
    came_from: int = 0
    """Of MOVED: where the first frame was before."""


def compare_vmas(before: AddressSpace, after: AddressSpace) -> list[VmaChange]:
    """Return the VMAs that differ, by address. One with other bounds that share a page is changed."""
    found: list[VmaChange] = []
    left = {start: vma for start, vma in before.vmas.items() if after.vmas.get(start) != vma}
    for start, vma in sorted(after.vmas.items()):
        if before.vmas.get(start) == vma:
            continue
        old = left.get(start) or next(
            (one for one in left.values() if one.start < vma.end and vma.start < one.end), None
        )
        if old is not None:
            left.pop(old.start, None)
        found.append(VmaChange(How.CHANGED if old is not None else How.CAME, old, vma))
    found += [VmaChange(How.WENT, vma, None) for vma in left.values()]
    return sorted(found, key=lambda change: (change.after or change.before or _NOWHERE).start)


_NOWHERE = Vma(0, 0, 0, 0)


def compare_pages(before: AddressSpace, after: AddressSpace, start: int = 0, end: int = 1 << 47) -> list[PageChange]:
    """Return the pages of [start, end) whose entries differ, in runs of the same kind whose frames count up."""
    old, new = _entries(before, start, end), _entries(after, start, end)
    pages = sorted(page for page in old.keys() | new.keys() if old.get(page) != new.get(page))
    places = {_frame(entry, page): page for page, entry in _entries(before, 0, 1 << 47).items() if _frame(entry, page)}
    return list(_folded(_change(page, old.get(page, 0), new.get(page, 0), places) for page in pages))


def _entries(mm: AddressSpace, start: int, end: int) -> dict[int, int]:
    """Return the entries that are not empty, by page; inside a huge page that of 2 MiB."""
    found: dict[int, int] = {}
    for run in mm.runs(start, end):
        first = run.vaddr >> PAGE_SHIFT
        is_huge = run.entry & PRESENT and run.entry & PSE
        entries = [run.entry] * run.nr_pages if is_huge else run_of(run.entry, run.nr_pages)
        found.update(zip(range(first, first + run.nr_pages), entries, strict=True))
    return {page: entry for page, entry in found.items() if start <= page << PAGE_SHIFT < end}


def _frame(entry: int, page: int) -> int:
    """Return the frame of a page; 0 for none, and for the zero page."""
    if not entry & PRESENT or entry & SPECIAL:
        return 0
    return entry_pfn(entry) + (page & 511 if entry & PSE else 0)


def _change(page: int, old: int, new: int, places: dict[int, int]) -> PageChange:
    vaddr = page << PAGE_SHIFT
    was, frame = _frame(old, page), _frame(new, page)
    if frame and frame != was and places.get(frame, page) != page:
        return PageChange(How.MOVED, vaddr, 1, old, new, places[frame] << PAGE_SHIFT)
    how = How.CAME if not old else How.WENT if not new else How.CHANGED
    return PageChange(how, vaddr, 1, old, new)


def _folded(changes: Iterator[PageChange]) -> Iterator[PageChange]:
    last: PageChange | None = None
    for change in changes:
        if last is not None and _goes_on(last, change):
            last = last._replace(nr_pages=last.nr_pages + 1)
            continue
        if last is not None:
            yield last
        last = change
    if last is not None:
        yield last


def _goes_on(run: PageChange, change: PageChange) -> bool:
    count = run.nr_pages
    return (
        change.how is run.how
        and change.vaddr == run.vaddr + count * PAGE_SIZE
        and change.before == nth_of(run.before, count)
        and change.after == nth_of(run.after, count)
        and change.came_from == (run.came_from + count * PAGE_SIZE if run.came_from else 0)
    )
