"""The chunks that a viewer has so far: what a page that connects is sent first. Knows no network.

A live record may run for days. Beyond a size the oldest chunks are dropped, up to a key frame, so that what is left
still begins with one.
"""

from __future__ import annotations

from collections import deque

from shared.recording.chunks import KEY, Chunk

MAX_BYTES = 256 << 20


class History:
    """Chunks by number, counted from the first that ever was; the oldest may be gone."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._chunks: deque[Chunk] = deque()
        self._max_bytes = max_bytes
        self._bytes = 0
        self.begin = 0
        """The number of the oldest chunk that is left. It is a key frame."""

    @property
    def end(self) -> int:
        """The number of the next chunk."""
        return self.begin + len(self._chunks)

    def add(self, chunk: Chunk) -> None:
        """Add a chunk."""
        self._chunks.append(chunk)
        self._bytes += len(chunk.stored)
        if self._bytes > self._max_bytes:
            self._drop()

    def _drop(self) -> None:
        """Drop the oldest chunks up to the next key frame, as often as it takes, but not the last key frame."""
        keys = [self.begin + place for place, chunk in enumerate(self._chunks) if chunk.kind == KEY]
        for number in keys[1:]:
            if self._bytes <= self._max_bytes * 3 // 4:
                return
            while self.begin < number:
                self._bytes -= len(self._chunks.popleft().stored)
                self.begin += 1

    def get(self, number: int) -> Chunk | None:
        """Return a chunk; None for one that is gone or has not come."""
        return self._chunks[number - self.begin] if self.begin <= number < self.end else None

    def all(self) -> list[Chunk]:
        """Return every chunk that is left."""
        return list(self._chunks)
