"""The table as values: entries, changes since the last print, runs of similar pages, counts. Pure.

Knows the layout of a shadow_pte. Does not know where the bytes come from, or how they are printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import SHADOW_PTE, Spte


class Entry(NamedTuple):
    """One shadow_pte: the page's address, its frame (0: none), its state_flags."""

    vaddr: int
    pfn: int
    flags: int


class Change(Enum):
    """The change of an entry since the last print. The value is the mark in the first column."""

    NONE = " "
    GAINED = "+"
    LOST = "-"
    ALTERED = "*"


class Frames(Enum):
    """The order of the frames in a run."""

    ABSENT = "absent"
    CONSECUTIVE = "consecutive"
    SAME = "same"


class Run(NamedTuple):
    """Similar consecutive pages: the first entry, the number of pages, the order of their frames, their change."""

    first: Entry
    pages: int
    frames: Frames
    change: Change

    @property
    def end(self) -> int:
        """The address after the last page."""
        return self.first.vaddr + self.pages * PAGE_SIZE


class Counts(NamedTuple):
    """The number of entries of a print, and the number of entries with each flag."""

    pages: int
    allocated: int
    anonymous: int
    mapped: int


def parse_table(raw: bytes, start: int, end: int) -> list[Entry]:
    """Return the entries of the table of [start, end), page-aligned. `raw` may have more bytes after them."""
    pages = (end - start) // PAGE_SIZE
    return [Entry(*fields) for fields in SHADOW_PTE.iter_unpack(raw[: pages * SHADOW_PTE.size])]


def count(entries: Sequence[Entry]) -> Counts:
    """Return the counts of `entries`."""
    return Counts(
        pages=len(entries),
        allocated=sum(1 for entry in entries if entry.flags & Spte.VADDR_ALLOCATED),
        anonymous=sum(1 for entry in entries if entry.flags & Spte.VADDR_ANONYMOUS),
        mapped=sum(1 for entry in entries if entry.flags & Spte.PTE_MAPPED),
    )


def change_of(before: Entry, now: Entry) -> Change:
    """Return the change of one page between two prints: it gained flags, lost flags, or changed in another way."""
    if (before.flags, before.pfn) == (now.flags, now.pfn):
        return Change.NONE
    gained, lost = now.flags & ~before.flags, before.flags & ~now.flags
    if gained and not lost:
        return Change.GAINED
    if lost and not gained:
        return Change.LOST
    return Change.ALTERED


def diff(before: Sequence[Entry] | None, now: Sequence[Entry]) -> list[Change]:
    """Return the change of each entry of `now`. For the first print `before` is None, and all changes are NONE."""
    if before is None:
        return [Change.NONE] * len(now)
    return [change_of(old, new) for old, new in zip(before, now, strict=True)]


def fold(entries: Sequence[Entry], changes: Sequence[Change]) -> Iterator[Run]:
    """Yield the runs of similar pages in order: same flags, same change, and frames absent, consecutive or all equal.

    Many pages have the same frame after reads of fresh anonymous memory: it is the zero page.
    """
    run: Run | None = None
    for entry, change in zip(entries, changes, strict=True):
        longer = run and extend(run, entry, change)
        if longer:
            run = longer
            continue
        if run:
            yield run
        run = run_of_one(entry, change)
    if run:
        yield run


def unfolded(entries: Sequence[Entry], changes: Sequence[Change]) -> Iterator[Run]:
    """Yield one run for each entry."""
    for entry, change in zip(entries, changes, strict=True):
        yield from fold([entry], [change])


def run_of_one(entry: Entry, change: Change) -> Run:
    """Return the run of one page."""
    return Run(entry, 1, Frames.CONSECUTIVE if entry.flags & Spte.PTE_MAPPED else Frames.ABSENT, change)


def extend(run: Run, entry: Entry, change: Change) -> Run | None:
    """Return `run` with `entry` as its next page, or None if `entry` does not fit the run."""
    if entry.flags != run.first.flags or change is not run.change:
        return None
    if run.frames is Frames.ABSENT:
        return run._replace(pages=run.pages + 1)
    if run.frames is Frames.CONSECUTIVE and entry.pfn == run.first.pfn + run.pages:
        return run._replace(pages=run.pages + 1)
    # A run of one page may still become a run of equal or of consecutive frames.
    if entry.pfn == run.first.pfn and (run.frames is Frames.SAME or run.pages == 1):
        return run._replace(pages=run.pages + 1, frames=Frames.SAME)
    return None
