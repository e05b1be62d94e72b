"""The reply to a request: the one place that makes its bytes out of what a call has come to.

Room for a small reply is kept for every request of a datagram from the start, so that nothing that changes anything can
lose its reply. Longer inline data comes out of what is left; where it does not fit, the reply is -EMSGSIZE. The
layout is docs/abi.md's Replies.
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
"""Bytes of the longest reply to what changes something: shadowpt_open's user_shadow_pt; a siginfo is shorter."""
ENDS_THREAD = frozenset({int(Nr.EXIT), int(Nr.EXIT_GROUP)})

seal_number = partial(wire.REPLY.pack, _REPLY_BYTES, 0)
"""The reply of a call that returns a number or -errno and nothing else: the usual one, without an object more."""


class Outcome(NamedTuple):
    """What a datagram came to: the answer, the fds that go with it, and whether the connection then ends."""

    answer: bytes
    fds: list[int]
    is_last: bool


def seal(nr: int, result: int | Answer, room: int) -> Outcome | bytes:
    """Return the reply to a request: the bytes alone where no fds go with them and the connection goes on.

    `room` is how many bytes the reply may take beyond SMALL_REPLY. Where it is too long its fds are closed.
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
    """Return how many bytes inline data of this length takes beyond what is kept for a small reply."""
    return max(0, _REPLY_BYTES + data_bytes - SMALL_REPLY)
