"""Finds the length of a copy between two places before it would read bytes that it has written.

Linux does not define a copy between overlapping ranges: the bytes depend on how the processor copies. So a program's
copy is cut before the overlap. Two ranges overlap if they are the same memory of one process, or if both map the same
page of one file. A private copy counts as that page too, even if its bytes differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Map
from typing import Protocol

from kerneld.referee.outcome import Mapping
from shared.uapi.page import PAGE_MASK, PAGE_SIZE

Place = tuple[int, int]
"""A process and an address."""
_Page = tuple[object, ...]


class HasMappings(Protocol):
    """The memory of a process, as far as it is needed here."""

    @property
    def mappings(self) -> tuple[Mapping, ...]: ...


def length_without_overlap(views: Map[int, HasMappings], local: Place, remote: Place, length: int) -> int:
    """Return the number of bytes that may be copied, at most `length`. A copy of a range onto itself is no overlap."""
    pieces: dict[_Page, list[tuple[int, int, int]]] = {}
    for page, low, high, at in _pieces(views, local, length):
        pieces.setdefault(page, []).append((low, high, at))
    for page, low, high, at in _pieces(views, remote, length):
        for other_low, other_high, other_at in pieces.get(page, ()):
            first = max(low, other_low)
            if first < min(high, other_high) and at + first - low != other_at + first - other_low:
                length = min(length, max(at + first - low, other_at + first - other_low))
    return length


def _pieces(views: Map[int, HasMappings], place: Place, length: int) -> Iterator[tuple[_Page, int, int, int]]:
    """Yield for each page its identity, the start and end of its bytes in the range, and their position in the
    range."""
    who, vaddr = place
    done = 0
    while done < length:
        low = (vaddr + done) % PAGE_SIZE
        count = min(PAGE_SIZE - low, length - done)
        page = vaddr + done & PAGE_MASK
        for name in {(who, page), _file_page(views.get(who), page) or (who, page)}:
            yield name, low, low + count, done
        done += count


def _file_page(view: HasMappings | None, vaddr: int) -> _Page | None:
    for mapping in view.mappings if view is not None else ():
        if mapping.start <= vaddr < mapping.end and mapping.name and not mapping.name.startswith("["):
            return mapping.name, mapping.offset + vaddr - mapping.start
    return None
