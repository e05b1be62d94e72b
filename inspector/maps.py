"""Finds the range of a mapping by its name. Pure: no kernel, no terminal."""

from __future__ import annotations

import os
from typing import NamedTuple

from shared.proc_maps import Mapping


class NamedRun(NamedTuple):
    """The range [start, end) of a name, and the number of mappings with that name at other places."""

    start: int
    end: int
    elsewhere: int


def find_named(mappings: list[Mapping], name: str) -> NamedRun | None:
    """Return the range of the mappings called `name`, or None. A name is `[heap]`, `heap`, a file's path or base name.

    Neighbours with one name (the segments of an ELF file, a mapping split by mprotect) are one range. The range is the
    first such run in address order. The mappings of later runs are only counted.
    """
    found = (
        [m for m in mappings if m.name == name]
        or [m for m in mappings if os.path.basename(m.name) == name]
        # A shell may expand brackets, and zsh refuses them. So `heap` means [heap] if no file has that name.
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
