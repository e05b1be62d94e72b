"""The simulated memory of this process, as its processor sees it: loads, stores and touches.

Owns the splitting: one request moves at most 65,536 bytes, and a datagram has several requests. An access that raises
a caught signal is tried again after the handler, from the first byte that was not accessed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from shared import wire
from shared.client.calls import SystemCalls
from shared.client.errors import KerneldError
from shared.uapi.page import PAGE_MASK, PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from shared.wire import Reply

_LOADS_A_DATAGRAM = wire.MAX_REPLY // (wire.REPLY.size + wire.MAX_INLINE)
_STORES_A_DATAGRAM = 2
# Plain ints: an enum's member costs a look-up each time, and struct asks it for its value.
_LOAD, _STORE = int(Nr.LOAD), int(Nr.STORE)
_STORE_BYTES = (wire.MAX_DATAGRAM // _STORES_A_DATAGRAM - wire.REQUEST.size) & PAGE_MASK
"""The bytes of one store; a datagram has two. They are whole pages if the range is aligned: no page faults twice."""


class Memory:
    """mem[a:b] reads, mem[a:b] = bytes writes; integers by width are little-endian and unsigned."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls

    def __getitem__(self, where: int | slice) -> bytes:
        """Return the bytes of mem[a:b], or the one of mem[a]. A fault raises its signal in this process."""
        return self.load(*_bounds(where))

    def __setitem__(self, where: int | slice, data: bytes | bytearray | memoryview) -> None:
        """Write mem[a:b] = data, or one byte mem[a] = data. Raises ValueError when the sizes differ."""
        address, length = _bounds(where)
        if length != len(data):
            raise ValueError(f"{len(data)} bytes for {length} bytes of memory")
        self.store(address, data)

    def load(self, address: int, length: int) -> bytes:
        """Return `length` bytes from `address`."""
        if length <= wire.MAX_INLINE:
            return self._load_one(address, length) if length else b""
        parts: list[bytes] = []
        done = 0
        while done < length:
            pieces = list(_pieces(address + done, length - done, wire.MAX_INLINE, _LOADS_A_DATAGRAM))
            datagram = b"".join(wire.pack_request(Nr.LOAD, piece) for piece in pieces)
            for (_at, size), reply in zip(pieces, self._exchange(datagram, len(pieces)), strict=False):
                if not reply.signo:
                    _check(reply.ret, size)
                    parts.append(reply.data)
                    done += size
        return b"".join(parts)

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `address`."""
        whole = memoryview(data).cast("B")
        length = len(whole)
        if length <= _STORE_BYTES:
            if length:
                self._store_one(address, bytes(whole))
            return
        done = 0
        while done < length:
            pieces = list(_pieces(address + done, length - done, _STORE_BYTES, _STORES_A_DATAGRAM))
            datagram = b"".join(
                wire.pack_request(Nr.STORE, (at, size), whole[at - address : at - address + size])
                for at, size in pieces
            )
            done += self._stored(datagram, pieces)

    def store_words(self, words: Sequence[tuple[int, int]]) -> None:
        """Write 64-bit integers, given as (address, value), in this order and in one datagram."""
        while words:
            datagram = b"".join(
                wire.pack_request(Nr.STORE, (at, 8), value.to_bytes(8, "little")) for at, value in words
            )
            # A word is written again as a whole when its store was interrupted.
            words = words[self._stored(datagram, [(at, 8) for at, _value in words]) // 8 :]

    def touch(self, address: int, length: int, access: Access = Access.READ) -> int:
        """Access each page of [address, address + length) once, without data. Return the number of pages."""
        end = address + length
        total = 0
        while address < end:
            ret, signo, _answer = self._calls.trap(Nr.TOUCH, (address, end - address, access))
            if ret < 0:
                raise OSError(-ret, os.strerror(-ret))
            total += ret
            if not signo:
                break
            if ret:
                address = (address & PAGE_MASK) + ret * PAGE_SIZE
        return total

    def load_u8(self, address: int) -> int:
        """Return the byte at `address`."""
        return int.from_bytes(self._load_one(address, 1), "little")

    def load_u16(self, address: int) -> int:
        """Return the 16-bit integer at `address`."""
        return int.from_bytes(self._load_one(address, 2), "little")

    def load_u32(self, address: int) -> int:
        """Return the 32-bit integer at `address`."""
        return int.from_bytes(self._load_one(address, 4), "little")

    def load_u64(self, address: int) -> int:
        """Return the 64-bit integer at `address`."""
        return int.from_bytes(self._load_one(address, 8), "little")

    def store_u8(self, address: int, value: int) -> None:
        """Write a byte at `address`. Raises OverflowError when `value` does not fit, as the other widths do."""
        self._store_one(address, value.to_bytes(1, "little"))

    def store_u16(self, address: int, value: int) -> None:
        """Write a 16-bit integer at `address`."""
        self._store_one(address, value.to_bytes(2, "little"))

    def store_u32(self, address: int, value: int) -> None:
        """Write a 32-bit integer at `address`."""
        self._store_one(address, value.to_bytes(4, "little"))

    def store_u64(self, address: int, value: int) -> None:
        """Write a 64-bit integer at `address`."""
        self._store_one(address, value.to_bytes(8, "little"))

    def _load_one(self, address: int, length: int) -> bytes:
        while True:
            ret, signo, data = self._calls.trap(_LOAD, (address, length))
            if not signo:
                _check(ret, length)
                return data

    def _store_one(self, address: int, data: bytes) -> None:
        while True:
            ret, signo, _answer = self._calls.trap(_STORE, (address, len(data)), data)
            if not signo:
                _check(ret, len(data))
                return
            if ret > 0:
                address += ret
                data = data[ret:]

    def _exchange(self, datagram: bytes, count: int) -> list[Reply]:
        replies = self._calls.exchange(datagram, count)
        self._calls.deliver(replies[-1])
        return replies

    def _stored(self, datagram: bytes, pieces: Sequence[tuple[int, int]]) -> int:
        """Send the stores of `pieces` and return the number of bytes stored before a signal, or of all bytes."""
        done = 0
        for (_at, size), reply in zip(pieces, self._exchange(datagram, len(pieces)), strict=False):
            if reply.signo:
                return done + max(reply.ret, 0)
            _check(reply.ret, size)
            done += size
        return done


def _bounds(where: int | slice) -> tuple[int, int]:
    """Return (address, length) of an index."""
    if isinstance(where, int):
        return where, 1
    if where.step is not None or where.start is None or where.stop is None:
        raise ValueError("a range of memory is mem[start:end], both given, without a step")
    start, end = int(where.start), int(where.stop)
    if end < start or end - start > sys.maxsize:
        raise ValueError(f"no range of memory: {start:#x} to {end:#x}")
    return start, end - start


def _pieces(address: int, length: int, most: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the first `count` (address, length) pieces of a range: at most `most` bytes, ending at a page's end."""
    end = address + length
    while address < end and count:
        stop = min((address + most) & PAGE_MASK, end)
        yield address, stop - address
        address = stop
        count -= 1


def _check(ret: int, length: int) -> None:
    """Raise OSError for an errno, and KerneldError for a short access without a signal."""
    if ret < 0:
        raise OSError(-ret, os.strerror(-ret))
    if ret != length:
        raise KerneldError(f"kerneld moved {ret} bytes where {length} were asked for")
