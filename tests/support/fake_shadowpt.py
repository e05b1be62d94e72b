"""An address space, a process and host memory, as small as the shadow page table's tests can do with."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PTE_PRESENT, make_pte
from kerneld.mm.space.notifier import Notifiers
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import SHADOW_PTE

PROT_NONE = 0
SWAP_ENTRY = 0x5A000
"""Not present, not zero."""


class FakeVma(NamedTuple):
    start: int
    end: int
    is_anonymous: bool


class FakeMm:
    """VMAs by page in a dict, entries by page in a dict; it is its own VmaTree, PageTable, PageWalk, Frames and Ram."""

    def __init__(self) -> None:
        self.vmas = self.page_table = self.walk = self.frames = self.ram = self.words = self
        self.notifiers: Any = Notifiers()
        self.pages: dict[int, bool] = {}
        self.ptes: dict[int, int] = {}

    def overlapping(self, start: int, end: int) -> Iterator[FakeVma]:
        """Yield runs of alike pages, each widened by what lies outside the range, as a real VMA would be."""
        for vaddr in sorted(self.pages):
            if start <= vaddr < end:
                low = vaddr - PAGE_SIZE if vaddr == start else vaddr
                high = vaddr + 2 * PAGE_SIZE if vaddr + PAGE_SIZE == end else vaddr + PAGE_SIZE
                yield FakeVma(low, high, self.pages[vaddr])

    def lookup(self, vaddr: int) -> FakeVma | None:
        return next(self.overlapping(vaddr, vaddr + PAGE_SIZE), None)

    def find_leaf(self, vaddr: int) -> int | None:
        """Return where the entry is; here that is the address itself."""
        return vaddr if vaddr in self.ptes else None

    def __getitem__(self, pte: int) -> int:
        return self.ptes[pte]

    def entries(self, start: int, end: int) -> npt.NDArray[np.uint64]:
        return np.array([self.ptes.get(vaddr, 0) for vaddr in range(start, end, PAGE_SIZE)], dtype=np.uint64)

    def map(self, start: int, end: int, anonymous: bool = True) -> None:
        for vaddr in range(start, end, PAGE_SIZE):
            self.pages[vaddr] = anonymous
            self.ptes.pop(vaddr, None)
        self.notify(start, end)

    def unmap(self, start: int, end: int) -> None:
        for vaddr in range(start, end, PAGE_SIZE):
            self.pages.pop(vaddr, None)
            self.ptes.pop(vaddr, None)
        self.notify(start, end)

    def set_entry(self, vaddr: int, entry: int) -> None:
        self.ptes[vaddr] = entry
        self.notify(vaddr, vaddr + PAGE_SIZE)

    def set_pfn(self, vaddr: int, pfn: int) -> None:
        self.set_entry(vaddr, make_pte(pfn, PTE_PRESENT))

    def notify(self, start: int, end: int) -> None:
        for notifier in list(self.notifiers):
            notifier.invalidate_range(start, end)

    def exec(self, new_mm: FakeMm) -> None:
        for notifier in list(self.notifiers):
            notifier.exec_mmap(new_mm)

    def exit(self) -> None:
        for notifier in list(self.notifiers):
            notifier.release()


@dataclass
class FakeCred:
    superuser: bool = True
    uid: int = 0
    gid: int = 0


@dataclass(eq=False)
class FakeProcess:
    pid: int
    mm: Any = None
    comm: str = "fake"
    explanation: str = ""
    on_page_fault: Any = None
    ended: bool = False
    memory_is_host: bool = False
    cred: FakeCred = field(default_factory=FakeCred)

    def exit(self) -> None:
        self.ended = True
        mm, self.mm = self.mm, None
        mm.exit()


class FakeRam:
    """Every frame holds its own number, over and over."""

    def page(self, pfn: int) -> memoryview:
        return memoryview(pfn.to_bytes(8, "little") * 512)


class HostMemory:
    """Untouched private anonymous memory of this real process, with an inaccessible page on either side of it."""

    def __init__(self, nr_pages: int) -> None:
        self.size = nr_pages * PAGE_SIZE
        self.map = mmap.mmap(-1, self.size + 2 * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + PAGE_SIZE
        self.protect(-1, 1, PROT_NONE)
        self.protect(nr_pages, 1, PROT_NONE)

    def protect(self, page: int, count: int, prot: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(self.address + page * PAGE_SIZE)
        if libc.mprotect(address, ctypes.c_size_t(count * PAGE_SIZE), prot):
            raise OSError(ctypes.get_errno(), "mprotect")

    def touch(self, page: int, write: bool = True) -> None:
        at = (page + 1) * PAGE_SIZE
        if write:
            self.map[at] = 1
        else:
            assert self.map[at] == 0

    def close(self) -> None:
        self.map.close()


def read_rows(fd: int, nr_pages: int) -> list[tuple[int, int, int]]:
    """Read a table through a client's descriptor: (vaddr, pfn, state_flags) of each page."""
    raw = os.pread(fd, nr_pages * SHADOW_PTE.size, 0)
    return [(vaddr, pfn, flags) for vaddr, pfn, flags in SHADOW_PTE.iter_unpack(raw)]


def read_sequence(fd: int) -> int:
    """Read the sequence word through a client's descriptor."""
    return int.from_bytes(os.pread(fd, 8, 0), "little")
