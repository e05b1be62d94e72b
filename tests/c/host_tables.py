"""Tables of real processes that know nothing of kerneld, as their opener sees them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.client import Process, realmem
from shared.uapi.shadowpt import SHADOW_PTE, Layout, SpteF23, table_bytes
from tests.support.patience import SECONDS

PAGE = 4096


START, PAGES = 0x30_0000_0000, 16


END = START + PAGES * PAGE


A, N, W, M, PW = (int(flag) for flag in SpteF23)


Row = tuple[int, int]
"""state_flags and pfn."""


class Table:
    """An open table of a real process, as the client's own memory shows it."""

    def __init__(self, process: Process, entries: int, start: int, end: int) -> None:
        self.process = process
        self.entries = entries
        self.pages = (end - start) // PAGE

    def rows(self) -> list[Row]:
        """Return the table without a call."""
        raw = realmem.read(self.entries, self.pages * SHADOW_PTE.size)
        return [(flags, pfn) for _vaddr, pfn, flags in SHADOW_PTE.iter_unpack(raw)]

    def flags(self) -> list[int]:
        """Return the flags after a call of the opener's, which brings the table up to date."""
        self.process.getpid()
        return [flags for flags, _pfn in self.rows()]

    def wait_for(self, flags: list[int]) -> None:
        """Wait, without a call, until the daemon's own looks have brought the table to these flags."""
        deadline = time.monotonic() + SECONDS
        while [now for now, _pfn in self.rows()] != flags:
            assert time.monotonic() < deadline, self.rows()
            os.sched_yield()


@contextmanager
def opened(
    path: Path, pid: int, start: int = START, end: int = END, layout: Layout = Layout.F24, *, host: bool = True
) -> Iterator[Table]:
    """Open and start a table of a process; all is closed at the end."""
    with Process.attach(str(path)) as process:
        length = table_bytes(start, end)
        entries = realmem.map_anonymous(length)
        try:
            process.shadowpt_open(pid, start, end, entries, layout=layout, host=host)
            process.shadowpt_start()
            yield Table(process, entries, start, end)
            process.shadowpt_close()
        finally:
            realmem.unmap(entries, length)
