"""Which files are mapped in the machine, as native programs look it up before each read and write of a file.

Owns frame 0 of the RAM, which is nobody's: a byte for each of some hash values of a file's numbers, not 0 where a file
with that value is mapped, and as many more for those that may be written through a mapping. A program whose file has a
0 there need not ask. Knows no descriptor.
"""

from __future__ import annotations

from collections import Counter

from kerneld.hw.ram import Ram

BUCKETS = 2048
"""Half of a page."""
_GOLDEN = 0x9E37_79B1
Key = tuple[int, int]


def bucket_of(key: Key) -> int:
    """Return a file's place, by its st_dev and st_ino. The stub has the same function (files.c)."""
    dev, ino = key
    return ((ino ^ dev) * _GOLDEN & 0xFFFF_FFFF) >> 21


class MappedFiles:
    """The two tables of one machine."""

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self._counts: Counter[int] = Counter()

    def add(self, key: Key, *, writable: bool = False) -> None:
        """A file is mapped from now on, or may be written through a mapping."""
        self._change(bucket_of(key) + BUCKETS * writable, 1)

    def remove(self, key: Key, *, writable: bool = False) -> None:
        """It is no longer."""
        self._change(bucket_of(key) + BUCKETS * writable, -1)

    def _change(self, at: int, by: int) -> None:
        self._counts[at] += by
        self._ram.write(at, b"\1" if self._counts[at] else b"\0")
