"""The reader's side of a ring: reads records, waits for more, counts lost records.

Owns the mapping and the wake-up pipe. Trusts the kernel, which writes the ring. The caller must read often enough: the
kernel does not wait, and records that find no room are lost.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Iterator

from shared.trace.record import Entry, decode
from shared.trace.ring import (
    DATA_HEAD,
    DATA_OFFSET,
    DATA_SIZE,
    DATA_TAIL,
    ENDED,
    HEADER_BYTES,
    LOST_WORD,
    SLEEPING,
    U64,
    VERSION,
    VERSION_WORD,
)

_NAP_SECONDS = 0.1
"""The longest sleep. There may be fewer bytes than the wake-up level. And a wake-up can be missed, when the
processor has not yet made the SLEEPING word visible to the kernel."""
_PIPE_BYTES = 4096


class Reader:
    """One ring, read by one thread."""

    def __init__(self, ring_fd: int, wake_fd: int) -> None:
        """Take both descriptors; the reader closes them. Raises OSError, and ValueError for a file that is no ring."""
        self._wake_fd = wake_fd
        try:
            self._map = mmap.mmap(ring_fd, 0)
        except BaseException:
            os.close(wake_fd)
            raise
        finally:
            os.close(ring_fd)
        view = memoryview(self._map)
        self._words = view[:HEADER_BYTES].cast("Q")
        offset, self._size = self._words[DATA_OFFSET], self._words[DATA_SIZE]
        self._data = view[offset : offset + self._size]
        if self._words[VERSION_WORD] != VERSION or len(self._data) != self._size:
            self.close()
            raise ValueError("a ring of another version")

    @property
    def lost(self) -> int:
        """The number of records since the start that found no room."""
        return self._words[LOST_WORD]

    @property
    def is_ended(self) -> bool:
        """Whether the kernel writes no more records. Those in the ring can still be read."""
        return self._words[ENDED] != 0

    @property
    def unread_bytes(self) -> int:
        """The number of bytes that can be read now."""
        return self._words[DATA_HEAD] - self._words[DATA_TAIL] & U64

    @property
    def size_bytes(self) -> int:
        """The size of the ring's data area in bytes."""
        return self._size

    def read(self) -> Iterator[Entry]:
        """Yield every record in the ring, and free its room."""
        yield from decode(self.take())

    def take(self) -> bytes:
        """Return the bytes of all records in the ring, and free their room."""
        head, tail = self._words[DATA_HEAD], self._words[DATA_TAIL]
        length = head - tail & U64
        start = tail & self._size - 1
        first = bytes(self._data[start : min(start + length, self._size)])
        data = first + bytes(self._data[: length - len(first)])
        self._words[DATA_TAIL] = head
        return data

    def wait(self, timeout_seconds: float | None = None, *others: int, wanted_bytes: int = 1) -> bool:
        """Wait until `wanted_bytes` can be read, or for the time. Return whether there is something to read.

        The wait also ends when the ring has ended, or a descriptor of `others` becomes readable or hangs up.
        """
        words = self._words
        if self.unread_bytes >= wanted_bytes or self.is_ended:
            return self.unread_bytes > 0
        words[SLEEPING] = wanted_bytes
        if self.unread_bytes < wanted_bytes and not self.is_ended:
            nap = _NAP_SECONDS if timeout_seconds is None else min(timeout_seconds, _NAP_SECONDS)
            poll = select.poll()
            for fd in (self._wake_fd, *others):
                poll.register(fd, select.POLLIN)
            if self._wake_fd in [fd for fd, _ in poll.poll(nap * 1000)]:
                os.read(self._wake_fd, _PIPE_BYTES)
        words[SLEEPING] = 0
        return self.unread_bytes > 0

    def close(self) -> None:
        """Unmap the ring and close the pipe."""
        self._words.release()
        self._data.release()
        self._map.close()
        os.close(self._wake_fd)
