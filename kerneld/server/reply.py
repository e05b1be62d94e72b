"""Makes the bytes of the reply to a request, from the result of its call. No other code does.

Room for a small reply is kept for every request of a datagram from the start. So a call that changes something always
has room for its reply. Longer inline data uses the rest. If it does not fit, the reply is -EMSGSIZE. docs/abi.md,
"Records", has the layout.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import NamedTuple

from kerneld.server.connection import close_fds
from kerneld.syscalls.answer import Answer
from shared import wire
from shared.uapi.syscalls import Nr

_REPLY_BYTES = wire.REPLY.size
SMALL_REPLY = _REPLY_BYTES + 24
"""Size in bytes of the longest reply of a call that changes something: shadowpt_open's. A siginfo is shorter."""
ENDS_THREAD = frozenset({int(Nr.EXIT), int(Nr.EXIT_GROUP)})

seal_number = partial(wire.REPLY.pack, _REPLY_BYTES, 0)
"""Packs the usual reply, a number or -errno and nothing else, without an additional object."""


class Outcome(NamedTuple):
    """The result of a datagram: the answer, the fds to send with it, and whether the connection then ends."""

    answer: bytes
    fds: list[int]
    is_last: bool


def seal(nr: int, result: int | Answer, room: int) -> Outcome | bytes:
    """Return the reply to a request: only its bytes if it has no fds and the connection stays open.

    `room` is the number of bytes that the reply may take beyond SMALL_REPLY. The fds of a reply that is too long are
    closed.
    """
    if isinstance(result, int):
        reply = seal_number(result)
        return Outcome(reply, [], True) if nr in ENDS_THREAD and result == 0 else reply
    ret, data, signo, siginfo, fds = result
    if _REPLY_BYTES + len(data) - SMALL_REPLY > room:
        close_fds(fds)
        return seal_number(-errno.EMSGSIZE)
    if siginfo is not None:
        return Outcome(wire.pack_signal_reply(ret, signo, siginfo), list(fds), bool(siginfo.fatal))
    reply = wire.pack_reply(ret, data)
    is_last = nr in ENDS_THREAD and ret == 0
    return Outcome(reply, list(fds), is_last) if fds or is_last else reply


def refuse(count: int, code: int) -> Outcome:
    """Return the outcome of a datagram whose `count` requests all get the same errno."""
    return Outcome(seal_number(-code) * count, [], False)


def long_bytes(data_bytes: int) -> int:
    """Return the number of bytes that inline data of this length takes beyond the room of a small reply."""
    return max(0, _REPLY_BYTES + data_bytes - SMALL_REPLY)
