"""One address space of the model: VMAs, tables, and the leaf entries, as records tell them.

Entries of 4 KiB are in arrays of 512, as the machine has them in its leaf tables; an entry of 2 MiB is a number. Knows
no record and no frame.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from shared.trace.event import PRESENT, PSE, run_of, step_of
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT

PTRS = 512
_U64 = (1 << 64) - 1
_EMPTY = bytes(PTRS * 8)


class Vma(NamedTuple):
    """One mapping: the pages of [start, end)."""

    start: int
    end: int
    vm_flags: int
    pgoff: int
    mapping: int = 0
    """The number of its file; 0 for anonymous memory."""

    @property
    def nr_pages(self) -> int:
        """The length in pages."""
        return (self.end - self.start) >> PAGE_SHIFT


class Run(NamedTuple):
    """Pages in a row whose entries repeat or count up (`shared.trace.event.step_of`). One entry of 2 MiB is a run."""

    vaddr: int
    nr_pages: int
    entry: int


@dataclass(slots=True)
class AddressSpace:
    """One address space, by its number."""

    number: int
    pid: int = 0
    """Its process; 0 while a copy waits for its child, and after the end of the process."""
    vmas: dict[int, Vma] = field(default_factory=dict)
    """By start."""
    tables: dict[tuple[int, int], int] = field(default_factory=dict)
    """By level (1: PTE … 4: PGD) and first address, the frame of each table; 0 for a hidden one."""
    deposited: list[int] = field(default_factory=list)
    """Frames of tables kept for huge pages."""
    leaves: dict[int, array[int]] = field(default_factory=dict)
    """By number of 2 MiB, the 512 entries of a leaf table that has any."""
    huge: dict[int, int] = field(default_factory=dict)
    """By number of 2 MiB, the entry of 2 MiB."""
    start_brk: int = 0
    brk: int = 0
    start_stack: int = 0
    rss: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """Pages of files, anonymous, in the swap file, of files in memory (`shared.trace.events.RssMember`)."""

    def set_run(self, vaddr: int, nr_pages: int, entry: int) -> None:
        """Give pages in a row these entries: `entry` and what counts up from it; 0 empties them."""
        first = vaddr >> PAGE_SHIFT
        if nr_pages == 1:
            leaf = self.leaves.get(first >> 9)
            if leaf is None:
                if not entry:
                    return
                leaf = self.leaves[first >> 9] = array("Q", _EMPTY)
            leaf[first & 511] = entry
            return
        if entry & PRESENT and entry & PSE:
            self.huge[first >> 9] = entry
            self.leaves.pop(first >> 9, None)
            return
        step, end = step_of(entry), first + nr_pages
        while first < end:
            number, low = first >> 9, first & 511
            count = min(end - first, PTRS - low)
            self.huge.pop(number, None)
            leaf = self.leaves.get(number)
            if leaf is None:
                leaf = self.leaves[number] = array("Q", _EMPTY)  # An empty run empties a table that is there.
            leaf[low : low + count] = _words(entry, step, count)
            first += count
            entry = (entry + count * step) & _U64

    def entry(self, vaddr: int) -> int:
        """Return the entry for a page: 0 for none, that of 2 MiB (with PSE) inside a huge page."""
        number = vaddr >> PMD_SHIFT
        leaf = self.leaves.get(number)
        return leaf[vaddr >> PAGE_SHIFT & 511] if leaf is not None else self.huge.get(number, 0)

    def runs(self, start: int = 0, end: int = 1 << 47) -> Iterator[Run]:
        """Yield the entries of [start, end) that are not empty, in order, as few runs as can be.

        Whole 2 MiB are yielded where a huge page lies in the range only in part.
        """
        numbers = sorted(self.leaves.keys() | self.huge.keys())
        for number in numbers:
            base = number << PMD_SHIFT
            if base >= end or base + (PTRS << PAGE_SHIFT) <= start:
                continue
            entry = self.huge.get(number)
            if entry is not None:
                yield Run(base, PTRS, entry)
                continue
            low = max(0, start - base >> PAGE_SHIFT)
            high = min(PTRS, end - base + PAGE_SIZE - 1 >> PAGE_SHIFT)
            yield from _runs_of(self.leaves[number], base, low, high)

    def find_vma(self, vaddr: int) -> Vma | None:
        """Return the VMA that covers an address, or None."""
        return next((vma for vma in self.vmas.values() if vma.start <= vaddr < vma.end), None)

    def copy(self) -> AddressSpace:
        """Return an independent copy."""
        leaves = {number: array("Q", leaf) for number, leaf in self.leaves.items()}
        return AddressSpace(
            self.number, self.pid, dict(self.vmas), dict(self.tables), list(self.deposited), leaves, dict(self.huge),
            self.start_brk, self.brk, self.start_stack, list(self.rss),
        )  # fmt: skip


def _words(entry: int, step: int, count: int) -> array[int]:
    if not step:
        return array("Q", (entry,)) * count
    last = entry + count * step
    if 0 <= last <= _U64:
        return array("Q", range(entry, last, step))
    return array("Q", run_of(entry, count))


def _runs_of(leaf: array[int], base: int, low: int, high: int) -> Iterator[Run]:
    at = low
    while at < high:
        entry = leaf[at]
        if not entry:
            at += 1
            continue
        step, stop = step_of(entry), at + 1
        last = (entry + (high - at - 1) * step) & _U64
        if leaf[high - 1] == last and leaf[at:high] == _words(entry, step, high - at):
            stop = high  # Nearly all leaf tables of a populated range are one run.
        else:
            wanted = (entry + step) & _U64
            while stop < high and leaf[stop] == wanted:
                stop += 1
                wanted = (wanted + step) & _U64
        yield Run(base + (at << PAGE_SHIFT), stop - at, entry)
        at = stop
