"""Packing and unpacking of datagrams: docs/abi.md's records and nothing else. Pure: no socket, no state.

A datagram from a client holds requests back to back; the answer holds one reply for each, in order. Every record starts
with its own size, so that a reader needs no other framing.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

REQUEST = struct.Struct("<II6Q")
"""struct kd_request: size, nr, args[6]."""
_NUMBER = struct.Struct("<I")
REPLY = struct.Struct("<Iiq")
"""struct kd_reply: size, signo, ret."""
SIGINFO = struct.Struct("<iiQ")
"""struct kd_siginfo: si_code, fatal, si_addr."""
SIGINFO_PKRU = struct.Struct(f"{SIGINFO.format}II")
"""struct kd_siginfo_pkru: the same with si_pkey and the value of PKRU before the signal."""

MAX_SOCKET_PATH = 107
"""Longest path that fits sockaddr_un with its final NUL: unix(7). A longer path could be bound, but no client could
connect to it."""
MAX_DATAGRAM = 131_072
"""Longest datagram from a client, in bytes."""
MAX_REPLY = 409_600
"""Longest answer, in bytes: six full loads. The socket of an unprivileged daemon carries at most 425,952 at once."""
MAX_INLINE = 65_536
"""Most bytes that one load, store or procread moves."""
MAX_FDS = 253
"""Most file descriptors beside one datagram: Linux v6.8 include/net/scm.h SCM_MAX_FD."""

U64_MASK = (1 << 64) - 1


_PLAIN_REPLY = struct.Struct("<Qq")
"""A reply without a signal: its first 64-bit word is then just the size."""
_FEWEST_ALIKE = 4
"""From this number on, records of one size are unpacked faster all at once."""
_MAX_LAYOUTS = 32


class WireError(ValueError):
    """A datagram that does not follow the records: a size field disagrees with what is there."""


class Request(NamedTuple):
    """One request: its number, its six raw arguments (each 0 … 2**64 - 1), its inline data."""

    nr: int
    args: tuple[int, int, int, int, int, int]
    data: bytes = b""


class SigInfo(NamedTuple):
    """The data of a signal: si_code, whether the kernel has ended the process, the address, the protection key."""

    si_code: int
    fatal: bool
    si_addr: int
    si_pkey: int = 0
    """The key that denied the access, for SEGV_PKUERR."""
    pkru: int | None = None
    """The value of PKRU before the signal. The client restores it after the handler. None if it was the value of a new
    program; SEGV_PKUERR always has the value."""


class Reply(NamedTuple):
    """One reply: what Linux would return, the signal raised (0: none) with its siginfo, or inline data."""

    ret: int
    signo: int = 0
    data: bytes = b""
    siginfo: SigInfo | None = None


def pack_request(nr: int, args: tuple[int, ...] = (), data: bytes | bytearray | memoryview = b"") -> bytes:
    """Return one request as bytes; `args` are at most six integers, negative ones taken as two's complement."""
    padded = [arg & U64_MASK for arg in args]
    padded.extend([0] * (6 - len(padded)))
    size = REQUEST.size + len(data)
    head = REQUEST.pack(size, nr, *padded)
    return head + bytes(data) if data else head


def number_of(datagram: memoryview) -> int:
    """Return the number of the first request, which may be incomplete, in a buffer of at least 8 bytes."""
    number: int = _NUMBER.unpack_from(datagram, 4)[0]
    return number


def unpack_requests(datagram: bytes | memoryview) -> list[Request]:
    """Return the requests of one datagram, in order.

    Raises WireError when it is empty, or a size field is under 56 or runs past the end.
    """
    end = len(datagram)
    if end == 0:
        raise WireError("empty datagram")
    requests = _unpack_alike(datagram) if end >= _FEWEST_ALIKE * REQUEST.size else None
    if requests is not None:
        return requests
    requests = []
    offset = 0
    while offset < end:
        if end - offset < REQUEST.size:
            raise WireError("a request is cut short")
        fields = REQUEST.unpack_from(datagram, offset)
        size = fields[0]
        if size < REQUEST.size or size > end - offset:
            raise WireError(f"a request of {size} bytes where {end - offset} are left")
        data = bytes(datagram[offset + REQUEST.size : offset + size]) if size > REQUEST.size else b""
        requests.append(Request(fields[1], fields[2:], data))
        offset += size
    return requests


def _unpack_alike(datagram: bytes | memoryview) -> list[Request] | None:
    """Return the requests of a datagram if all have the same size, as in a walk over memory; else None."""
    end = len(datagram)
    size = int.from_bytes(datagram[:4], "little")
    if size < REQUEST.size or size * _FEWEST_ALIKE > end or end % size:
        return None
    records = list(_request_layout(size).iter_unpack(datagram))
    if [record[0] for record in records].count(size) != len(records):
        return None
    return [_new_request((record[1], record[2:8], record[8])) for record in records]


@functools.lru_cache(_MAX_LAYOUTS)
def _request_layout(size: int) -> struct.Struct:
    return struct.Struct(f"{REQUEST.format}{size - REQUEST.size}s")


_new_request = functools.partial(tuple.__new__, Request)
_new_reply = functools.partial(tuple.__new__, Reply)


def pack_reply(ret: int, data: bytes | memoryview = b"") -> bytes:
    """Return one reply without a signal as bytes."""
    head = REPLY.pack(REPLY.size + len(data), 0, ret)
    return head + bytes(data) if data else head


def pack_signal_reply(ret: int, signo: int, info: SigInfo) -> bytes:
    """Return one reply with a signal and its siginfo. It is longer if it has a protection key or PKRU."""
    if info.pkru is None:
        return REPLY.pack(REPLY.size + SIGINFO.size, signo, ret) + SIGINFO.pack(info.si_code, info.fatal, info.si_addr)
    return REPLY.pack(REPLY.size + SIGINFO_PKRU.size, signo, ret) + SIGINFO_PKRU.pack(*info)


def unpack_replies(datagram: bytes | memoryview) -> list[Reply]:
    """Return the replies of one answer, in order. Raises WireError on a malformed one."""
    end = len(datagram)
    if end >= _FEWEST_ALIKE * REPLY.size and end % REPLY.size == 0:
        records = list(_PLAIN_REPLY.iter_unpack(datagram))
        if [head for head, _ in records].count(REPLY.size) == len(records):
            return [_new_reply((ret, 0, b"", None)) for _, ret in records]
    replies = []
    offset = 0
    while offset < end:
        if end - offset < REPLY.size:
            raise WireError("a reply is cut short")
        size, signo, ret = REPLY.unpack_from(datagram, offset)
        if size < REPLY.size or size > end - offset:
            raise WireError(f"a reply of {size} bytes where {end - offset} are left")
        if size == REPLY.size and not signo:
            replies.append(Reply(ret))
            offset += size
            continue
        data = bytes(datagram[offset + REPLY.size : offset + size])
        info = None
        if signo:
            if len(data) not in (SIGINFO.size, SIGINFO_PKRU.size):
                raise WireError(f"a signal with {len(data)} bytes about it, not {SIGINFO.size} or {SIGINFO_PKRU.size}")
            info = unpack_siginfo(data)
        replies.append(Reply(ret, signo, data, info))
        offset += size
    return replies


def unpack_siginfo(data: bytes) -> SigInfo:
    """Return the siginfo that is the inline data of a reply with a signal."""
    if len(data) == SIGINFO_PKRU.size:
        code, fatal, addr, pkey, pkru = SIGINFO_PKRU.unpack(data)
        return SigInfo(code, bool(fatal), addr, pkey, pkru)
    code, fatal, addr = SIGINFO.unpack(data)
    return SigInfo(code, bool(fatal), addr)
