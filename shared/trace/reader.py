"""The reader's side of a ring: takes what is there, waits for more, says how much was lost.

Owns the mapping and the wake-up pipe. Trusts the kernel that writes. Whoever holds it drains it now and then: what does
not fit is lost, and the kernel waits for nobody.
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
"""The longest sleep: fewer bytes than are worth a wake-up may lie there, and a wake-up can be missed where the
processor still holds back the word that asks for it."""
_PIPE_BYTES = 4096


class Reader:
    """One ring, read by one thread."""

    def __init__(self, ring_fd: int, wake_fd: int) -> None:
        """Take both descriptors over; they are closed with the reader. Raises OSError, ValueError for no ring."""
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
        """How many records have found no room since the start."""
        return self._words[LOST_WORD]

    @property
    def is_ended(self) -> bool:
        """Whether the kernel will write no more; what is still there can be read."""
        return self._words[ENDED] != 0

    @property
    def unread_bytes(self) -> int:
        """How much there is to read now."""
        return self._words[DATA_HEAD] - self._words[DATA_TAIL] & U64

    @property
    def size_bytes(self) -> int:
        """How much the ring holds."""
        return self._size

    def read(self) -> Iterator[Entry]:
        """Yield every record that is there now; its room is free from then on."""
        yield from decode(self.take())

    def take(self) -> bytes:
        """Return the bytes of every record that is there now; their room is free from then on."""
        head, tail = self._words[DATA_HEAD], self._words[DATA_TAIL]
        length = head - tail & U64
        start = tail & self._size - 1
        first = bytes(self._data[start : min(start + length, self._size)])
        data = first + bytes(self._data[: length - len(first)])
        self._words[DATA_TAIL] = head
        return data

    def wait(self, timeout_seconds: float | None = None, *others: int, wanted_bytes: int = 1) -> bool:
        """Wait until there is something to read, and return whether there is: for so much, or a moment.

        Ends early too where the ring has ended, or one of `others` (descriptors) is ready to be read or hung up.
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
