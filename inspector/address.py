"""What a person types for a range, into numbers. Pure: the maps of the process are passed in by the caller.

A range is `START END`: START an address or a mapping's name, END an address or `+SIZE`; after a name it may be missing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from shared.uapi.page import PAGE_MASK, TASK_SIZE, page_align

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
SIZE = re.compile(r"\+(0[xX][0-9a-fA-F]+|[0-9]+)([KMGkmg]?)(?:i?[bB])?")


class AddressError(ValueError):
    """What was typed is no address, size or range; the message is for people."""


class Span(NamedTuple):
    """A range [start, end) of virtual addresses, in bytes."""

    start: int
    end: int


def looks_like_name(text: str) -> bool:
    """Whether `text` in the place of START is a mapping's name ([heap], /bin/true): nothing like a number."""
    return not re.match(r"[-+]?[0-9]", text) and re.fullmatch(r"[0-9a-fA-F]+", text) is None


def parse_address(text: str) -> int:
    """Return the address that `text` is: hexadecimal after 0x, else decimal. Raises AddressError."""
    if NUMBER.fullmatch(text) is None:
        if re.fullmatch(r"[0-9a-fA-F]+", text):
            # Not guessed: 550000 would be decimal and 55000a hexadecimal.
            raise AddressError(f"'{text}' is no address: a hexadecimal one needs 0x in front")
        raise AddressError(f"'{text}' is no address: give it as 0x7f0000000000 or in decimal")
    value = int(text, 0) if text[:2] in ("0x", "0X") else int(text)
    if value > TASK_SIZE:
        raise AddressError(f"{value:#x} is beyond the end of user space, {TASK_SIZE:#x}")
    return value


def parse_page(text: str) -> int:
    """Return the address that `text` is, one that lies within a page of user space. Raises AddressError."""
    address = parse_address(text)
    if address >= TASK_SIZE:
        raise AddressError(f"{address:#x} is the end of user space: no page is there")
    return address


def parse_end(text: str, start: int) -> int:
    """Return the end that `text` is: an address, or `+SIZE` after `start`, in bytes, KiB, MiB. Raises AddressError."""
    if not text.startswith("+"):
        return parse_address(text)
    match = SIZE.fullmatch(text)
    if match is None:
        raise AddressError(f"'{text}' is no size: give it as +0x4000, +16384, +16K or +8M")
    number, unit = match.groups()
    size = (int(number, 16) if number[:2] in ("0x", "0X") else int(number)) * UNITS[unit.upper()]
    if start + size > TASK_SIZE:
        raise AddressError(f"{start:#x}{text} goes beyond the end of user space, {TASK_SIZE:#x}")
    return start + size


def check_span(start: int, end: int) -> Span:
    """Return the range [start, end). Raises AddressError when it is empty or runs backwards."""
    if start >= end:
        raise AddressError(f"the range is empty: its end {end:#x} is not after its start {start:#x}")
    return Span(start, end)


def round_outward(span: Span) -> Span:
    """Return the smallest range of whole pages that holds `span`."""
    return Span(span.start & PAGE_MASK, page_align(span.end))
