"""A maps file as values. The format is that of Linux v6.8 fs/proc/task_mmu.c:show_map_vma(). Pure."""

from __future__ import annotations

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


def parse_maps(text: str) -> list[Mapping]:
    """Return the mappings of `text`, the contents of a maps file, in their order.

    Raises ValueError on a line of another format.
    """
    mappings = []
    # Not splitlines(): it also splits at characters that may be in a name.
    for line in text.removesuffix("\n").split("\n") if text else []:
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
