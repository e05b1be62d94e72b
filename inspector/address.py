"""Turns the range that a person types into numbers. Pure: the caller passes in the maps of the process.

A range is `START END`, or one word `START-END` as in maps. START is an address or the name of a mapping. END is an
address or `+SIZE`; after a name it may be missing. Addresses are hexadecimal, with or without 0x, as in maps, gdb and
the kernel's log, so that a person can copy them from there. Sizes are decimal, or hexadecimal after 0x.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from shared.option_types import parse_bytes
from shared.uapi.page import PAGE_MASK, TASK_SIZE, page_align
from shared.uapi.shadowpt import MAX_SPT_RANGE

_ADDRESS = r"(?:0[xX])?[0-9a-fA-F]+"
_MAX_WORD = (1 << 64) - 1
_RANGE = re.compile(f"({_ADDRESS})-({_ADDRESS})")


class AddressError(ValueError):
    """The text is no address, size or range. The message is for people."""


class Span(NamedTuple):
    """A range [start, end) of virtual addresses, in bytes."""

    start: int
    end: int


def looks_like_name(text: str) -> bool:
    """Whether `text` in place of START is the name of a mapping ([heap], /bin/true), and not a number or a range."""
    return not re.match(r"[-+]?[0-9]", text) and re.fullmatch(_ADDRESS, text) is None and split_range(text) is None


def split_range(text: str) -> tuple[str, str] | None:
    """Return the texts of the two addresses of `START-END`; None for another word."""
    match = _RANGE.fullmatch(text)
    return None if match is None else (match[1], match[2])


def parse_address(text: str) -> int:
    """Return the address in `text`, hexadecimal with or without 0x. Raises AddressError."""
    value = _parse_word(text)
    if value > TASK_SIZE:
        raise _beyond(value)
    return value


def parse_page(text: str) -> int:
    """Return the address in `text`. It must lie within a page of user space. Raises AddressError."""
    address = parse_address(text)
    if address >= TASK_SIZE:
        raise AddressError(f"{address:#x} is the end of user space: no page is there")
    return address


def parse_end(text: str, start: int) -> int:
    """Return the end in `text`: an address, or `+SIZE` after `start`, in bytes, KiB or MiB. Raises AddressError.

    It may lie beyond the end of user space: `check_span` decides.
    """
    if not text.startswith("+"):
        return _parse_word(text)
    size = parse_bytes(text[1:])
    if size is None:
        raise AddressError(f"'{text}' is no size: give it as +0x4000, +16384, +16K or +8M")
    return start + size


def check_span(start: int, end: int) -> Span:
    """Return the range [start, end). Raises AddressError if it is empty, runs backwards or leaves user space.

    As in shadowpt_open, that is asked of the part that a table holds: the kernel cuts the range before it looks at the
    end.
    """
    if start >= end:
        raise AddressError(f"the range is empty: its end {end:#x} is not after its start {start:#x}")
    if end > _MAX_WORD:
        raise AddressError(f"{end:#x} is no address: addresses have 64 bits")
    if min(end, (start & PAGE_MASK) + MAX_SPT_RANGE) > TASK_SIZE:
        raise _beyond(end)
    return Span(start, end)


def round_outward(span: Span) -> Span:
    """Return the smallest range of whole pages that holds `span`, or ends with the last page that has a number."""
    return Span(span.start & PAGE_MASK, min(page_align(span.end), _MAX_WORD & PAGE_MASK))


def _parse_word(text: str) -> int:
    if re.fullmatch(_ADDRESS, text) is None:
        raise AddressError(f"'{text}' is no address: it is hexadecimal, 0x7f0000000000 or 7f0000000000")
    return int(text, 16)


def _beyond(address: int) -> AddressError:
    return AddressError(f"{address:#x} is beyond the end of user space, {TASK_SIZE:#x}")
