"""Reads a printed page table, whatever its format: which text belongs to which page, and which numbers are in it.

Owns the search for addresses and numbers. Knows no kernel: it gets text, and the range that the text should show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from shared.uapi.page import PAGE_SIZE

ADDRESS, PFN = "\x01", "\x02"
"""What stands in a segment in place of its address and its frame number."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\r")
_NUMBER = re.compile(r"(?<![0-9A-Za-z_])(0[xXbB])?([0-9A-Fa-f]+)(?![0-9A-Za-z_])")
_RANGE = re.compile(r"\s*(?:-|–|\.\.+|to|\]?\s*-\s*\[?|,)\s*")
"""What stands between the two addresses of a range."""
_LARGE = 0x1000


class Number(NamedTuple):
    """A number in a text."""

    start: int
    end: int
    values: frozenset[int]
    """What it may mean: 10 is ten, or sixteen, or two."""


def plain(text: str) -> str:
    """Return a text without the commands for the terminal."""
    return _ESCAPES.sub("", text)


def numbers(text: str) -> Iterator[Number]:
    """Yield the numbers in a text: hexadecimal with or without 0x, decimal, binary."""
    for match in _NUMBER.finditer(text):
        prefix, digits = match.group(1) or "", match.group(2)
        bases = {"0x": (16,), "0b": (2,)}.get(prefix.lower(), (16, 10, 2))
        values = {int(digits, base) for base in bases if _fits(digits, base)}
        if values:
            yield Number(match.start(), match.end(), frozenset(values))


def _fits(digits: str, base: int) -> bool:
    most = {16: "f", 10: "9", 2: "1"}[base]
    return all(digit <= most for digit in digits.lower())


@dataclass(frozen=True, slots=True)
class Window:
    """The pages that a text should show: [start, start + pages * 4096)."""

    start: int
    pages: int

    @property
    def end(self) -> int:
        """The end of the range."""
        return self.start + self.pages * PAGE_SIZE

    def address(self, index: int) -> int:
        """Return the address of a page."""
        return self.start + index * PAGE_SIZE

    def find(self, number: Number) -> int | None:
        """Return the index of the page whose address a number is. The end of the range counts too."""
        for value in number.values:
            if self.start <= value <= self.end and value % PAGE_SIZE == 0:
                return (value - self.start) // PAGE_SIZE
        return None


class _Hit(NamedTuple):
    start: int
    end: int
    first: int
    """The page."""
    last: int
    """The page after the last one of its range; first + 1 for one page."""


def segments(text: str, window: Window, *, has_lines: bool = False) -> dict[int, str]:
    """Return the text that belongs to each page, with ADDRESS in place of its address. Pages without text are left out.

    A line is of the page whose address is in it; several pages may share a line. With `has_lines` a page has all
    lines up to the next address. A range of addresses counts for its pages that have no text of their own, unless it
    is the whole window: that is a headline.
    """
    single: dict[int, str] = {}
    ranges: dict[int, str] = {}
    for piece in [text] if has_lines else text.split("\n"):
        hits = list(_hits(piece, window))
        for at, hit in enumerate(hits):
            before = piece[: hit.start] if at == 0 and not has_lines else ""
            after = piece[hit.end : hits[at + 1].start if at + 1 < len(hits) else len(piece)]
            pages = range(hit.first, min(hit.last, window.pages))
            if len(pages) == window.pages > 1:
                continue
            found = single if len(pages) == 1 else ranges
            found.update(dict.fromkeys(pages, f"{before}{ADDRESS}{after}"))
    if has_lines:
        single = _without_next(single)
    return {**ranges, **single}


def whole_segment(text: str, window: Window) -> dict[int, str]:
    """Return the text of all pages, if it is the same: what follows the range of the whole window. Else nothing."""
    for line in reversed(text.split("\n")):
        for hit in _hits(line, window):
            if hit.first == 0 and hit.last == window.pages:
                return dict.fromkeys(range(window.pages), f"{ADDRESS}{line[hit.end :]}")
    return {}


def _without_next(found: dict[int, str]) -> dict[int, str]:
    """Cut off, from texts of several lines, what comes before the next page's address."""
    if not found:
        return {}
    # The rest of the line in which the next address is; and before it perhaps a line with the next index.
    cut = {index: segment.split("\n")[:-1] or [segment] for index, segment in found.items()}
    others = [index for index in cut if index != max(cut)]
    for step in (1, 2):
        if others and all(len(cut[index]) > 1 and has_number(cut[index][-1], index + step) for index in others):
            cut = {index: lines[:-1] if index in others else lines for index, lines in cut.items()}
            break
    usual = sorted(map(len, cut.values()))[len(cut) // 2]
    return {index: "\n".join(lines[:usual]) for index, lines in cut.items()}


def indexed_segments(text: str, window: Window) -> dict[int, str]:
    """Return the lines of the pages of a print without addresses: those that begin with the numbers 0, 1, 2 and so on.

    Or with 1, 2, 3. ADDRESS stands in place of the index. Empty: there are no such lines.
    """
    for first in (0, 1):
        found: dict[int, str] = {}
        for line in text.split("\n"):
            number = next(numbers(line), None)
            wanted = len(found) % window.pages + first
            if number is not None and wanted in number.values:
                found[wanted - first] = line[: number.start] + ADDRESS + line[number.end :]
        if len(found) == window.pages:
            return found
    return {}


def _hits(piece: str, window: Window) -> Iterator[_Hit]:
    """Yield the addresses in a piece of text, each with the range that it begins."""
    places = [(number, index) for number in numbers(piece) if (index := window.find(number)) is not None]
    at = 0
    while at < len(places):
        number, index = places[at]
        end, last = number.end, index + 1
        if at + 1 < len(places):
            following, upper = places[at + 1]
            if upper > index and _RANGE.fullmatch(piece[number.end : following.start]):
                end, last = following.end, upper
                at += 1
        if index < window.pages:
            yield _Hit(number.start, end, index, last)
        at += 1


def mask_pfn(segment: str, pfn: int) -> tuple[str, bool]:
    """Return a segment with PFN in place of the frame number `pfn`, and whether it was there."""
    after = segment.find(ADDRESS) + 1
    for number in sorted(numbers(segment), key=lambda number: number.start < after):
        if pfn in number.values:
            return segment[: number.start] + PFN + segment[number.end :], True
    return segment, False


def mask_large(segment: str) -> str:
    """Return a segment with PFN in place of each number that is too large for a flag or an index."""
    for number in sorted(numbers(segment), key=lambda number: -number.start):
        if min(number.values) >= _LARGE:
            segment = segment[: number.start] + PFN + segment[number.end :]
    return segment


def has_number(segment: str, value: int) -> bool:
    """Return whether a number is in a segment."""
    return any(value in number.values for number in numbers(segment))
