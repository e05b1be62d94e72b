"""The requests of one datagram, run one after the other.

One datagram may hold thousands of requests, and each may touch all of RAM. So a batch runs for a slice of time in each
turn, and the server serves other clients between two slices. The requests of a batch run in order, but not at one
moment. Some single requests run in slices too: a touch of much memory, a read of /proc, and long calls.

The replies of a batch may not fit into one answer. Every request has room for a small reply. Longer inline data uses
the rest of the answer, in the order of the requests. For `load` this is decided before it runs: its length is an
argument, and running it would fault pages in. For the other calls with long replies (procread, mincore,
process_vm_readv, page_contents) it is decided after they have run, by the true length, because they change nothing
for the caller. A request that returns fds is refused before it runs in two cases: one datagram cannot carry its fds,
or the client has not read an earlier answer. Only the daemon's file table counts fds that are on their way. A trace,
which any user may open, needs an answer of its own.
"""

from __future__ import annotations

import errno
import select
from time import monotonic
from typing import TYPE_CHECKING

from kerneld.errors import SysError
from kerneld.mm.space.userfaultfd import UserfaultWait
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
    from kerneld.mm.space.wait import Wait
    from kerneld.server.session import Session

FDS_OF_ONE_ANSWER = 2
SLICE_SECONDS = 0.01
"""How long a batch runs before the other clients are served. The request that runs at that moment is finished."""
# Plain ints: every request is compared with each of them, and an enum's member costs a look-up each time.
ATTACH = int(Nr.ATTACH)
LOAD = int(Nr.LOAD)
PERF_EVENT_OPEN = int(Nr.PERF_EVENT_OPEN)
RING = int(Nr.RING)
SENDS_FDS = frozenset(
    {int(Nr.SHADOWPT_OPEN), int(Nr.RAM), int(Nr.NATIVE), int(Nr.CONNECT), int(Nr.USERFAULTFD), int(Nr.IOCTL)}
    | {PERF_EVENT_OPEN, RING}
)
_IS_CHECKED = SENDS_FDS | {ATTACH, LOAD, STORE}
"""Calls that need a check before they run."""


class Batch:
    """The requests of one datagram. They run in order, slice by slice, until one of them ends the batch.

    A request may stop only between two of its pieces, if it has pieces (`answer.Work`). The server serves other clients
    between two slices. Owns the fds of its answer until `run` has returned the answer. Knows the fds of the datagram,
    which the caller must close.
    """

    __slots__ = (
        "_answer_fds", "_call", "_debt", "_is_last", "_looked_at", "_next", "_payer", "_replies", "_requests", "_room",
        "_session", "_thread", "_until", "_work", "fds",
    )  # fmt: skip

    def __init__(self, session: Session, call: Call, requests: list[wire.Request], work: Work | None = None) -> None:
        """`call` is the thread's Call, with the datagram's fds.

        `work` is the rest of the first request, if it has begun.
        """
        self._session = session
        self._thread = call.thread
        self._call = call
        self._requests = requests
        self._next = 0
        self._looked_at = 0
        """The search for stores whose faults can be taken together has reached this index."""
        self._replies: list[bytes] = []
        self._room = session.connection.reply_limit - SMALL_REPLY * len(requests)
        self._is_last = False
        self._answer_fds: list[int] = []
        self._until = 0.0
        self._work = work
        """The rest of the request at `_next`, if that request has begun."""
        self._debt: Wait | None = None
        """The agents that the next piece waits for."""
        self.fds = call.fds
        """The fds of the datagram that no request has consumed yet."""
        self._payer: Payer | None = None
        """The account that pays for these fds while other clients are served."""

    def take_attach(self, ret: int) -> Outcome | None:
        """Add the reply to the first request, an `attach` that has run.

        Return the outcome if it was the only request.
        """
        self._replies.append(seal_number(ret))
        self._next = 1
        return self._outcome() if len(self._requests) == 1 or self._thread.process.ended else None

    def run(self, slice_seconds: float) -> Outcome | None:
        """Run requests until the slice is over, at least one.

        Returns None if requests are left. The thread is then at the end of the run queue.
        """
        self._until = monotonic() + slice_seconds
        # Some requests do not make their thread the current one: an unknown number, a reply without room.
        run_task(self._call.kernel.rq, self._thread)
        if self._sleeps():
            return None
        requests, process = self._requests, self._thread.process
        while True:
            request = requests[self._next]
            work, self._work = self._work, None
            result = self._begin(request) if work is None else self._go_on(work)
            if isinstance(result, int) and request.nr not in ENDS_THREAD:
                # Most replies are only a number.
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

    def await_agents(self, wait: Wait) -> None:
        """Let the next piece wait until agents have carried out what the last one has asked for."""
        self._debt = wait

    @property
    def gives_way(self) -> bool:
        """Whether others are to be served before its next piece."""
        return self._work is not None and self._work.gives_way

    @property
    def waits_for_page(self) -> bool:
        """Whether it sleeps until a userfaultfd gives a page, which may never come."""
        waits_for = self._work.waits_for if self._work is not None else None
        return isinstance(waits_for, UserfaultWait) and not waits_for.is_over

    @property
    def is_interruptible(self) -> bool:
        """Whether the client may give up this wait by its next request (a fault of a native program)."""
        return self.waits_for_page and self._work is not None and self._work.is_interruptible

    @property
    def events_meanwhile(self) -> int:
        """The events of the connection that epoll is to report until the batch has its answer."""
        if self.waits_for_page:
            # In every turn until it is acted upon: a held thread's events are left for a later turn.
            return select.EPOLLIN if self.is_interruptible else 0
        # epoll reports the end of a client once, not in every turn in which the batch sleeps.
        return select.EPOLLET

    def interrupt(self) -> Outcome:
        """Give up the wait: the request has its answer, and the batch ends."""
        assert self._work is not None
        self._work.close()
        self._work = None
        self._replies.append(seal_number(0))
        return self._outcome()

    def put_off(self) -> None:
        """Run nothing yet: the thread goes to the end of the run queue."""
        run_task(self._call.kernel.rq, self._thread)
        self._give_way()

    def _begin(self, request: wire.Request) -> int | Answer | Work:
        """Run a request, or as many of its pieces as fit into the slice."""
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
            elif nr == RING:
                return self._session.open_ring()
        result = run(call, nr)
        if isinstance(result, Work) and result.waits_for is None and not result.gives_way:
            return self._go_on(result)
        return result

    def _has_room(self, request: wire.Request) -> bool:
        """Whether the reply of a request is known to fit before it runs.

        The kernel refuses a length over MAX_INLINE.
        """
        if request.nr == LOAD:
            return request.args[1] > wire.MAX_INLINE or long_bytes(request.args[1]) <= self._room
        most = FDS_OF_ONE_ANSWER if request.nr == PERF_EVENT_OPEN else wire.MAX_FDS
        return len(self._answer_fds) + FDS_OF_ONE_ANSWER <= most and not self._session.connection.has_unread

    def _go_on(self, work: Work) -> int | Answer | Work:
        """Run pieces of a request until it has its answer, or waits for an event, or the slice is over."""
        while True:
            self._call.work = work
            result = run(self._call, RESTART)
            if not isinstance(result, Work) or result.waits_for is not None or result.gives_way:
                return result
            if monotonic() >= self._until:
                return result
            work = result

    def _seal(self, nr: int, result: int | Answer) -> bool:
        """Add the reply to a request that has run. Return whether the batch ends with this request."""
        sealed = seal(nr, result, self._room)
        if not isinstance(sealed, bytes):
            sealed, fds, self._is_last = sealed
            self._answer_fds.extend(fds)
        self._room -= max(0, len(sealed) - SMALL_REPLY)
        self._replies.append(sealed)
        return self._is_last or (isinstance(result, Answer) and result.signo != 0)

    def _sleeps(self) -> bool:
        """Put the thread to sleep if the next piece waits for an event. Return whether it sleeps."""
        waits_for = self._debt
        if waits_for is None or waits_for.is_over:
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
        """Charge the remaining descriptors to an account while other clients are served."""
        if self.fds and self._payer is None:
            try:
                self._payer = self._call.kernel.files.accounts.charge(self._thread.process, len(self.fds))
            except SysError:
                # Together with its other batches the client holds too many: requests that need one get EBADF.
                close_fds(self.fds)
                self.fds.clear()

    def _pay_back(self) -> None:
        if self._payer is not None:
            self._call.kernel.files.accounts.uncharge(self._payer)
            self._payer = None

    def close(self) -> None:
        """Give up the requests that have not run, and close every fd, also those of the datagram."""
        if self._work is not None:
            self._work.close()
        self._pay_back()
        close_fds(self.fds)
        close_fds(self._answer_fds)
