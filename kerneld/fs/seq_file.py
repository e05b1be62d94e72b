"""Views that consist of records, read in pieces of any size.

Owns the position of each reader: of a thread, so that the threads of one process may read at the same time. A change
between two reads never cuts a record (the lines of a mapping, or a whole small file): a reader that continues at its
last offset first gets the rest of the last record. A read from another offset starts at the first record. Knows nothing
about the contents. Answers to Linux v6.8 fs/seq_file.c:seq_read_iter().

Invariant: of a reader only bytes and an address are kept. So an unfinished view keeps no memory alive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

from kerneld.task.task import Thread

START, END = 0, 1 << 64
"""The first key, and the key at the end of a view."""

Records = Iterator[tuple[int, bytes] | None]
"""Records in order, each with the key of the next record; None where other clients may be served."""
_MOST_AT_ONCE = 64
"""The number of records between two such places."""
Show = Callable[[int], Records]
"""A view: its records from a key on."""


class _Position(NamedTuple):
    """The position of a reader in the view that it read last."""

    path: str
    offset: int
    key: int
    rest: bytes
    """The rest of the record before `key`."""


def one_record(render: Callable[[], bytes]) -> Show:
    """Return a view with a single record."""

    def show(key: int) -> Records:
        if key == START:
            yield END, render()

    return show


class SeqFiles:
    """The unfinished sequential reads: for each thread, the position in the view that it read last."""

    def __init__(self) -> None:
        self._positions: WeakKeyDictionary[Thread, _Position] = WeakKeyDictionary()

    def read(self, reader: Thread, path: str, show: Show, offset: int, length: int) -> Generator[None, None, bytes]:
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
