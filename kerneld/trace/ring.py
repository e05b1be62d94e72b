"""The kernel's side of a ring: writes whole records, never waits for the reader, and does not trust the reader.

Owns the mapping of the memory file and the pipe that wakes the reader, also after the last record. The kernel keeps its
own head, count of lost records and size, and only writes copies of them into the ring. It checks that the reader's tail
is possible: a wrong tail costs the reader records, and the kernel nothing. The file is sealed against truncation, so no
store here can fail. The two ends of the pipe are separate file descriptions, so no flag that the reader sets makes a
write block.

Answers to Linux v6.8 kernel/events/ring_buffer.c: perf_output_begin(), perf_output_wakeup().
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

import numpy as np

from shared.trace.record import LOST_RECORD, SIZE, pack_lost
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
from shared.uapi.page import PAGE_SHIFT

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ReaderGone(Exception):
    """The pipe has no reader any more."""


class Ring:
    """One ring of `data_pages`, a power of two."""

    def __init__(self, data_pages: int) -> None:
        """Make the ring. Raises OSError if the host cannot provide it. Then nothing is left behind."""
        self._size = data_pages << PAGE_SHIFT
        self._head = 0
        self._lost = 0
        self._untold = 0
        """The number of records lost since the last record that found room."""
        with contextlib.ExitStack() as undo:
            self._fd = os.memfd_create("kerneld-trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, self._fd)
            os.ftruncate(self._fd, HEADER_BYTES + self._size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
            self._reader_end, self.pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, self._reader_end)
            undo.callback(os.close, self.pipe)
            self._map = mmap.mmap(self._fd, HEADER_BYTES + self._size)
            undo.pop_all()
        view = memoryview(self._map)
        self._words = view[:HEADER_BYTES].cast("Q")
        self._data = view[HEADER_BYTES:]
        self._words[VERSION_WORD] = VERSION
        self._words[DATA_OFFSET] = HEADER_BYTES
        self._words[DATA_SIZE] = self._size

    def take_fds(self) -> tuple[int, int]:
        """Return the reader's descriptors of the file and of the pipe; the caller closes them. Call it only once."""
        fds = self._fd, self._reader_end
        self._fd = self._reader_end = -1
        return fds

    def write(self, chunks: list[bytes]) -> None:
        """Write records; each chunk has one or more whole records. Records without room are lost and counted.

        Raises ReaderGone if the pipe of a wake-up has no reader.
        """
        if self._untold:
            chunks = [pack_lost(self._untold), *chunks]
        room = self._room()
        if sum(map(len, chunks)) > room:
            chunks = self._cut(chunks, room)
        else:
            self._untold = 0
        data = b"".join(chunks)
        if data:
            self._put(data)
        wanted = self._words[SLEEPING]
        if wanted and self._size - self._room() >= wanted:
            self._wake()

    def lose(self, count: int, size: int) -> bool:
        """Lose `count` records of `size` bytes, if not even one finds room. Return whether they are lost."""
        if self._room() >= size + (LOST_RECORD.size if self._untold else 0):
            return False
        self._untold += count
        self._lost += count
        self._words[LOST_WORD] = self._lost & U64
        return True

    def _room(self) -> int:
        used = self._head - self._words[DATA_TAIL] & U64
        return self._size - used if used <= self._size else 0

    def _cut(self, chunks: list[bytes], room: int) -> list[bytes]:
        """Return the records that fit, and count the others.

        A record that counts lost records is not counted itself.
        """
        kept: list[bytes] = []
        told = not self._untold
        lost = 0
        for number, chunk in enumerate(chunks):
            fitting, left_over = _divide(chunk, room)
            room = room - len(fitting) if not left_over else 0
            if fitting:
                kept.append(fitting)
                told = True
            if told or number:
                lost += left_over
        self._untold = lost if told else self._untold + lost
        self._lost += lost
        self._words[LOST_WORD] = self._lost & U64
        return kept

    def _put(self, data: bytes) -> None:
        at = self._head & self._size - 1
        first = min(len(data), self._size - at)
        self._data[at : at + first] = data[:first]
        if first < len(data):
            self._data[: len(data) - first] = data[first:]
        # The head is stored last, as one aligned word. A reader that sees it sees the records: x86 keeps stores in
        # order.
        self._head = self._head + len(data) & U64
        self._words[DATA_HEAD] = self._head

    def _wake(self) -> None:
        self._words[SLEEPING] = 0
        try:
            os.write(self.pipe, b"\0")
        except BlockingIOError:
            pass  # The pipe is full, so it wakes the reader anyway.
        except OSError:
            raise ReaderGone from None

    def end(self) -> None:
        """Tell the reader that no more records come. Nothing may be written afterwards. Call it only once."""
        if self._untold:
            with contextlib.suppress(ReaderGone):
                self.write([])
        self._words[ENDED] = 1

    def empty(self) -> None:
        """Free the memory of the file, also if others have it open or mapped. Its bytes are then zeros.

        No seal forbids that. A process that touches the pages again pays for them itself (memory cgroups).
        """
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Unmap the file and close the pipe."""
        self._words.release()
        self._data.release()
        self._map.close()
        for fd in (self._fd, self._reader_end, self.pipe):
            if fd >= 0:
                os.close(fd)


def _divide(chunk: bytes, room: int) -> tuple[bytes, int]:
    """Return the records at the beginning of a chunk that fit into so many bytes, and how many are left over."""
    if len(chunk) <= room:
        return chunk, 0
    (size,) = SIZE.unpack_from(chunk)
    if len(chunk) == size:
        return b"", 1
    count, rest = divmod(len(chunk), size)
    if not rest and not size % 2 and (np.frombuffer(chunk, dtype="<u2")[:: size // 2] == size).all():
        fitting = room // size
        return chunk[: fitting * size], count - fitting
    at = end = left_over = 0
    while at < len(chunk):
        at += SIZE.unpack_from(chunk, at)[0]
        if at <= room:
            end = at
        else:
            left_over += 1
    return chunk[:end], left_over
