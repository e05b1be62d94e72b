"""Address spaces and free frames rebuilt from nothing but what a trace told, to be compared with the kernel's own.

Each record must also fit what the ones before it have told: an entry that is set was empty, what it replaces is what
was there, a frame that is freed was taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY
from kerneld.mm.frames.frames import Frames
from kerneld.mm.space.mm import MmStruct
from shared.trace.event import PRESENT, PSE, run_of
from shared.trace.events import (
    MM_PAGE_ALLOC,
    MM_PAGE_FREE,
    PTE_CLEAR,
    PTE_REPLACE,
    PTE_SET,
    VMA_CHANGE,
    VMA_INSERT,
    VMA_REMOVE,
)
from shared.trace.record import Record
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

_PROCESSORS = ~(PTE_ACCESSED | PTE_DIRTY)
"""Bits of a present entry that the processor sets without telling anybody."""
_U64 = (1 << 64) - 1
VmaState = tuple[int, int, int]
"""end, vm_flags, pgoff"""


def entries_of(entry: int, count: int) -> list[int]:
    """Return what the 4 KiB entries of a run say, an entry of 2 MiB as those that it would be cut up into."""
    if entry & PRESENT and entry & PSE:
        return [(entry & ~PSE) + (number << PAGE_SHIFT) for number in range(count)]
    return run_of(entry, count)


def kernels(entry: int) -> int:
    """Return an entry without what the processor sets in it."""
    return entry & _PROCESSORS & _U64 if entry & PRESENT else entry


def entries_now(mm: MmStruct) -> dict[int, int]:
    """Return the entries of an address space that are not empty, by page."""
    there = {}
    for vma in mm.vmas:
        for leaf in mm.page_table.walk.leaves(vma.start, vma.end):
            words = mm.page_table.walk.page_entries(leaf)
            for number in np.flatnonzero(words).tolist():
                there[(leaf.start >> PAGE_SHIFT) + number] = kernels(int(words[number]))
    return there


class Replay:
    """What is known from the records so far."""

    def __init__(self, frames: Frames | None = None) -> None:
        """With `frames` their allocation is followed too, from how it is now."""
        self.entries: dict[int, dict[int, int]] = defaultdict(dict)
        """By address space, by page."""
        self.vmas: dict[int, dict[int, VmaState]] = defaultdict(dict)
        self.is_free = None if frames is None else frames.buddy.is_free()

    def know(self, mm: MmStruct) -> None:
        """Begin with an address space that was there before the trace."""
        for vma in mm.vmas:
            self.vmas[mm.number][vma.start] = (vma.end, vma.vm_flags, vma.pgoff)
        self.entries[mm.number] = entries_now(mm)

    def take(self, records: Iterable[Record]) -> None:
        """Do what the records say; an assertion fails where one does not fit."""
        for record in records:
            if record.event in (PTE_SET, PTE_REPLACE, PTE_CLEAR):
                self._change_entries(record)
            elif record.event in (VMA_INSERT, VMA_REMOVE, VMA_CHANGE):
                self._change_vma(record)
            elif record.event in (MM_PAGE_ALLOC, MM_PAGE_FREE) and self.is_free is not None:
                first, count = record.fields["pfn"], record.fields["nr_pages"]
                is_free = record.event is MM_PAGE_FREE
                assert (self.is_free[first : first + count] != is_free).all(), record
                self.is_free[first : first + count] = is_free

    def _change_entries(self, record: Record) -> None:
        fields = record.fields
        entries, first = self.entries[fields["mm"]], fields["vaddr"] >> PAGE_SHIFT
        count = fields["nr_pages"]
        assert fields["vaddr"] % PAGE_SIZE == 0
        assert (record.event is PTE_SET) == (fields["old"] == 0)
        assert (record.event is PTE_CLEAR) == (fields["new"] == 0)
        old, new = entries_of(fields["old"], count), entries_of(fields["new"], count)
        for number in range(count):
            before = entries.pop(first + number, 0)
            assert before == kernels(old[number]), (hex(fields["vaddr"]), number, hex(before), record)
            if new[number]:
                entries[first + number] = kernels(new[number])

    def _change_vma(self, record: Record) -> None:
        fields, vmas = record.fields, self.vmas[record.fields["mm"]]
        if record.event is VMA_CHANGE:
            assert vmas.pop(fields["old_start"])[:2] == (fields["old_end"], fields["old_flags"]), record
        if record.event is VMA_REMOVE:
            assert vmas.pop(fields["start"]) == (fields["end"], fields["vm_flags"], fields["pgoff"]), record
        else:
            assert fields["start"] not in vmas
            vmas[fields["start"]] = (fields["end"], fields["vm_flags"], fields["pgoff"])

    def check(self, mm: MmStruct) -> None:
        """Compare with the address space itself."""
        assert {vma.start: (vma.end, vma.vm_flags, vma.pgoff) for vma in mm.vmas} == self.vmas[mm.number]
        there = entries_now(mm)
        assert there == self.entries[mm.number]

    def check_frames(self, frames: Frames) -> None:
        """Compare with the allocator itself, as /proc/buddyinfo shows it."""
        assert self.is_free is not None
        assert (self.is_free == frames.buddy.is_free()).all()
        assert int(self.is_free.sum()) == frames.free_pages
