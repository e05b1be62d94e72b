"""A native program's stub in a few lines: it follows the protocol of docs/abi.md, "Advances"."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_LOCKED
from kerneld.task.task import Process
from kerneld.tlb.advances import Advances, AllAdvances
from kerneld.tlb.tlb import Tlb
from kerneld.tlb.view import View
from shared.uapi.native import (
    ADVANCE_BUSY,
    ADVANCE_COPY,
    ADVANCE_FROM,
    ADVANCE_OFFSETS,
    ADVANCE_PAGES,
    ADVANCE_PAGES_MOST,
    ADVANCE_RECALLED,
    ADVANCE_RIGHTS,
    ADVANCE_START,
    ADVANCE_TAKEN,
    ADVANCE_WORDS,
    ADVANCES_BYTES,
    ADVANCES_COMING,
    ADVANCES_COUNT,
    NR_ADVANCES,
    NR_ROWS,
    ROW_OFFSETS,
    ROW_PAGES,
    SOURCE_OFFSETS,
    WINDOW_PAGES,
)
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Vaddr
from tests.support.machine import ANON, BASE, PRIVATE, READ, RW, Machine, access, load, mmap, store

FILE = BASE + (512 << PAGE_SHIFT)
TEXT = BASE + (984 << PAGE_SHIFT)
"""Its first 40 pages are in one leaf table, the others in the next. It does not begin with a window."""
PAGES = 96
RAM = 32 << 20


@dataclass
class FakeProcess:
    """What advances need of a process."""

    min_flt: int = 0
    on_page_fault: None = None


@dataclass
class Stub:
    """A native program with one thread: it looks for an advance before it asks."""

    machine: Machine
    mm: MmStruct
    traced: list[bool] = field(default_factory=list)
    """Not empty: somebody traces."""
    has_ring: bool = False
    """It has its answers before it is given pages."""

    def __post_init__(self) -> None:
        self.words = memoryview(bytearray(ADVANCES_BYTES)).cast("Q")
        self.all = AllAdvances(self.machine.frames, lambda: bool(self.traced))
        self.tlb = Tlb(self.mm, lambda _: None)
        self.view: View = self.tlb.enter(1)
        self.process = FakeProcess()
        self.advances = Advances(self.words, self.tlb, cast("Process", self.process), self.all)
        self.asked = self.taken = self.windows = 0

    def store(self, vaddr: Vaddr, data: bytes) -> None:
        """Store as the program does: the page is mapped, or taken, or asked for."""
        if not self.take(vaddr, data):
            self.ask(vaddr, data)

    def _left(self, which: int) -> int:
        """Return a bit for each page or window of an advance or row that is not taken; 0 if it has no place."""
        at = which * ADVANCE_WORDS
        return self.words[at + ADVANCE_START] and self.words[at + ADVANCE_PAGES] & ~self.words[at + ADVANCE_TAKEN]

    def find(self, vaddr: Vaddr) -> tuple[int, int] | None:
        """Return the advance that has a page which is not taken, and the page's number in it."""
        for which in range(NR_ADVANCES):
            number = vaddr - self.words[which * ADVANCE_WORDS + ADVANCE_START] >> PAGE_SHIFT
            if 0 <= number < ADVANCE_PAGES_MOST and self._left(which) >> number & 1:
                return which, number
        return None

    def take(self, vaddr: Vaddr, data: bytes, when_busy: Callable[[], object] = lambda: None) -> bool:
        """Take a page; False if it must be asked for. `when_busy` is what the kernel does in the middle of that."""
        assert not self.words[ADVANCES_COMING]
        found = self.find(vaddr)
        if found is None:
            return False
        which, number = found
        at, place = which * ADVANCE_WORDS, which * ADVANCE_PAGES_MOST + number
        is_copy = self.words[at + ADVANCE_RIGHTS] & ADVANCE_COPY != 0
        if is_copy != self.tlb.granted(vaddr, 1)[0]:
            # The host maps no page to copy any more, or there is one by now.
            return False
        old = load(self.mm, vaddr & PAGE_MASK, PAGE_SIZE) if is_copy else b""
        if self.words[at + ADVANCE_RIGHTS] & ADVANCE_FROM:
            old = bytes(self.machine.ram.page(self.words[SOURCE_OFFSETS + place] >> PAGE_SHIFT))
        pfn = self.words[ADVANCE_OFFSETS + place] >> PAGE_SHIFT
        self.words[at + ADVANCE_BUSY] = 1
        is_ours = False
        if not self.words[at + ADVANCE_RECALLED]:
            when_busy()
            if old:
                self.machine.ram.write(pfn << PAGE_SHIFT, old)
            self.words[at + ADVANCE_TAKEN] |= 1 << number
            self.words[ADVANCES_COUNT] += 1
            is_ours = not self.words[at + ADVANCE_RECALLED]
        self.words[at + ADVANCE_BUSY] = 0
        if is_ours:
            self.taken += 1
            self.machine.ram.write((pfn << PAGE_SHIFT) + (vaddr & ~PAGE_MASK), data)
        return is_ours

    def take_window(self, vaddr: Vaddr, when_busy: Callable[[], object] = lambda: None) -> bool:
        """Take the window of a page; False if the page must be asked for."""
        assert not self.words[ADVANCES_COMING]
        for row in range(NR_ROWS):
            at = (NR_ADVANCES + row) * ADVANCE_WORDS
            number = vaddr - self.words[at + ADVANCE_START] >> PAGE_SHIFT
            if not 0 <= number < ROW_PAGES or self.words[ROW_OFFSETS + row * ROW_PAGES + number] & ~PAGE_MASK:
                continue
            window = number // WINDOW_PAGES
            if self._left(NR_ADVANCES + row) >> window & 1 and not self.words[at + ADVANCE_RECALLED]:
                when_busy()
                self.words[at + ADVANCE_TAKEN] |= 1 << window
                self.windows += not self.words[at + ADVANCE_RECALLED]
                return not self.words[at + ADVANCE_RECALLED]
        return False

    def _begin(self, vaddr: Vaddr) -> int:
        """Begin the request of a fault, as `kerneld.syscalls.native.fault`; return the entry."""
        self.view.begin(memoryview(b""))
        self.advances.is_answered_first = self.has_ring
        self.advances.on_fault(vaddr)
        pte = self.mm.page_table.find_pte(vaddr)
        return self.machine.ram.words[pte] if pte is not None else 0

    def end_request(self) -> None:
        """End it as the loop does: with the answer, with what the thread is given, and with what it has taken."""
        self.view.take()
        self.advances.on_answered()
        self.all.book()

    def ask(self, vaddr: Vaddr, data: bytes) -> None:
        """Store by the request of a fault."""
        self.store_by_request(vaddr, data)
        self.end_request()

    def store_by_request(self, vaddr: Vaddr, data: bytes) -> None:
        """Do the same, up to the answer."""
        before = self._begin(vaddr)
        store(self.mm, vaddr, data)
        self.tlb.grant_page(vaddr)
        if before & 3 != 3:
            self.asked += 1
            self.process.min_flt += 1
            self.advances.offer(self.mm, vaddr, is_write=True, is_present=before & 1 != 0)

    def read(self, vaddr: Vaddr) -> None:
        """Read a page: it is mapped, or its window is taken, or a fault grants those around it."""
        if self.tlb.granted(vaddr, 1)[0] or self.take_window(vaddr):
            return
        before = self._begin(vaddr)
        access(self.mm, vaddr)
        self.tlb.grant(vaddr)
        if not before & 1:
            self.process.min_flt += 1
            self.advances.offer(self.mm, vaddr, is_write=False, is_present=False)
        self.end_request()

    def call(self, made: Callable[[MmStruct], object], start: Vaddr = 0, end: Vaddr = TASK_SIZE) -> None:
        """Make a call of the program's own that changes the mappings of a range."""
        self.view.begin(memoryview(b""))
        self.all.book()
        self.advances.begin_request()
        self.advances.recall(start, end)
        made(self.mm)
        self.view.take()

    def book(self) -> None:
        """Book everything, as before somebody looks."""
        self.all.book()
        self.advances.book(and_windows=True)


REASONS = ["trace", "listener", "thread", "locked"]
"""Why nothing may be given: somebody could see it, or the memory is locked."""


@contextlib.contextmanager
def seen(stub: Stub, reason: str, at: Vaddr) -> Iterator[None]:
    """Let one of the reasons hold during the block, for the mapping at an address."""
    vma = stub.mm.vmas.lookup(at)
    assert vma is not None
    if reason == "trace":
        stub.traced.append(True)
    elif reason == "listener":
        stub.mm.notifiers.append(stub.tlb)
    elif reason == "thread":
        stub.tlb.enter(2)
    elif reason == "locked":
        vma.vm_flags |= VM_LOCKED
    yield
    if reason == "listener":
        stub.mm.notifiers.remove(stub.tlb)
    elif reason == "locked":
        vma.vm_flags &= ~VM_LOCKED


def begun(machine: Machine) -> MmStruct:
    """Return an address space with anonymous memory, and two private mappings of files; TEXT can only be read.

    The pages of the second file are in the page cache.
    """
    mm = machine.new_mm()
    mmap(mm, PAGES, RW, ANON, at=BASE)
    file, _ = machine.new_file(b"".join(bytes([number]) * PAGE_SIZE for number in range(PAGES)))
    mmap(mm, PAGES, RW, PRIVATE, at=FILE, file=file)
    text, _ = machine.new_file(b"".join(bytes([number + 100]) * PAGE_SIZE for number in range(PAGES)))
    mmap(mm, PAGES, READ, PRIVATE, at=TEXT, file=text)
    for number in range(PAGES):
        text.mapping.ensure_page(number)
    return mm


def pattern(number: int) -> bytes:
    return bytes([number % 251 + 1]) * 8
