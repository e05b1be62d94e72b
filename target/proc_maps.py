"""The target's view of its own address space: /proc/self/maps and /proc/self/pagemap, parsed.

Answers to Linux v6.8 fs/proc/task_mmu.c: show_map_vma() and pagemap_read(). Knows the two formats, no kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shared.client import Process
from shared.uapi.page import PAGE_SHIFT

_PAGEMAP_ENTRY = struct.Struct("<Q")
_PM_PRESENT = 1 << 63
"""Linux v6.8 fs/proc/task_mmu.c: PM_PRESENT and PM_PFRAME_BITS."""
_PM_PFN_MASK = (1 << 55) - 1


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/self/maps: the range [start, end), the four letters of its rights, its name (may be '')."""

    start: int
    end: int
    rights: str
    name: str
    line: str


def read_maps(process: Process) -> list[Mapping]:
    """Return the mappings of `process`, sorted by address. Raises OSError as the read does."""
    return parse_maps(process.read_proc("self/maps").decode(errors="surrogateescape"))


def parse_maps(text: str) -> list[Mapping]:
    """Return the mappings that the text of a maps file lists."""
    mappings = []
    for line in text.splitlines():
        span, rights, _offset, _device, _inode, *name = line.split(maxsplit=5)
        start, _, end = span.partition("-")
        mappings.append(Mapping(int(start, 16), int(end, 16), rights, name[0] if name else "", line.rstrip()))
    return mappings


def find_mapping(mappings: list[Mapping], name: str) -> Mapping | None:
    """Return the first mapping called `name`, `[stack]` or a path; None if there is none."""
    return next((mapping for mapping in mappings if mapping.name == name), None)


def read_pfns(process: Process, start: int, pages: int) -> list[int]:
    """Return the frame numbers of `pages` pages from the page-aligned address `start`; 0 for a page without a frame.

    A process without privilege reads 0 for all pages, as on Linux.
    """
    size = _PAGEMAP_ENTRY.size
    data = process.procread("self/pagemap", (start >> PAGE_SHIFT) * size, pages * size)
    words = (word for (word,) in _PAGEMAP_ENTRY.iter_unpack(data))
    return [word & _PM_PFN_MASK if word & _PM_PRESENT else 0 for word in words]
