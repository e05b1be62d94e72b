"""Reading a process's maps as text: Linux's lines, into values, and a name into a range. Pure: no kernel, no terminal.

The format is that of Linux v6.8 fs/proc/task_mmu.c:show_map_vma().
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Mapping(NamedTuple):
    """One line of maps: [start, end) in bytes, `rwxp`, the file offset in bytes, `major:minor`, the inode, the name."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    name: str


class NamedRun(NamedTuple):
    """The range [start, end) that a name stands for, and how many mappings of that name lie elsewhere."""

    start: int
    end: int
    elsewhere: int


def parse_maps(text: str) -> list[Mapping]:
    """Return the mappings that `text`, the contents of a maps file, lists, in its order.

    Raises ValueError on a line of another format.
    """
    mappings = []
    for line in text.splitlines():
        # The name is the rest of the line and may hold blanks.
        fields = line.split(maxsplit=5)
        if len(fields) < 5:
            raise ValueError(f"not a line of maps: {line!r}")
        start, _, end = fields[0].partition("-")
        name = fields[5] if len(fields) == 6 else ""
        mappings.append(
            Mapping(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), fields[3], int(fields[4]), name)
        )
    return mappings


def find_named(mappings: list[Mapping], name: str) -> NamedRun | None:
    """Return the range of the mappings called `name`, None for no such: `[heap]`, a file's path or base name, `heap`.

    Neighbours of one name (the segments of an ELF file, a mapping split by mprotect) are one range. The first such run
    in address order counts; the others are only counted.
    """
    found = (
        [m for m in mappings if m.name == name]
        or [m for m in mappings if os.path.basename(m.name) == name]
        # Brackets are the shell's to expand, and zsh's to refuse: `heap` is [heap] where no file is called so.
        or [m for m in mappings if m.name == f"[{name}]"]
    )
    if not name or not found:
        return None
    start, end = found[0].start, found[0].end
    run = 1
    for mapping in found[1:]:
        if mapping.start != end:
            break
        end = mapping.end
        run += 1
    return NamedRun(start, end, len(found) - run)
