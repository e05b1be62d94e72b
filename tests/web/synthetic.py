"""Records that no machine has made: a process with very many pages, and changes that come very fast."""

from __future__ import annotations

from shared.page.package import one_file
from shared.recording.chunks import EVENTS, KEY, Chunk, make_chunk
from shared.recording.head import make_head
from shared.trace import events as ev
from shared.trace import state_events as st
from shared.trace.event import Event
from shared.uapi.page import PAGE_SIZE
from tests.support.programs import page

PID, MM, FIRST_PFN = 42, 1, 16
ENTRY = 0x8000_0000_0000_0067
RIGHTS = 0x73
"""Readable, writable, and may be all of it: the flags of an anonymous VMA."""


def record_of(event: Event, *values: int | bytes, causes: int = 0) -> bytes:
    """Return one record of an event."""
    return event.layout.pack(event.layout.size, event.number, PID, PID, causes, 0, 0, PID, 0, *values)


def many_pages(pages: int) -> bytes:
    """Return a key frame of a process that has a frame for each of its pages."""
    frames = pages + 4096
    records = [
        record_of(st.SNAPSHOT_BEGIN, frames, 0, FIRST_PFN, FIRST_PFN),
        record_of(st.SNAPSHOT_TASK, b"large", PID, 1, MM, 0),
        record_of(st.MM_LAYOUT, MM, PID, 0x5555_5555_5000, 0x5555_5555_5000, 0x7FFF_FFFF_E000),
        record_of(ev.VMA_INSERT, MM, page(0), page(pages), RIGHTS, 0),
        record_of(ev.MM_PAGE_ALLOC, FIRST_PFN + 1, pages, 0, 0),
        *(
            record_of(st.TABLE_ALLOC, MM, 1, page(first), FIRST_PFN + 1 + pages + first // 512)
            for first in range(0, pages, 512)
        ),
        record_of(ev.PTE_SET, MM, pages, page(0), 0, ENTRY | (FIRST_PFN + 1) * PAGE_SIZE),
        record_of(ev.RSS_STAT, MM, 1, 1, pages * PAGE_SIZE),
        record_of(st.SNAPSHOT_END, 1),
    ]
    return b"".join(records)


def changes(pages: int, round_: int) -> bytes:
    """Return events that change each of `pages` entries: dirty and not, in turn."""
    events = []
    for n in range(pages):
        entry = ENTRY | (FIRST_PFN + 1 + n) * PAGE_SIZE
        old, new = (entry, entry & ~0x40) if (n + round_) % 2 else (entry & ~0x40, entry)
        events.append(record_of(ev.PTE_REPLACE, MM, 1, page(n), old, new, causes=1))
    return b"".join(events)


def saved(pages: int) -> bytes:
    """Return one HTML file with the record of a process that has so many pages, and one more event."""
    end = record_of(ev.RSS_STAT, MM, 1, 1, pages * PAGE_SIZE)
    chunks: list[Chunk] = [make_chunk(KEY, many_pages(pages), 0, 0), make_chunk(EVENTS, end, 0, 0, 1)]
    return one_file(make_head(pids=(), superuser=True), chunks)
