"""The requests of one datagram, run one after the other.

One datagram may hold thousands of requests, each of which may touch all of RAM. A batch therefore runs for a slice of
time at a turn, and those that wait are served between two slices: a batch is in order, it is not one moment. The same
holds for one request that is a program's own run through its memory, a look at another's, or a call in which Linux
makes way too.

Replies longer than fit one answer. Longer inline data comes out of what small replies leave, first come first served.
For `load` that is decided before it runs (its length is an argument, and running it faults pages in); for the others
that return much (procread, mincore, process_vm_readv, page_contents) after it, by the true length, as they change
nothing of the caller's. Those that answer with fds are refused before they run where their fds would go beyond what one
datagram carries, and where the client has not read an answer yet: fds on their way are in no table but ours. A trace,
which anybody may open, has a datagram of its own.
"""

from __future__ import annotations

import errno
from time import monotonic
from typing import TYPE_CHECKING

from kerneld.errors import SysError
from kerneld.server.connection import close_fds
from kerneld.server.reply import ENDS_THREAD, SMALL_REPLY, Outcome, long_bytes, seal, seal_number
from kerneld.syscalls.ahead import STORE, fault_stores_ahead
from kerneld.syscalls.answer import Answer, Call, Work
from kerneld.syscalls.dispatch import run
from kerneld.syscalls.table import RESTART
from kerneld.task.entry import sysvec_apic_timer_interrupt
from kerneld.task.sched import run_task, sleep
from shared import wire
from shared.uapi.syscalls import Nr

if TYPE_CHECKING:
    from kerneld.fs.file_limits import Payer
    from kerneld.server.session import Session

FDS_OF_ONE_ANSWER = 2
SLICE_SECONDS = 0.01
"""How long a batch is run before others get their turn; the request that is then under way is finished."""
# Plain ints: each is compared for every request, and an enum's member costs a look-up each time.
ATTACH = int(Nr.ATTACH)
LOAD = int(Nr.LOAD)
PERF_EVENT_OPEN = int(Nr.PERF_EVENT_OPEN)
SENDS_FDS = frozenset({int(Nr.SHADOWPT_OPEN), int(Nr.RAM), int(Nr.NATIVE), PERF_EVENT_OPEN})
_IS_CHECKED = SENDS_FDS | {ATTACH, LOAD, STORE}
"""Calls that something is asked of before they run."""


class Batch:
    """The requests of one datagram, run in order until one ends the batch, one slice of time after another.

    A request is not interrupted but between two of its pieces, where it has such (`answer.Work`). Between two slices
    others are served. Owns the fds of its answer until `run` has returned that, and knows the datagram's, which stay
    its caller's to close.
    """

    __slots__ = (
        "_answer_fds", "_call", "_is_last", "_looked_at", "_next", "_payer", "_replies", "_requests", "_room",
        "_session", "_thread", "_until", "_work", "fds",
    )  # fmt: skip

    def __init__(self, session: Session, call: Call, requests: list[wire.Request], work: Work | None = None) -> None:
        """`call` is the thread's, with the datagram's fds; `work`: the first request has begun, this is left of it."""
        self._session = session
        self._thread = call.thread
        self._call = call
        self._requests = requests
        self._next = 0
        self._looked_at = 0
        """Requests before this index have been looked at for stores whose faults are taken together."""
        self._replies: list[bytes] = []
        self._room = session.connection.reply_limit - SMALL_REPLY * len(requests)
        self._is_last = False
        self._answer_fds: list[int] = []
        self._until = 0.0
        self._work = work
        """What is left of the request that `_next` names, where that is one that goes on."""
        self.fds = call.fds
        """The datagram's, those that no request has consumed yet."""
        self._payer: Payer | None = None
        """Whose account they are on while others are served."""

    def take_attach(self, ret: int) -> Outcome | None:
        """Add the reply to the first request, an `attach` that has been done; returns the outcome where it was all."""
        self._replies.append(seal_number(ret))
        self._next = 1
        return self._outcome() if len(self._requests) == 1 or self._thread.process.ended else None

    def run(self, slice_seconds: float) -> Outcome | None:
        """Run the next request, and more until the slice is over.

        Returns None where requests are left then: the thread has gone behind those that wait for the processor.
        """
        self._until = monotonic() + slice_seconds
        # Not every request has the processor given to its thread: a number that no call has, a reply without room.
        run_task(self._call.kernel.rq, self._thread)
        if self._sleeps():
            return None
        requests, process = self._requests, self._thread.process
        while True:
            request = requests[self._next]
            work, self._work = self._work, None
            result = self._begin(request) if work is None else self._go_on(work)
            if isinstance(result, int) and request.nr not in ENDS_THREAD:
                # Most say no more than a number.
                self._replies.append(seal_number(result))
            elif isinstance(result, Work):
                self._work = result
                self._give_way()
                return None
            elif self._seal(request.nr, result):
                return self._outcome()
            self._next += 1
            if self._next == len(requests) or process.ended:
                return self._outcome()
            if monotonic() >= self._until:
                self._give_way()
                return None

    def _begin(self, request: wire.Request) -> int | Answer | Work:
        """Run a request, and as many pieces of it as the slice has time for."""
        call = self._call
        nr, call.args, call.data = request
        if nr in _IS_CHECKED:
            if nr == ATTACH:
                return -errno.EINVAL
            if nr == STORE:
                if self._next >= self._looked_at:
                    self._looked_at = fault_stores_ahead(call, self._requests, self._next)
            elif not self._has_room(request):
                return -errno.EMSGSIZE
        result = run(call, nr)
        return self._go_on(result) if isinstance(result, Work) and result.waits_for is None else result

    def _has_room(self, request: wire.Request) -> bool:
        """Whether the reply is known beforehand to fit. A length over MAX_INLINE is the kernel's to refuse."""
        if request.nr == LOAD:
            return request.args[1] > wire.MAX_INLINE or long_bytes(request.args[1]) <= self._room
        most = FDS_OF_ONE_ANSWER if request.nr == PERF_EVENT_OPEN else wire.MAX_FDS
        return len(self._answer_fds) + FDS_OF_ONE_ANSWER <= most and not self._session.connection.has_unread

    def _go_on(self, work: Work) -> int | Answer | Work:
        """Run pieces of a request until it has been answered, waits for something, or the slice is over."""
        while True:
            self._call.work = work
            result = run(self._call, RESTART)
            if not isinstance(result, Work) or result.waits_for is not None or monotonic() >= self._until:
                return result
            work = result

    def _seal(self, nr: int, result: int | Answer) -> bool:
        """Add the reply to a request that has run; returns whether the batch ends with it."""
        sealed = seal(nr, result, self._room)
        if not isinstance(sealed, bytes):
            sealed, fds, self._is_last = sealed
            self._answer_fds.extend(fds)
        self._room -= max(0, len(sealed) - SMALL_REPLY)
        self._replies.append(sealed)
        return self._is_last or (isinstance(result, Answer) and result.signo != 0)

    def _sleeps(self) -> bool:
        """Put the thread to sleep where the next piece waits for something; returns whether it does."""
        waits_for = self._work.waits_for if self._work is not None else None
        if waits_for is None or waits_for.is_over:
            return False
        self._pay()
        waits_for.wake = sleep(self._thread)
        return True

    def _outcome(self) -> Outcome:
        self._pay_back()
        return Outcome(b"".join(self._replies), self._answer_fds, self._is_last)

    def _give_way(self) -> None:
        if not self._sleeps():
            self._pay()
            sysvec_apic_timer_interrupt(self._thread)

    def _pay(self) -> None:
        """Put the descriptors that are left on an account while others are served."""
        if self.fds and self._payer is None:
            try:
                self._payer = self._call.kernel.files.accounts.charge(self._thread.process, len(self.fds))
            except SysError:
                # Too many with what others of its batches hold: whoever wants one of these is told EBADF.
                close_fds(self.fds)
                self.fds.clear()

    def _pay_back(self) -> None:
        if self._payer is not None:
            self._call.kernel.files.accounts.uncharge(self._payer)
            self._payer = None

    def close(self) -> None:
        """Give up what has not been run, and close every fd, the datagram's too."""
        if self._work is not None:
            self._work.close()
        self._pay_back()
        close_fds(self.fds)
        close_fds(self._answer_fds)
