"""Several requests in one datagram: all of them share one round trip to the kernel.

Owns the packing into as few datagrams as possible. A batch ends early after a request that raised a signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from shared import wire
from shared.client.calls import SystemCalls
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, page_align
from shared.uapi.shadowpt import USER_SHADOW_PT
from shared.uapi.syscalls import Access, Nr
from shared.wire import Reply

# Plain ints: an enum's member costs a look-up each time.
_STORE, _MINCORE, _PAGE_CONTENTS = int(Nr.STORE), int(Nr.MINCORE), int(Nr.SHADOWPT_PAGE_CONTENTS)
_BY_LENGTH = frozenset({int(Nr.LOAD), int(Nr.PROCREAD)})
_PACK = wire.REQUEST.pack
_SMALL_REPLY = wire.REPLY.size + USER_SHADOW_PT.size


@dataclass(slots=True)
class _Datagram:
    packed: bytearray = field(default_factory=bytearray)
    fds: list[int] = field(default_factory=list)
    requests: int = 0
    reply_bytes: int = 0


class Batch:
    """Requests collected in a with block, sent when it ends; their replies are then in `replies`, in order.

    A failed request is a reply with ret < 0, not an exception. After a caught signal, `replies` ends with the reply
    that carries the signal. A fatal signal ends the process. When the block raises, no request is sent.
    """

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        self._datagrams: list[_Datagram] = []
        self.replies: list[Reply] = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.send()

    def call(self, nr: int, *args: int, data: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Add one request. Raises ValueError when the request, or its reply, is larger than a datagram."""
        self._add(wire.pack_request(nr, args, data), _reply_bytes(nr, args), fds)

    def _add(self, packed: bytes, expected: int, fds: Sequence[int] = ()) -> None:
        if len(packed) > wire.MAX_DATAGRAM or expected > wire.MAX_REPLY or len(fds) > wire.MAX_FDS:
            raise ValueError("a request that does not fit into one datagram, or its reply")
        datagram = self._datagrams[-1] if self._datagrams else None
        if (
            datagram is None
            or len(datagram.packed) + len(packed) > wire.MAX_DATAGRAM
            or datagram.reply_bytes + expected > wire.MAX_REPLY
            or len(datagram.fds) + len(fds) > wire.MAX_FDS
        ):
            datagram = _Datagram()
            self._datagrams.append(datagram)
        datagram.packed += packed
        datagram.fds += fds
        datagram.requests += 1
        datagram.reply_bytes += expected

    def load(self, address: int, length: int) -> None:
        """Add a load of at most 65,536 bytes."""
        _check_length(length)
        self.call(Nr.LOAD, address, length)

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Add a store of at most 65,536 bytes."""
        length = len(data)
        _check_length(length)
        head = _PACK(wire.REQUEST.size + length, _STORE, address & wire.U64_MASK, length, 0, 0, 0, 0)
        self._add(head + data, _SMALL_REPLY)

    def touch(self, address: int, length: int, access: Access = Access.READ) -> None:
        """Add one access to each page of [address, address + length)."""
        self.call(Nr.TOUCH, address, length, access)

    def send(self) -> None:
        """Send the requests that have been added, and append their replies."""
        datagrams, self._datagrams = self._datagrams, []
        for datagram in datagrams:
            replies = self._calls.exchange(bytes(datagram.packed), datagram.requests, datagram.fds)
            self.replies += replies
            self._calls.deliver(replies[-1])
            if replies[-1].signo or len(replies) < datagram.requests:
                return


def _check_length(length: int) -> None:
    if length > wire.MAX_INLINE:
        raise ValueError(f"one access moves {wire.MAX_INLINE} bytes at most")


def _reply_bytes(nr: int, args: Sequence[int]) -> int:
    """Size of the longest reply to a request, in bytes. Every request gets room for a small reply."""
    inline = 0
    if nr in _BY_LENGTH and len(args) > 1:
        inline = args[1]
    elif nr == _MINCORE and len(args) > 1:
        inline = page_align(args[1]) >> PAGE_SHIFT
    elif nr == _PAGE_CONTENTS:
        inline = PAGE_SIZE
    return _SMALL_REPLY + inline
