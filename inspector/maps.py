"""A name of a process's maps, into a range. Pure: no kernel, no terminal."""

from __future__ import annotations

import os
from typing import NamedTuple

from shared.proc_maps import Mapping


class NamedRun(NamedTuple):
    """The range [start, end) that a name stands for, and how many mappings of that name lie elsewhere."""

    start: int
    end: int
    elsewhere: int


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
