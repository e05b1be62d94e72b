"""A stand-in for `shared.client.Process`: answers from a script, remembers what it was asked. No daemon."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable

from shared.client import KerneldGone, realmem
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE, SHADOW_PTE

BASE = 0x7F00_0000_0000
PID = 4242
MAPS = """\
00400000-00402000 r-xp 00000000 08:02 17 /opt/app/program
00e03000-00e05000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000004000 rw-p 00000000 00:00 0
7ffc00000000-7ffc01000000 rw-p 00000000 00:00 0 [stack]
"""

Cells = list[tuple[int, int]]
"""flags and pfn of the pages from the start of the range on; the rest of the range is 0, 0."""


def end_by(signo: int) -> Callable[[], None]:
    """Return what to do after the last table: send this process `signo`."""
    return lambda: os.kill(os.getpid(), signo)


class FakeMachine:
    """Shows `tables` one after the other, then does `at_last`; a further look shows the last one again.

    `live` is the pids that there are; `refuse` an errno for open; `frames` the contents by pfn, others are EINVAL.
    """

    def __init__(self, tables: list[Cells] | None = None, at_last: Callable[[], None] | None = None) -> None:
        self.tables = tables or [[]]
        self.at_last = at_last or end_by(signal.SIGINT)
        self.live = {PID}
        self.live_until_table: int | None = None
        self.refuse = 0
        self.explanation = ""
        self.frames: dict[int, bytes] = {}
        self.calls: list[str] = []
        self.looks = 0
        self.span = (0, 0)
        self.entries = 0
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self._ours.fileno()

    def read_proc(self, path: str) -> bytes:
        if path == "kerneld/explanation":
            return self.explanation.encode()
        self.calls.append("read_proc")
        pid = int(path.partition("/")[0])
        gone = self.live_until_table is not None and self.looks > self.live_until_table
        if pid not in self.live or gone:
            raise OSError(errno.ENOENT, "No such file or directory")
        return MAPS.encode()

    def shadowpt_open(self, target: int, start: int, end: int, entries: int, *, host: bool = False) -> tuple[int, int]:
        self.calls.append("open")
        if self.refuse or target not in self.live:
            raise OSError(self.refuse or errno.EINVAL, os.strerror(self.refuse or errno.EINVAL))
        # As the real one does: the memory must be there, whole.
        self.span = (start, min(end, start + MAX_SPT_RANGE))
        size = (self.span[1] - start) // PAGE_SIZE * SHADOW_PTE.size
        assert realmem.find_mapping(entries) is not None
        assert realmem.find_mapping(entries + size - 1) is not None
        self.entries = entries
        return self.span

    def shadowpt_start(self) -> None:
        self.calls.append("start")

    def shadowpt_close(self) -> None:
        self.calls.append("close")
        if self.theirs.fileno() < 0:
            raise KerneldGone("gone")

    def shadowpt_page_contents(self, pfn: int) -> bytes:
        self.calls.append("page_contents")
        if pfn not in self.frames:
            raise OSError(errno.EINVAL, "Invalid argument")
        return self.frames[pfn]

    def snapshot(self) -> bytes:
        cells = self.tables[min(self.looks, len(self.tables) - 1)]
        self.looks += 1
        if self.looks == len(self.tables):
            self.at_last()
        start, end = self.span
        pages = (end - start) // PAGE_SIZE
        padded = cells + [(0, 0)] * (pages - len(cells))
        return b"".join(
            SHADOW_PTE.pack(start + index * PAGE_SIZE, pfn, flags) for index, (flags, pfn) in enumerate(padded)
        )

    def close(self) -> None:
        self.calls.append("detach")
        self._ours.close()
        self.theirs.close()
