"""Views that are a run of records, read in pieces of any size.

Owns where each reader stands. A record (a mapping's lines, or a whole small file) is never cut by a change between two
reads: what is left of one comes first when the reader goes on where it stopped; from any other offset the records are
gone through from the start. Knows nothing of what it shows. Answers to Linux v6.8 fs/seq_file.c:seq_read_iter().

Invariant: nothing of a process is kept but bytes and an address, so that a view under way keeps no memory alive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

from kerneld.task.task import Process

START, END = 0, 1 << 64
"""The first key, and the one of a view that has been read to its end."""

Records = Iterator[tuple[int, bytes] | None]
"""Records in order, each with the key from which the next one is found; None where others may be served."""
_MOST_AT_ONCE = 64
"""Records between two such places."""
Show = Callable[[int], Records]
"""A view: its records from a key on."""


class _Position(NamedTuple):
    """Where a reader stands in the view that it read last."""

    path: str
    offset: int
    key: int
    rest: bytes
    """What is left of the record before `key`."""


def one_record(render: Callable[[], bytes]) -> Show:
    """Return the view of something that is shown at once."""

    def show(key: int) -> Records:
        if key == START:
            yield END, render()

    return show


class SeqFiles:
    """The sequential reads that are under way: one a process, that of the view it read last."""

    def __init__(self) -> None:
        self._positions: WeakKeyDictionary[Process, _Position] = WeakKeyDictionary()

    def read(self, reader: Process, path: str, show: Show, offset: int, length: int) -> Generator[None, None, bytes]:
        """Return up to `length` bytes of a view from `offset`, in bytes; nothing at its end. Yields between pieces."""
        position = self._positions.get(reader)
        skip, key, data = offset, START, bytearray()
        if position is not None and offset and (position.path, position.offset) == (path, offset):
            skip, key, data = 0, position.key, bytearray(position.rest)
        if skip or len(data) < length:
            for nr_seen, found in enumerate(show(key), 1):
                if found is None or not nr_seen % _MOST_AT_ONCE:
                    yield
                if found is None:
                    continue
                key, record = found
                data += record
                dropped = min(skip, len(data))
                del data[:dropped]
                skip -= dropped
                if not skip and len(data) >= length:
                    break
            else:
                key = END
        chunk = bytes(data[:length])
        self._positions[reader] = _Position(path, offset + len(chunk), key, bytes(data[length:]))
        return chunk
