"""Which of the changes that the assignment names a target has made, from the kernel's events alone. Reads no text.

The program begins with the first fault in its own text: what the dynamic linker maps before is not the program's.
Inside the machine a mapping of anonymous memory has the page of its address as its offset (Linux v6.8
mm/mmap.c:vma_set_anonymous() and do_mmap()), and a mapping of a file the page of the file.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import NamedTuple

from shared.trace.events import (
    EXPAND_STACK,
    MM_FAULT,
    PROCESS_EXEC,
    PROCESS_EXIT,
    PROCESS_FORK,
    PTE_CLEAR,
    PTE_REPLACE,
    PTE_SET,
    TASK_NEWTASK,
    VMA_CHANGE,
    VMA_INSERT,
    VMA_MERGE,
    FaultAccess,
    FaultKind,
)
from shared.trace.record import Record
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE
from shared.uapi.syscalls import Nr

_VM_EXEC = 4
_MAPS = (Nr.MMAP, Nr.MREMAP, Nr.BRK)
_COPIES = (FaultKind.COW,)
_OWN_FRAMES = (FaultKind.ANONYMOUS, FaultKind.COW, FaultKind.HUGE, FaultKind.REUSE)


_PAUSE = 4 * 10**8
"""Nanoseconds without any event: a pause of the program, also on a busy host."""
_FIRST_HEAP_BYTES = 0x24000
"""What libc takes for its heap at first: Linux programs get it by printing."""


class Moment(NamedTuple):
    """A frame came or went."""

    address: int
    pauses: int
    """How often the program had paused before."""


@dataclass(slots=True)
class Changes:
    """What a target and its children have done so far. `add` takes the events one by one."""

    pid: int
    seen: dict[str, str] = field(default_factory=dict)
    """By the name of a row: what was seen first."""
    own: list[tuple[int, int]] = field(default_factory=list)
    """Anonymous memory that the program has mapped itself, in the order of the calls."""
    came: list[Moment] = field(default_factory=list)
    """When frames came, and where."""
    went: list[Moment] = field(default_factory=list)
    exit_signal: int | None = None
    """The signal that ended it, 0 without one; None: it runs."""
    _own_mm: int = 0
    _pauses: int = 0
    _last_time: int = 0
    _heap_bytes: int = 0
    _mms: set[int] = field(default_factory=set)
    _pids: set[int] = field(default_factory=set)
    _family: set[int] = field(default_factory=set)
    """Those of `_pids`, and those that have become other programs: the target may wait for them."""
    _text: tuple[int, int] | None = None
    _has_begun: bool = False
    _has_forked: bool = False

    def add(self, record: Record) -> None:
        """Take an event over."""
        event, fields = record.event, record.fields
        if record.pid in self._family:
            self._pauses += record.time - self._last_time >= _PAUSE
            self._last_time = record.time
        if event in (TASK_NEWTASK, PROCESS_EXEC, PROCESS_FORK):
            self._add_process(record)
        elif event is PROCESS_EXIT and fields["pid"] == self.pid:
            self.exit_signal = fields["signo"]
        elif not self._has_begun:
            self._look_for_main(record)
        elif fields.get("mm") in self._mms:
            self._add_change(record)

    @property
    def has_begun(self) -> bool:
        """Whether the program's own text runs."""
        return self._has_begun

    def _add_process(self, record: Record) -> None:
        fields = record.fields
        if record.event is PROCESS_FORK:
            if fields["parent_pid"] in self._pids:
                self._pids.add(fields["child_pid"])
                self._family.add(fields["child_pid"])
                self._mms.add(fields["mm"])
                self._has_forked = True
        elif record.event is PROCESS_EXEC and self._has_begun:
            if fields["pid"] in self._pids:
                self.seen.setdefault("target_execve", f"execve of {fields['filename']}")
                # What runs there from now on is another program.
                self._pids.discard(fields["pid"])
        elif fields["pid"] == self.pid:
            self._pids.add(self.pid)
            self._family.add(self.pid)
            self._mms.add(fields["mm"])
            self._own_mm = fields["mm"]

    def _look_for_main(self, record: Record) -> None:
        fields = record.fields
        if record.pid != self.pid:
            return
        if (
            record.event is VMA_INSERT
            and self._text is None
            and record.nr == Nr.EXECVE
            and fields["vm_flags"] & _VM_EXEC
        ):
            # Linux maps the program before its interpreter: v6.8 fs/binfmt_elf.c:load_elf_binary().
            self._text = fields["start"], fields["end"]
        elif record.event is MM_FAULT and self._text is not None and record.nr != Nr.EXECVE:
            self._has_begun = self._text[0] <= fields["address"] < self._text[1]

    def count(self, start: int, end: int) -> tuple[int, int, int]:
        """Return how often frames came and went in a range, and at how many moments with a pause between them."""
        came, went = ([one for one in moments if start <= one.address < end] for moments in (self.came, self.went))
        return len(came), len(went), len({one.pauses for one in came + went})

    def _add_change(self, record: Record) -> None:
        event, fields = record.event, record.fields
        if event in (PTE_SET, PTE_REPLACE, PTE_CLEAR) and fields["mm"] == self._own_mm:
            (self.went if event is PTE_CLEAR else self.came).append(Moment(fields["vaddr"], self._pauses))
        if event in (VMA_INSERT, VMA_CHANGE, VMA_MERGE) and record.nr in _MAPS:
            self._add_mapping(record)
        elif event is EXPAND_STACK and record.nr != Nr.EXECVE:
            self.seen.setdefault("target_stack", f"down to {fields['start']:#x}, by a fault at {fields['address']:#x}")
        elif event is PTE_CLEAR and record.nr in (Nr.MUNMAP, Nr.BRK, Nr.MREMAP) and self.is_own(fields["vaddr"]):
            self.seen.setdefault("target_unmaps", f"{fields['nr_pages']} frames from {fields['vaddr']:#x} on went away")
        elif event is MM_FAULT and fields["access"] == FaultAccess.WRITE:
            self._add_write(fields["address"], fields["kind"])
        elif event is PTE_SET and record.nr in _MAPS and self.is_own(fields["vaddr"]):
            self.seen.setdefault("target_writes", f"{fields['vaddr']:#x}, by MAP_POPULATE")

    def _add_mapping(self, record: Record) -> None:
        fields = record.fields
        start, end = fields["start"], fields["end"]
        if record.event is VMA_CHANGE:
            if fields["end"] > fields["old_end"]:
                start = fields["old_end"]
            elif fields["start"] < fields["old_start"]:
                end = fields["old_start"]
            else:
                return
        is_anonymous = record.event is VMA_MERGE or fields["pgoff"] == fields["start"] >> PAGE_SHIFT
        if not is_anonymous or start >= end:
            return
        if record.nr == Nr.BRK:
            self._heap_bytes += end - start
            if self._heap_bytes <= _FIRST_HEAP_BYTES:
                return
        self.own.append((start, end))
        self.seen.setdefault("target_maps", f"{start:#x} to {end:#x}, by {Nr(record.nr).name.lower()}")

    def _add_write(self, address: int, kind: int) -> None:
        page = address & -PAGE_SIZE
        if kind in _OWN_FRAMES and self.is_own(page):
            self.seen.setdefault("target_writes", f"a write to {address:#x}")
        if kind in _COPIES and (self._has_forked or self.is_own(page)):
            self.seen.setdefault("target_cow", f"a write to {address:#x} gave the page another frame")

    def is_own(self, address: int) -> bool:
        """Return whether an address is in memory that the program has mapped itself."""
        return any(start <= address < end for start, end in self.own)


def is_good_end(signo: int | None) -> bool:
    """Return whether a target that ended with this signal, 0 without one, has not crashed."""
    return signo in (0, signal.SIGINT)
