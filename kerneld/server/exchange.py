"""Answers one datagram: every rule of docs/abi.md, "Transport", that needs no socket.

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

Only the pid decides who the sender is, on every datagram. The uid of a datagram is that of the real process at that
moment. It may differ from the uid at `attach` (a set-user-ID program, a real setuid). The rights of a task come from
the credentials that the kernel keeps for it. Only the simulated setuid changes these, and `creds` of a native program.

`kerneld.server.batch` runs a batch, and `kerneld.server.reply` makes a reply.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from kerneld.server.batch import ATTACH, SENDS_FDS, SLICE_SECONDS, Batch
from kerneld.server.connection import usual_ancillary
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
    """Answer a usual datagram: one request of the attached sender, without fds in the request or the reply.

    The datagram is the first `length` bytes of `view`.

    Returns the bytes of the reply if the reply is a number; a batch of one request if it has more pieces; None for any
    other datagram, which `answer_datagram` handles. The checks of `answer_datagram` hold here: the request is complete,
    and a load of any length fits. The function makes as few objects as possible: a request takes
    only some microseconds, and each object costs a part of one.
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
        return Batch(session, call, [wire.Request(nr, call.args, b"")], result)
    return seal(nr, result, session.connection.reply_limit - SMALL_REPLY)


def answer_datagram(
    kernel: Kernel, session: Session, datagram: Datagram, attach: Attach, slice_seconds: float = SLICE_SECONDS
) -> Outcome | Batch:
    """Run the requests of one datagram and return the answer. Fds that no request has consumed stay in `datagram`.

    `attach(session, sender, request)` attaches the session and returns the pid or -errno. A batch that needs more than
    one slice of time is returned unfinished: `Batch.run` continues it.
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
        return refuse(1, errno.EPERM) if is_stranger else Outcome(seal_number(-errno.EBADMSG), [], True)
    if is_stranger:
        return refuse(len(requests), errno.EPERM)
    if datagram.lost_fds:
        return refuse(len(requests), errno.EMFILE)
    if thread is not None:
        if datagram.sender != session.sender:
            # Its real process has another user now.
            session.sender, session.usual = datagram.sender, usual_ancillary(datagram.sender)
        batch = Batch(session, Call(kernel, thread, NO_ARGS, b"", datagram.fds), requests)
        return batch.run(slice_seconds) or batch
    ret = attach(session, datagram.sender, requests[0])
    if session.thread is None:
        return refuse(len(requests), -ret)
    batch = Batch(session, Call(kernel, session.thread, NO_ARGS, b"", datagram.fds), requests)
    return batch.take_attach(ret) or batch.run(slice_seconds) or batch
