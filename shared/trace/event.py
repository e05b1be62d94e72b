"""What an event is: a name, a number, typed fields, and how a record of it is packed.

A record is a header, the same for all, and the event's fields, in one little-endian struct padded to 8 bytes. Owns the
layout; the events themselves stand in `shared.trace.events`. Answers to Linux v6.8 include/trace/stages and what
`format` files under /sys/kernel/tracing/events say of each event.
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
    """How a field reads, and whether it is a secret of the superuser's."""

    DECIMAL = "decimal"
    HEX = "hex"
    PFN = "pfn"
    """A frame number: 0 for who may not see those."""
    ENTRY = "entry"
    """A page-table entry: without its frame number for who may not see those."""
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its struct code, how it reads, and where its numbers have names, those."""

    name: str
    code: str
    show: Show = Show.DECIMAL
    names: type[IntEnum] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event."""

    number: int
    name: str
    """`system:event`, Linux's where it has such an event."""
    fields: tuple[Field, ...]
    about: str
    """One line for people."""
    layout: struct.Struct = field(init=False)
    """A whole record."""

    def __post_init__(self) -> None:
        codes = HEADER + "".join(one.code for one in self.fields)
        padding = -struct.calcsize(codes) % 8
        object.__setattr__(self, "layout", struct.Struct(f"{codes}{padding}x" if padding else codes))

    @property
    def system(self) -> str:
        """What stands before the colon."""
        return self.name.partition(":")[0]

    @property
    def secrets(self) -> dict[int, Callable[[int], int]]:
        """Which fields, by index, are shown to the superuser alone, and what others see of each."""
        hide = {Show.PFN: _no_pfn, Show.ENTRY: without_pfn}
        return {at: hide[one.show] for at, one in enumerate(self.fields) if one.show in hide}

    def unpack(self, record: bytes | memoryview) -> dict[str, Any]:
        """Return the fields of a whole record, by name; text without its padding."""
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
"""Bits of a page-table entry: present to the processor or (PROT_NONE) to the kernel; the zero page's; of 2 MiB."""
PFN_MASK = 0x000F_FFFF_FFFF_F000
_SWAP_BITS = 0x1FF
_U64 = (1 << 64) - 1


def without_pfn(entry: int) -> int:
    """Return an entry with its frame, or its place in the swap file, made 0; its bits stay."""
    if entry & PRESENT:
        return entry & ~PFN_MASK
    return (_U64 ^ _SWAP_BITS) | entry & _SWAP_BITS if entry else 0


def step_of(entry: int) -> int:
    """Return how much the entry of the next page of a run differs from this one (modulo 1 << 64).

    A run is one record of many pages: an empty entry and the zero page's repeat, frames count up, and so do places in
    the swap file, which stand inverted in an entry from bit 9 on.
    """
    if not entry:
        return 0
    if not entry & PRESENT:
        return -(1 << 9)
    return 0 if entry & (SPECIAL | PSE) == SPECIAL else 1 << 12


def run_of(entry: int, count: int) -> list[int]:
    """Return the entries of a run of `count` pages that starts with `entry`."""
    if count == 1 or (entry & PRESENT and entry & PSE):
        return [entry] * count
    step = step_of(entry)
    return [(entry + number * step) & _U64 for number in range(count)]
