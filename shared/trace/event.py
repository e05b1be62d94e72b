"""Defines an event: a name, a number, typed fields, and the layout of its records.

A record is a header, the same for all events, and the event's fields, in one little-endian struct padded to 8 bytes.
Owns the layout. `shared.trace.events` has the events. Answers to Linux v6.8 include/trace/stages and to the `format`
files under /sys/kernel/tracing/events.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

HEADER = "<HHIIIQIIQ"
"""size, event, pid, tid, causes, time, nr, owner, address: see `shared.trace.record.Record`."""
HEADER_BYTES = struct.calcsize(HEADER)


class Show(Enum):
    """How a field is printed, and whether only the superuser may see it."""

    DECIMAL = "decimal"
    HEX = "hex"
    PFN = "pfn"
    """A frame number. It is 0 for users who may not see frame numbers."""
    ENTRY = "entry"
    """A page-table entry. It has no frame number for users who may not see frame numbers."""
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its struct code, how it is printed, and the names of its numbers, if they have names."""

    name: str
    code: str
    show: Show = Show.DECIMAL
    names: type[IntEnum] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event."""

    number: int
    name: str
    """`system:event`. It is Linux's name if Linux has such an event."""
    fields: tuple[Field, ...]
    about: str
    """One line for people."""
    layout: struct.Struct = field(init=False)
    """The layout of a whole record."""

    def __post_init__(self) -> None:
        codes = HEADER + "".join(one.code for one in self.fields)
        padding = -struct.calcsize(codes) % 8
        object.__setattr__(self, "layout", struct.Struct(f"{codes}{padding}x" if padding else codes))

    @property
    def system(self) -> str:
        """The part of the name before the colon."""
        return self.name.partition(":")[0]

    @property
    def secrets(self) -> dict[int, Callable[[int], int]]:
        """By index, the fields that only the superuser sees, each with the function that hides its value from
        others."""
        hide = {Show.PFN: _no_pfn, Show.ENTRY: without_pfn}
        return {at: hide[one.show] for at, one in enumerate(self.fields) if one.show in hide}

    def unpack(self, record: bytes | memoryview) -> dict[str, Any]:
        """Return the fields of a whole record, by name. Text has no padding."""
        values = self.layout.unpack(record)[9:]
        return {
            one.name: _text(value) if one.show is Show.TEXT else value
            for one, value in zip(self.fields, values, strict=True)
        }


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("utf-8", "replace")


def _no_pfn(_pfn: int) -> int:
    return 0


PRESENT, SPECIAL, PSE = 0x101, 1 << 9, 1 << 7
"""Bits of a page-table entry: present for the processor, or (PROT_NONE) for the kernel; zero page; entry of 2 MiB."""
PFN_MASK = 0x000F_FFFF_FFFF_F000
SWAP_FLAGS = 0x1FF
"""The bits of a swap entry below its slot."""
_NO_SLOT = (1 << 55) - 1
_U64 = (1 << 64) - 1


def without_pfn(entry: int) -> int:
    """Return an entry whose frame number or swap slot is replaced by 0. The other bits stay."""
    if entry & PRESENT:
        return entry & ~PFN_MASK
    return (_U64 ^ SWAP_FLAGS) | entry & SWAP_FLAGS if entry else 0


def step_of(entry: int) -> int:
    """Return the difference from this entry to the entry of the next page of a run (modulo 1 << 64).

    A run is one record of many pages. An empty entry and the entry of the zero page repeat. Frame numbers count up, and
    so do swap slots, which an entry holds inverted from bit 9 on. Hidden frames and slots (`without_pfn`) are all 0.
    """
    if not entry:
        return 0
    if not entry & PRESENT:
        return -(1 << 9) if entry >> 9 != _NO_SLOT else 0
    return 0 if entry & (SPECIAL | PSE) == SPECIAL or not entry & PFN_MASK else 1 << 12


def run_of(entry: int, count: int) -> list[int]:
    """Return the entries of a run of `count` pages that starts with `entry`."""
    if count == 1 or (entry & PRESENT and entry & PSE):
        return [entry] * count
    step = step_of(entry)
    return [(entry + number * step) & _U64 for number in range(count)]


def nth_of(entry: int, number: int) -> int:
    """Return the entry of page `number`, counted from 0, of a run that starts with `entry`."""
    if entry & PRESENT and entry & PSE:
        return entry
    return (entry + number * step_of(entry)) & _U64
