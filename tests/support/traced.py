"""A whole kernel that can be traced, and a reader of what it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kerneld.mm.limits import Sysctl, TransparentHugepage
from kerneld.syscalls.answer import Answer
from kerneld.syscalls.kernel import KernelConfig
from kerneld.trace.fprobe import FPROBES
from kerneld.trace.tracing import Tracing
from shared.trace.attr import TraceAttr
from shared.trace.event import Event
from shared.trace.reader import Reader
from shared.trace.record import Comm, Entry, Lost, Record
from shared.uapi.syscalls import Nr
from tests.support.programs import ROOT, Program, World


class Trace:
    """An open trace of a program's, read in the test."""

    def __init__(
        self,
        opener: Program,
        *globs: str,
        pids: tuple[int, ...] = (),
        data_pages: int = 256,
        answer: Answer | None = None,
    ) -> None:
        """`answer` is the kernel's, if it has been asked already."""
        if answer is None:
            answer = opener.answer(Nr.PERF_EVENT_OPEN, 0, data=TraceAttr(globs or ("*",), pids, data_pages).pack())
        assert answer.ret > 0
        self.opener = opener
        self.handle = answer.ret
        self.reader = Reader(*answer.fds)
        self.comms: dict[int, str] = {}
        self.lost = 0
        self.told: set[Event] = set()
        """The events that have come so far."""

    def entries(self) -> list[Entry]:
        return list(self.reader.read())

    def records(self, event: Event | None = None) -> list[Record]:
        """Return what has happened since the last look, of one event or of all."""
        found = []
        for entry in self.entries():
            if isinstance(entry, Comm):
                self.comms[entry.pid] = entry.comm
            elif isinstance(entry, Lost):
                self.lost += entry.records
            else:
                self.told.add(entry.event)
                if event is None or entry.event is event:
                    found.append(entry)
        return found

    def during(self, act: Callable[[], Any], event: Event | None = None) -> list[Record]:
        """Return what happens while `act` runs."""
        self.records()
        act()
        return self.records(event)

    def close(self) -> None:
        if not self.reader.is_ended and not self.opener.process.ended:
            assert self.opener.call(Nr.CLOSE, self.handle) == 0
        self.reader.close()


class TracedWorld(World):
    """The world of tests/syscalls, with tracing."""

    def __init__(
        self, ram_bytes: int = 6 << 20, swap_bytes: int = 0, thp: str = "madvise", *, check_invariants: bool = True
    ) -> None:
        config = KernelConfig(
            ram_bytes=ram_bytes,
            swap_bytes=swap_bytes,
            superuser_uid=ROOT,
            check_invariants=check_invariants,
            sysctl=Sysctl(transparent_hugepage=TransparentHugepage(thp)),
        )
        super().__init__(config)
        self.tracing = Tracing(self.kernel)
        self.tracer = self.attach(ROOT)

    @contextmanager
    def trace(
        self, *globs: str, pids: tuple[int, ...] = (), data_pages: int = 256, opener: Program | None = None
    ) -> Iterator[Trace]:
        trace = Trace(opener or self.tracer, *globs, pids=pids, data_pages=data_pages)
        try:
            yield trace
        finally:
            trace.close()

    def close(self) -> None:
        super().close()
        assert FPROBES.functions == []
