"""Searches in a record: when did this page get its frame? When did this frame change hands? Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shared.recording.physical import entry_pfn
from shared.recording.reader import Recording
from shared.trace import events as ev
from shared.trace import state_events as st
from shared.trace.event import PRESENT, SPECIAL, nth_of
from shared.trace.record import Record
from shared.uapi.page import PAGE_SHIFT

ENTRIES = frozenset({ev.PTE_SET.number, ev.PTE_REPLACE.number, ev.PTE_CLEAR.number, st.ACCESSED_DIRTY.number})
_FRAMES = frozenset(
    {
        ev.MM_PAGE_ALLOC.number, ev.MM_PAGE_FREE.number, st.ADD_TO_PAGE_CACHE.number, st.DELETE_FROM_PAGE_CACHE.number,
        st.ADD_TO_SWAP_CACHE.number, st.DELETE_FROM_SWAP_CACHE.number,
    }
)  # fmt: skip
_TABLES = frozenset({st.TABLE_ALLOC.number, st.TABLE_FREE.number})


class EntryChange(NamedTuple):
    """What an event did to the entry of one page."""

    number: int
    record: Record
    vaddr: int
    old: int
    new: int


def entry_changes(
    recording: Recording, mm: int, start: int, end: int, first: int = 0, last: int | None = None
) -> Iterator[EntryChange]:
    """Yield what the events from `first` up to `last` did to the pages of [start, end), page-aligned, one by one."""
    for number, record in recording.records(first, last, ENTRIES):
        fields = record.fields
        if fields["mm"] != mm:
            continue
        run_start, pages = fields["vaddr"], fields["nr_pages"]
        low, high = max(start, run_start), min(end, run_start + (pages << PAGE_SHIFT))
        for vaddr in range(low, high, 1 << PAGE_SHIFT):
            offset = (vaddr - run_start) >> PAGE_SHIFT
            yield EntryChange(number, record, vaddr, nth_of(fields["old"], offset), nth_of(fields["new"], offset))


def frame_history(
    recording: Recording, pfn: int, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, Record]]:
    """Yield the events that name a frame: it was taken, mapped, cached, unmapped, freed."""
    for number, record in recording.records(first, last, ENTRIES | _FRAMES | _TABLES):
        fields = record.fields
        if record.event.number in ENTRIES:
            pages = fields["nr_pages"]
            if _names(fields["old"], pages, pfn) != _names(fields["new"], pages, pfn):
                yield number, record
        elif fields["pfn"] <= pfn < fields["pfn"] + fields.get("nr_pages", 1):
            yield number, record


def _names(entry: int, pages: int, pfn: int) -> int:
    """Return which page of a run names a frame, counted from 1; 0 for none."""
    if not entry & PRESENT or entry & SPECIAL:
        return 0
    offset = pfn - entry_pfn(entry)
    return offset + 1 if 0 <= offset < pages else 0
