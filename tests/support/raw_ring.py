"""A ring as docs/abi.md, "Ring", describes it, for the raw client."""

from __future__ import annotations

import mmap
import os

from tests.support import raw

RING, RING_BELL = 0x100E, 0x100F
RING_BYTES = 65_536
REQUESTS, ANSWERS = 256, 32_768
REQUEST_NUMBER, REQUEST_BYTES, WATCHED, ANSWER_NUMBER, ANSWER_BYTES = 0, 1, 8, 16, 17


class RawRing:
    """A ring of a raw connection. `fd` stays open, as no good client does it."""

    def __init__(self, thread: raw.RawThread) -> None:
        self._thread = thread
        reply = thread.call(RING)
        assert (reply.ret, len(reply.fds)) == (RING_BYTES, 1)
        (self.fd,) = reply.fds
        self.map = mmap.mmap(self.fd, RING_BYTES)
        self.words = memoryview(self.map).cast("Q")

    def put(self, datagram: bytes, size: int | None = None) -> None:
        """Write a datagram; `size` instead of the true one."""
        self.map[REQUESTS : REQUESTS + len(datagram)] = datagram
        self.words[REQUEST_BYTES] = len(datagram) if size is None else size
        self.words[REQUEST_NUMBER] += 1

    def bell(self) -> list[raw.Reply]:
        """Ring the bell and return what comes by the socket next."""
        return self._thread.exchange(raw.pack(RING_BELL))

    @property
    def answer(self) -> list[raw.Reply]:
        """The answer in the ring to the last datagram, which is there."""
        assert self.words[ANSWER_NUMBER] == self.words[REQUEST_NUMBER]
        return raw.unpack(self.map[ANSWERS : ANSWERS + self.words[ANSWER_BYTES]])

    def exchange(self, datagram: bytes) -> list[raw.Reply]:
        """Write a datagram, wait for the reply to the bell, and return the answer in the ring."""
        self.put(datagram)
        assert self.bell() == [raw.Reply(0)]
        return self.answer

    def close(self) -> None:
        """Unmap the ring."""
        self.words.release()
        self.map.close()
        os.close(self.fd)
