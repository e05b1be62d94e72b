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

Replies longer than fit one answer. Room for a small reply is kept for every request of the batch from the start, so
that nothing that changes anything can lose its reply. Longer inline data comes out of what is left, first come first
served; where it does not fit the request gets -EMSGSIZE. For `load` that is decided before it runs (its length is an
argument, and running it faults pages in); for the others that return much (procread, mincore, process_vm_readv,
page_contents) after it, by the true length, as they change nothing of the caller's. Those that answer with fds are
refused before they run where their fds would go beyond what one datagram carries, and where the client has not read an
answer yet: fds on their way are in no table but ours. A trace, which anybody may open, has a datagram of its own.

One datagram may hold thousands of requests, each of which may touch all of RAM. A batch therefore runs for a slice of
time at a turn, and those that wait are served between two slices: a batch is in order, it is not one moment. The same
holds for one request that is a program's own run through its memory, a look at another's, or a call in which Linux
makes way too.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from kerneld.errors import SysError
from kerneld.fs.file_limits import Payer
from kerneld.server.connection import NOBODY, Connection, Datagram, close_fds
from kerneld.syscalls.ahead import STORE, fault_stores_ahead
from kerneld.syscalls.answer import Answer, Call, Work
from kerneld.syscalls.dispatch import run
from kerneld.syscalls.table import RESTART
from kerneld.task.entry import sysvec_apic_timer_interrupt
from kerneld.task.sched import run_task, sleep
from shared import wire
from shared.uapi.syscalls import Nr

if TYPE_CHECKING:
    from kerneld.syscalls.kernel import Kernel, Sender

SMALL_REPLY = wire.REPLY.size + 24
"""The longest reply of a request that changes something: shadowpt_open's user_shadow_pt; a siginfo is shorter."""
FDS_OF_ONE_ANSWER = 2
SLICE_SECONDS = 0.01
"""How long a batch is run before others get their turn; the request that is then under way is finished."""
# Plain ints: each is compared for every request, and an enum's member costs a look-up each time.
ATTACH = int(Nr.ATTACH)
LOAD = int(Nr.LOAD)
PERF_EVENT_OPEN = int(Nr.PERF_EVENT_OPEN)
SENDS_FDS = frozenset({int(Nr.SHADOWPT_OPEN), int(Nr.RAM), PERF_EVENT_OPEN})
ENDS_THREAD = frozenset({int(Nr.EXIT), int(Nr.EXIT_GROUP)})
SPECIAL = SENDS_FDS | ENDS_THREAD | {ATTACH, LOAD}
UNUSUAL = SENDS_FDS | {ATTACH}

UNPACK, PACK = wire.REQUEST.unpack_from, wire.REPLY.pack
REQUEST_BYTES, REPLY_BYTES = wire.REQUEST.size, wire.REPLY.size

Attach = Callable[[Connection, "Sender", wire.Request], int]
_NOTHING = memoryview(b"")


def _attach_twice(_connection: Connection, _sender: Sender, _request: wire.Request) -> int:
    return -errno.EINVAL


class Outcome(NamedTuple):
    """What a datagram came to: the answer, the fds that go with it, and whether the connection then ends."""

    answer: bytes
    fds: list[int]
    is_last: bool


def answer_usual(connection: Connection, view: memoryview, length: int) -> Outcome | Batch | bytes | None:
    """Answer the usual datagram, one request of the attached sender's, without fds on the way there or back.

    It is the first `length` bytes.

    Returns the bytes alone where the connection goes on and no fds go with them; None for whatever else it may be,
    which `answer_datagram` knows, and a batch of one where the request goes on. What that checks holds here: the
    request is whole, a load of any length fits. It makes no object that it need not: at some microseconds a request
    each of them is seen.
    """
    if length < REQUEST_BYTES:
        return None
    fields = UNPACK(view)
    nr = fields[1]
    call = connection.call
    if fields[0] != length or nr in UNUSUAL or call is None:
        return None
    call.args = fields[2:]
    if length > REQUEST_BYTES:
        call.data = bytes(view[REQUEST_BYTES:length])
        result = run(call, nr)
        call.data = b""
    else:
        result = run(call, nr)
    if isinstance(result, int):
        answer = PACK(REPLY_BYTES, 0, result)
        return Outcome(answer, [], True) if nr in ENDS_THREAD and result == 0 else answer
    if isinstance(result, Work):
        return Batch.begun(connection, call, wire.Request(nr, call.args, b""), result)
    if len(result.data) > connection.reply_limit - REPLY_BYTES:
        close_fds(result.fds)
        return wire.pack_reply(-errno.EMSGSIZE)
    if not result.signo and not result.fds and nr not in ENDS_THREAD:
        return wire.pack_reply(result.ret, result.data)
    return Outcome(_pack(result), list(result.fds), _ends_connection(nr, result))


def answer_datagram(
    kernel: Kernel, connection: Connection, datagram: Datagram, attach: Attach, slice_seconds: float = SLICE_SECONDS
) -> Outcome | Batch:
    """Return the answer to one datagram, having run its requests; its fds that were not consumed stay in it.

    `attach(connection, sender, request)` attaches the connection and returns the pid or -errno. A batch that is longer
    than a turn may be is returned as far as it came: `Batch.run` goes on with it.
    """
    thread = connection.thread
    is_stranger = thread is not None and datagram.sender.pid != thread.process.pid
    try:
        if datagram.is_cut:
            raise wire.WireError("longer than a datagram may be")
        requests = wire.unpack_requests(datagram.data)
        if thread is None and requests[0].nr != ATTACH:
            raise wire.WireError("the first request is not attach")
    except wire.WireError:
        return _refusal(1, errno.EPERM) if is_stranger else Outcome(wire.pack_reply(-errno.EBADMSG), [], True)
    if is_stranger:
        return _refusal(len(requests), errno.EPERM)
    if datagram.lost_fds:
        return _refusal(len(requests), errno.EMFILE)
    batch = Batch(kernel, connection, requests, datagram, attach)
    return batch.run(slice_seconds) or batch


def _refusal(count: int, code: int) -> Outcome:
    return Outcome(wire.pack_reply(-code) * count, [], False)


class Batch:
    """The requests of one datagram, run in order until one ends the batch, one slice of time after another.

    A request is not interrupted but between two of its pieces, where it has such (`answer.Work`). Between two slices
    others are served. Owns the fds of its answer until `run` has returned that, and knows the datagram's, which stay
    its caller's to close.
    """

    __slots__ = (
        "_answer_fds",
        "_attach",
        "_call",
        "_connection",
        "_is_last",
        "_kernel",
        "_looked_at",
        "_next",
        "_payer",
        "_replies",
        "_requests",
        "_room",
        "_sender",
        "_until",
        "_work",
        "fds",
    )  # fmt: skip

    def __init__(
        self, kernel: Kernel, connection: Connection, requests: list[wire.Request], datagram: Datagram, attach: Attach
    ) -> None:
        self._kernel = kernel
        self._connection = connection
        self._requests = requests
        self._sender = datagram.sender
        self._attach = attach
        self._next = 0
        self._looked_at = 0
        """Requests before this index have been looked at for stores whose faults are taken together."""
        self._replies: list[bytes] = []
        self._room = connection.reply_limit - SMALL_REPLY * len(requests)
        self._is_last = False
        self._answer_fds: list[int] = []
        self._call: Call | None = None
        """The thread's, used again by each request of the batch once it has attached."""
        self._until = 0.0
        self._work: Work | None = None
        """What is left of the request that `_next` names, where that is one that goes on."""
        self.fds = datagram.fds
        """The datagram's, those that no request has consumed yet."""
        self._payer: Payer | None = None
        """Whose account they are on while others are served."""

    @classmethod
    def begun(cls, connection: Connection, call: Call, request: wire.Request, work: Work) -> Outcome | Batch:
        """Return the outcome of one request that has begun and goes on, or the batch that it is where it is long."""
        batch = cls(call.kernel, connection, [request], Datagram(_NOTHING, NOBODY, [], False, False), _attach_twice)
        batch._call, batch._work = call, work
        return batch.run(SLICE_SECONDS) or batch

    def run(self, slice_seconds: float) -> Outcome | None:
        """Run the next request, and more until the slice is over.

        Returns None where requests are left then: the thread has gone behind those that wait for the processor.
        """
        self._until = monotonic() + slice_seconds
        requests = self._requests
        thread = self._connection.thread
        if thread is not None:
            # Not every request has the processor given to its thread: a number that no call has, a reply without room.
            run_task(self._kernel.rq, thread)
        if self._work is not None:
            if self._sleeps():
                return None
            work, self._work = self._work, None
            self._next += 1
            if self._go_on(requests[self._next - 1].nr, work) or self._next == len(requests):
                return self._outcome()
            if monotonic() >= self._until:
                self._give_way()
                return None
        while True:
            request = requests[self._next]
            self._next += 1
            nr = request.nr
            if nr not in SPECIAL and self._call is not None:
                if nr == STORE and self._next > self._looked_at:
                    self._looked_at = fault_stores_ahead(self._call, requests, self._next - 1)
                is_over = self._run_usual(self._call, request)
            elif nr == ATTACH:
                ret = self._attach(self._connection, self._sender, request)
                if self._connection.thread is None:
                    return _refusal(len(requests), -ret)
                self._replies.append(wire.pack_reply(ret))
                is_over = self._connection.thread.process.ended
            else:
                is_over = self._run_one(request)
            if is_over or self._next == len(requests):
                return self._outcome()
            if monotonic() >= self._until:
                self._give_way()
                return None

    def _sleeps(self) -> bool:
        """Put the thread to sleep where the next piece waits for something; returns whether it does."""
        waits_for = self._work.waits_for if self._work is not None else None
        if waits_for is None or waits_for.is_over:
            return False
        self._pay()
        waits_for.wake = sleep(self._connection.thread)
        return True

    def _outcome(self) -> Outcome:
        self._pay_back()
        return Outcome(b"".join(self._replies), self._answer_fds, self._is_last)

    def _give_way(self) -> None:
        if self._sleeps():
            return
        thread = self._connection.thread
        assert thread is not None
        self._pay()
        sysvec_apic_timer_interrupt(thread)

    def _pay(self) -> None:
        """Put the descriptors that are left on an account while others are served."""
        thread = self._connection.thread
        assert thread is not None
        if self.fds and self._payer is None:
            try:
                self._payer = self._kernel.files.accounts.charge(thread.process, len(self.fds))
            except SysError:
                # Too many with what others of its batches hold: whoever wants one of these is told EBADF.
                close_fds(self.fds)
                self.fds.clear()

    def _pay_back(self) -> None:
        if self._payer is not None:
            self._kernel.files.accounts.uncharge(self._payer)
            self._payer = None

    def _go_on(self, nr: int, work: Work) -> bool:
        """Run pieces of a request until it has been answered or the slice is over; returns whether the batch ends."""
        call = self._call
        assert call is not None
        while True:
            call.work = work
            result = run(call, RESTART)
            if not isinstance(result, Work):
                return self._take(nr, Answer(result) if isinstance(result, int) else result)
            if result.waits_for is not None or monotonic() >= self._until:
                return self._put_off(result)

    def _begin(self, nr: int, work: Work) -> bool:
        return self._go_on(nr, work) if work.waits_for is None else self._put_off(work)

    def _put_off(self, work: Work) -> bool:
        """What is left of a request is run later, and the slice is over."""
        self._work, self._until = work, 0.0
        self._next -= 1
        return False

    def _run_usual(self, call: Call, request: wire.Request) -> bool:
        """Do what `_run_one` does, for a request that needs no check before it runs: most say no more than a number."""
        nr, call.args, call.data = request
        result = run(call, nr)
        if not isinstance(result, int):
            return self._begin(nr, result) if isinstance(result, Work) else self._take(nr, result)
        if nr in ENDS_THREAD:
            return self._take(nr, Answer(result))
        self._replies.append(PACK(REPLY_BYTES, 0, result))
        return call.process.ended

    def _run_one(self, request: wire.Request) -> bool:
        """Run one request that is not `attach`; returns whether the batch ends with it."""
        thread = self._connection.thread
        assert thread is not None
        if not _may_run(self._connection, request, self._room, self._answer_fds):
            self._replies.append(wire.pack_reply(-errno.EMSGSIZE))
            return False
        if self._call is None:
            self._call = Call(self._kernel, thread, request.args, request.data, self.fds)
        return self._run_usual(self._call, request)

    def _take(self, nr: int, answer: Answer) -> bool:
        """Add the reply to a request that has run; returns whether the batch ends with it."""
        taken = _long_bytes(len(answer.data))
        if taken > self._room:
            close_fds(answer.fds)
            self._replies.append(wire.pack_reply(-errno.EMSGSIZE))
            return False
        self._room -= taken
        self._replies.append(_pack(answer))
        self._answer_fds.extend(answer.fds)
        self._is_last = _ends_connection(nr, answer)
        thread = self._connection.thread
        return self._is_last or answer.signo != 0 or thread is None or thread.process.ended

    def close(self) -> None:
        """Give up what has not been run, and close every fd, the datagram's too."""
        if self._work is not None:
            self._work.close()
        self._pay_back()
        close_fds(self.fds)
        close_fds(self._answer_fds)


def _may_run(connection: Connection, request: wire.Request, room: int, fds: list[int]) -> bool:
    """Whether the reply is known beforehand to fit. A length over MAX_INLINE is the kernel's to refuse."""
    if request.nr == LOAD:
        return request.args[1] > wire.MAX_INLINE or _long_bytes(request.args[1]) <= room
    if request.nr not in SENDS_FDS:
        return True
    most = FDS_OF_ONE_ANSWER if request.nr == PERF_EVENT_OPEN else wire.MAX_FDS
    return len(fds) + FDS_OF_ONE_ANSWER <= most and not connection.has_unread


def _long_bytes(data_bytes: int) -> int:
    """Return how much inline data of this length takes beyond what is kept for a small reply."""
    return max(0, wire.REPLY.size + data_bytes - SMALL_REPLY)


def _pack(answer: Answer) -> bytes:
    if answer.signo:
        assert answer.siginfo is not None
        return wire.pack_signal_reply(answer.ret, answer.signo, answer.siginfo)
    return wire.pack_reply(answer.ret, answer.data)


def _ends_connection(nr: int, answer: Answer) -> bool:
    """Whether the thread is over with this reply; what it takes with it is reaped after."""
    if answer.siginfo is not None:
        return bool(answer.siginfo.fatal)
    return nr in ENDS_THREAD and answer.ret == 0
