"""One datagram answered: every rule of docs/abi.md's Transport that needs no socket.

| datagram                                             | answer                                 | connection |
|------------------------------------------------------|----------------------------------------|------------|
| from a process that is not the one that attached     | -EPERM for each request (malformed: 1) | stays      |
| over MAX_DATAGRAM, empty, a size field that is wrong | one -EBADMSG                           | closed     |
| not attached, first request not `attach`             | one -EBADMSG                           | closed     |
| its fds did not fit our fd table                     | -EMFILE for each request               | stays      |
| `attach` on an attached connection                   | -EINVAL for it, the others run         | stays      |
| `attach` refused                                     | its errno for it and for all behind it | stays      |
| a request raises a signal that is not fatal          | ends with its reply                    | stays      |
| a request ends the thread or the process             | ends with its reply                    | closed     |

Who sent it is decided by the pid alone, on every datagram. The uid beside it is the real process's at that moment and
may rightly differ from the one at `attach` (a set-user-ID program, a real setuid); what a task may do follows the
credentials that the kernel keeps for it, which only the simulated setuid changes.

How a batch is run is `kerneld.server.batch`'s, and how a reply is made `kerneld.server.reply`'s.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from kerneld.server.batch import ATTACH, SENDS_FDS, SLICE_SECONDS, Batch
from kerneld.server.reply import ENDS_THREAD, SMALL_REPLY, Outcome, refuse, seal, seal_number
from kerneld.server.session import NO_ARGS, Session
from kerneld.syscalls.answer import Call, Work
from kerneld.syscalls.dispatch import run
from shared import wire

if TYPE_CHECKING:
    from kerneld.server.connection import Datagram
    from kerneld.syscalls.kernel import Kernel, Sender

_UNUSUAL = SENDS_FDS | {ATTACH}
_UNPACK, _REQUEST_BYTES = wire.REQUEST.unpack_from, wire.REQUEST.size

Attach = Callable[[Session, "Sender", wire.Request], int]


def answer_usual(session: Session, view: memoryview, length: int) -> Outcome | Batch | bytes | None:
    """Answer the usual datagram, one request of the attached sender's, without fds on the way there or back.

    It is the first `length` bytes.

    Returns the bytes alone where the reply is a number; None for whatever else the datagram may be, which
    `answer_datagram` knows, and a batch of one where the request goes on. What that checks holds here: the request is
    whole, a load of any length fits. It makes no object that it need not: a request takes some microseconds, and each
    object a part of one.
    """
    if length < _REQUEST_BYTES:
        return None
    fields = _UNPACK(view)
    nr = fields[1]
    call = session.call
    if fields[0] != length or nr in _UNUSUAL or call is None:
        return None
    call.args = fields[2:]
    if length > _REQUEST_BYTES:
        call.data = bytes(view[_REQUEST_BYTES:length])
        result = run(call, nr)
        call.data = b""
    else:
        result = run(call, nr)
    if isinstance(result, int) and nr not in ENDS_THREAD:
        return seal_number(result)
    if isinstance(result, Work):
        batch = Batch(session, call, [wire.Request(nr, call.args, b"")], result)
        return batch.run(SLICE_SECONDS) or batch
    return seal(nr, result, session.connection.reply_limit - SMALL_REPLY)


def answer_datagram(
    kernel: Kernel, session: Session, datagram: Datagram, attach: Attach, slice_seconds: float = SLICE_SECONDS
) -> Outcome | Batch:
    """Return the answer to one datagram, having run its requests; its fds that were not consumed stay in it.

    `attach(session, sender, request)` attaches the session and returns the pid or -errno. A batch that is longer than a
    turn may be is returned as far as it came: `Batch.run` goes on with it.
    """
    thread = session.thread
    is_stranger = thread is not None and datagram.sender.pid != thread.process.pid
    try:
        if datagram.is_cut:
            raise wire.WireError("longer than a datagram may be")
        requests = wire.unpack_requests(datagram.data)
        if thread is None and requests[0].nr != ATTACH:
            raise wire.WireError("the first request is not attach")
    except wire.WireError:
        return refuse(1, errno.EPERM) if is_stranger else Outcome(wire.pack_reply(-errno.EBADMSG), [], True)
    if is_stranger:
        return refuse(len(requests), errno.EPERM)
    if datagram.lost_fds:
        return refuse(len(requests), errno.EMFILE)
    if thread is not None:
        batch = Batch(session, Call(kernel, thread, NO_ARGS, b"", datagram.fds), requests)
        return batch.run(slice_seconds) or batch
    ret = attach(session, datagram.sender, requests[0])
    if session.thread is None:
        return refuse(len(requests), -ret)
    batch = Batch(session, Call(kernel, session.thread, NO_ARGS, b"", datagram.fds), requests)
    return batch.take_attach(ret) or batch.run(slice_seconds) or batch
