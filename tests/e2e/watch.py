"""A shadow page table in an actor's memory, as the test sees it, and what the target's own /proc says instead.

Reading a Watch makes no call: the actor reads its own real memory through a view that it made before the table was
opened.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tests.e2e import scripts
from tests.support.client import Client

PAGE = 4096
START = 0x20_0000_0000
ALLOCATED, ANONYMOUS, MAPPED = 1, 2, 4
LETTERS = {0: ".", ALLOCATED: "a", ALLOCATED | ANONYMOUS: "A", ALLOCATED | MAPPED: "m", 7: "M"}
_ROW = struct.Struct("<QQQ")


class Row(NamedTuple):
    """One struct shadow_pte."""

    vaddr: int
    pfn: int
    flags: int


def rows_of(raw: bytes, pages: int) -> list[Row]:
    """Return the entries of a table's bytes."""
    return [Row(*fields) for fields in _ROW.iter_unpack(raw[: pages * _ROW.size])]


def table_bytes(pages: int) -> int:
    """Return the size of a table, rounded up to pages."""
    return -(-pages * _ROW.size // PAGE) * PAGE


class Watch:
    """The table of `pages` pages of `target` from `start`, in the memory of `inspector`."""

    def __init__(self, inspector: Client, target: Client, start: int = START, pages: int = 8) -> None:
        self.inspector = inspector
        self.target = target
        self.start = start
        self.pages = pages
        self.entries: int = inspector.run(scripts.map_entries, table_bytes(pages))

    def open(self) -> Watch:
        """Open it; nothing is tracked yet."""
        end = self.start + self.pages * PAGE
        assert self.inspector.p.shadowpt_open(self.target.pid, self.start, end, self.entries) == (self.start, end)
        return self

    def begin(self) -> Watch:
        """Open and start it."""
        self.open()
        self.inspector.p.shadowpt_start()
        return self

    def rows(self) -> list[Row]:
        """Return the entries as they lie in the inspector's memory."""
        return rows_of(self.inspector.run(scripts.read_view), self.pages)

    def letters(self) -> str:
        """Return a letter a page: `.` nothing, `a` allocated, `A` anonymous too, `m` and `M` where mapped."""
        rows = self.rows()
        assert [row.vaddr for row in rows] == [self.start + index * PAGE for index in range(self.pages)]
        assert all((row.pfn != 0) == bool(row.flags & MAPPED) for row in rows)
        return "".join(LETTERS[row.flags] for row in rows)

    def pfns(self) -> list[int]:
        """Return each page's frame, 0 for none."""
        return [row.pfn for row in self.rows()]

    def sequence(self) -> int:
        """Return the sequence word as it lies in the inspector's memory."""
        return self.inspector.run(scripts.sequence)

    def truth(self) -> list[Row]:
        """Return what the entries should be, from the target's own maps and pagemap."""
        return [Row(*row) for row in self.target.run(scripts.own_pages, self.start, self.pages)]

    def is_true(self) -> bool:
        """Compare the table with the target's own view."""
        rows = self.rows()
        return rows == self.truth()
