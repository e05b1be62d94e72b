"""A kernel's ShadowPt with fakes around it, as the tests of the session and of the calls need it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kerneld.shadowpt.session import ShadowPt
from shared.uapi.page import PAGE_SIZE
from tests.support.descriptors import leaves_no_descriptor
from tests.support.fake_shadowpt import FakeMm, FakeProcess, FakeRam, HostMemory, read_rows, read_sequence

START, NR_PAGES = 0x4000_0000, 16
END = START + NR_PAGES * PAGE_SIZE
State = tuple[int, int]
"""state_flags and pfn of one page."""


def page(index: int) -> int:
    return START + index * PAGE_SIZE


class World:
    """A kernel's ShadowPt, an opener which is this real process, a target, and memory for the largest table."""

    def __init__(self) -> None:
        ram: Any = FakeRam()
        self.shadowpt = ShadowPt(ram)
        self.opener = FakeProcess(os.getpid(), FakeMm())
        self.mm = FakeMm()
        self.target = FakeProcess(4242, self.mm)
        self.memory = HostMemory(12)
        self.fds: list[int] = []

    def open(self, start: int = START, end: int = END, **changes: Any) -> int:
        arguments = {"opener": self.opener, "target": self.target, "entries": self.memory.address, **changes}
        end, fds = self.shadowpt.open(start=start, end=end, **arguments)
        self.fds.extend(fds)
        return end

    def open_and_start(self) -> None:
        self.open()
        self.shadowpt.start(self.opener)

    def rows(self) -> list[tuple[int, int, int]]:
        return read_rows(self.fds[-2], NR_PAGES)

    def states(self) -> list[State]:
        return [(flags, pfn) for _, pfn, flags in self.rows()]

    def vaddrs(self) -> list[int]:
        return [vaddr for vaddr, _, _ in self.rows()]

    def sequence(self) -> int:
        return read_sequence(self.fds[-1])

    def expected(self) -> list[State]:
        """The table, worked out page by page from the fake address space."""
        mm = self.target.mm
        states = []
        for vaddr in range(START, END, PAGE_SIZE):
            flags = 0 if vaddr not in mm.pages else 3 if mm.pages[vaddr] else 1
            entry = mm.ptes.get(vaddr, 0)
            states.append((flags | 4, entry >> 12) if entry & 0x101 else (flags, 0))
        return states

    def close(self) -> None:
        self.shadowpt.opener_gone(self.opener)
        self.memory.close()
        for fd in self.fds:
            os.close(fd)


@contextmanager
def new_world() -> Iterator[World]:
    """Make a world, and check that it leaves no descriptor."""
    with leaves_no_descriptor():
        made = World()
        yield made
        made.close()
