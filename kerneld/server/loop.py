"""The event loop decides which client is served next. It has one thread, so the kernel needs no lock.

The loop is the machine's idle task and its interrupts: it learns which clients have sent requests, and gives their
threads the processor (`kerneld.task.sched`). In each turn every ready connection gets an answer to one datagram; then
the loop asks epoll again. epoll is level-triggered: a connection with more datagrams is ready again, after those that
became ready meanwhile. A batch that needs more than a slice of time leaves its thread on the run queue, the one list of
unfinished work. Each thread there gets its next slice in the next turn, after the ready connections, round robin.

Order within a turn:
1. Dead processes. So a process with a reused pid never gets the watch of the old process.
2. Changed files. So a process that truncates a file and then makes a request sees the change. If the turn is too short
   for all changes, processes that map these files wait until the changes are done.
3. Ready connections, then ready rings. An fd that is closed in a turn may be used again in the same turn. So the loop
   looks up all connections before it serves one, and skips those that were closed meanwhile.
4. New connections.
`kerneld.server.service` does the work on a connection.
"""

from __future__ import annotations

import contextlib
import gc
import select
import socket
from time import monotonic, thread_time
from typing import TYPE_CHECKING

import structlog

from kerneld.mm.space.dying import SLICE_SECONDS
from kerneld.server.collector import collect_old
from kerneld.server.door import ClientLimits
from kerneld.server.fair import GO_ON, RING, Entry
from kerneld.server.host_reader import HostReader
from kerneld.server.host_watch import HOST_INTERVAL_SECONDS, HostWatch
from kerneld.server.mount_watch import MountWatch
from kerneld.server.pipe_watch import PipeWatch
from kerneld.server.service import Service
from kerneld.server.session import Session
from shared.spin import Spin

if TYPE_CHECKING:
    from kerneld.syscalls.kernel import Kernel

log = structlog.get_logger("kerneld.server")
LONGEST_POLL_NS = 200_000
"""How long the loop polls: a program computes for some 100 µs between two faults. To sleep and to be woken takes both
sides as much."""
MOST_SKIPPED = 4
"""The most waits of the loop that do not poll after polls without a result. It is small: while the loop does not poll,
clients cannot use their rings. A program that starts waits for its disk, then makes a hundred requests."""
STOP_SECONDS = 1.0
"""How long a stopping daemon still runs the batches that have begun: of the processor's time."""
STOP_CLOCK_SECONDS = 5.0
"""The same by the clock: on a busy machine other programs have the processor meanwhile."""


class Loop:
    """Serves the connections of `listener` with `kernel` until `stop_fd` becomes readable."""

    def __init__(
        self,
        kernel: Kernel,
        listener: socket.socket,
        stop_fd: int,
        limits: ClientLimits,
        host_interval_seconds: float = HOST_INTERVAL_SECONDS,
    ) -> None:
        self._kernel = kernel
        self._stop_fd = stop_fd
        self._is_stopping = False
        self._spin = Spin(LONGEST_POLL_NS, MOST_SKIPPED)
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self.service = Service(kernel, listener, limits, self._epoll)
        self._sessions = self.service.sessions
        self._waiting = self.service.waiting
        self._rings = self.service.rings
        self._ready: list[Session] = []
        """The sessions with a request in their ring, at the last look."""
        self._events: list[tuple[int, int]] = []
        """The ready descriptors at the last look."""
        kernel.dying.slice_seconds = SLICE_SECONDS
        kernel.dying.is_answer_first = True
        self._dying = kernel.dying.queue
        kernel.files.changes.slice_seconds = SLICE_SECONDS
        self._releasing = kernel.userfaultfds.releasing
        self._changes = kernel.files.changes.queue
        self._locks = kernel.table.mmap_locks
        self._locked, self._unsettled = self._locks.holders, self._locks.unsettled
        self._vmscan = kernel.vmscan
        self._vmscan.in_pieces = True
        self._ksmd = kernel.ksmd
        self._given = kernel.advances.live
        self._serve = self.service.serve
        self._mounts = MountWatch()
        kernel.files.mounts.have_changed = self._mounts.have_changed
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._epoll.register(stop_fd, select.EPOLLIN)
        if kernel.file_changes_fd >= 0:
            self._epoll.register(kernel.file_changes_fd, select.EPOLLIN)
        self._pipes = PipeWatch(kernel, self._epoll)
        self._reader = HostReader(self._epoll)
        kernel.shadowpt.asking.reader = self._reader
        self._host = HostWatch(kernel.shadowpt, self._epoll, host_interval_seconds)
        self._tends = False
        """Whether the loop has to look at the host between requests, or to scan for equal pages."""

    def run(self) -> None:
        """Serve until a signal asks the daemon to stop, then close every connection."""
        try:
            while not self._is_stopping:
                try:
                    self.turn()
                except MemoryError:
                    self._turn_given_up()
            self._finish_batches()
        finally:
            self.close()

    def _turn_given_up(self) -> None:
        """Give up a turn, because the host has no memory for it. The next turn serves the remaining clients."""
        with contextlib.suppress(MemoryError):
            gc.collect()
            log.error("out of memory on the host: a turn of the loop was given up")

    def _finish_batches(self) -> None:
        """Finish and answer the batches that have begun, as far as the time allows."""
        until, clock_until = thread_time() + STOP_SECONDS, monotonic() + STOP_CLOCK_SECONDS
        while self._waiting and thread_time() < until and monotonic() < clock_until:
            if self._changes:
                self._kernel.files_changed()
            for session in self.service.fair.unfinished():
                self.service.go_on(session)

    def turn(self, timeout_seconds: float | None = None) -> None:
        """Wait until a descriptor is ready, and serve the ready ones, as many as one turn has time for."""
        events = self._wait(timeout_seconds)
        if self._changes:
            self._kernel.files_changed()
            events = self._without_changes(events)
        if self._unsettled:
            events = self._without_unsettled(events)
        ready = self._ready
        if self._waiting or len(events) + len(ready) != 1:
            self._serve_all(events)
        elif ready:
            # The usual turn: one client, which uses its ring.
            self._run(ready[0], RING)
        elif (session := self._sessions.get(events[0][0])) is not None:
            self._serve(session, events[0][1])
            self._watch(session)
        else:
            self._serve_all(events)
        if self._given:
            # A fault has its answer by now: it needs nothing of what other faults leave.
            self._kernel.advances.book()
        if self._dying:
            self._kernel.reap_memory()
            if not self._dying and not self._sessions:
                collect_old()
        if self._releasing:
            self._kernel.release_userfaultfds()
        if self._vmscan.is_awake:
            self._kernel.run_kswapd()
        self._tends = self._host.is_needed or self._reader.is_busy or self._ksmd.is_awake
        if self._tends:
            self._reader.tend()
            self._host.tend()
            self._kernel.run_ksmd()

    def _without_held(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the events of the clients that need not wait for a changed file, for another thread of their process,
        or for a late agent."""
        left = []
        for fd, mask in events:
            session = self._sessions.get(fd)
            if session is None or not self.service.held.has(session):
                left.append((fd, mask))
        return left

    def _without_changes(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the events of those clients, without the one of changed files: that is handled, or waits."""
        return [(fd, mask) for fd, mask in self._without_held(events) if fd != self._kernel.file_changes_fd]

    def _without_unsettled(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Put those clients aside that have to wait for a late agent. Return the events of the others."""
        self._kernel.tlbs.debts.fresh.clear()  # Of the work between requests, for which nobody waits.
        sessions = [session for fd, _ in events if (session := self._sessions.get(fd)) is not None]
        self.service.held.put_aside(sessions + self._ready)
        self._ready = [session for session in self._ready if not self.service.held.has(session)]
        return self._without_held(events)

    def _can_go_on(self) -> bool:
        """Whether one of the waiting threads can go on with its request, and does not wait for a late agent."""
        return not self._unsettled or not all(map(self._locks.keeps_waiting, self._waiting))

    def _wait(self, timeout_seconds: float | None) -> list[tuple[int, int]]:
        """Return all ready descriptors, and note the ready rings. If a pidfd were left out, the order of a turn would
        be broken."""
        spin = self._spin
        if (self._waiting and self._can_go_on()) or self._has_work() or self._vmscan.is_awake or self._ksmd.is_scanning:
            self._look()
            # A thread that holds an address space is on the run queue, so it runs in this turn or in a later one.
            return self._without_changes(self._events) if self._locked else self._events
        if spin.skip:
            spin.skip -= 1
        elif timeout_seconds is None and spin.wait(self._look):
            return self._events
        if self._rings.watched:
            self._rings.tell(is_watching=False)
            if self._look():
                self._rings.tell(is_watching=True)
                return self._events
            self._rings.forget_all()
        self._ready = []
        if self._tends:
            timeout_seconds = self._reader.wait_seconds(self._host.wait_seconds(timeout_seconds))
            timeout_seconds = self._ksmd.wait_seconds(timeout_seconds)
        return self._poll(timeout_seconds, self.service.most_events)

    def _has_work(self) -> bool:
        """Whether something is to be taken down, in the next turn too."""
        return bool(self._dying or self._changes or self._releasing)

    def _look(self) -> bool:
        """Note what is ready, and return whether anything is.

        The rings come first: a descriptor that was ready before a request was written is then seen with the request,
        and served before it.
        """
        self._ready = self._rings.find() if self._rings.watched else []
        self._events = self._poll(0, self.service.most_events)
        return bool(self._events or self._ready)

    def _watch(self, session: Session) -> None:
        """Look at the ring of a session that has just been served, if polling makes sense now."""
        ring = session.ring
        if ring is not None and not ring.is_watched and not self._spin.skip:
            self._rings.watch(ring, session)

    def _serve_all(self, events: list[tuple[int, int]]) -> None:
        accepting = False
        ready: list[Entry] = []
        watches = self.service.watches.by_pidfd
        for fd, mask in events:
            session = self._sessions.get(fd)
            if session is not None:
                ready.append((session, mask))
            elif fd in watches:
                self.service.end_process(watches[fd])
            elif fd == self._kernel.file_changes_fd:
                self._kernel.files_changed()
            elif fd == self._reader.fd:
                self._reader.receive()
            elif fd == self._host.pidfd:
                self._host.end()
            elif fd == self._pipes.fd:
                self._pipes.tend()
            elif fd == self._stop_fd:
                self._is_stopping = True
            else:
                accepting = True
        ready += [(session, RING) for session in self._ready]
        if self._waiting:
            ready += [(session, GO_ON) for session in self.service.fair.unfinished()]
        self.service.fair.serve(ready, self._run)
        if accepting:
            self.service.accept()

    def _run(self, session: Session, mask: int) -> None:
        """Serve a ready session, or go on with its batch, unless something else in this turn has ended or holds it."""
        if mask == GO_ON:
            self.service.go_on(session)
        elif not session.connection.is_closed and not (
            (self._changes or self._locked or self._unsettled) and self.service.held.has(session)
        ):
            self._serve(session, mask)
            if mask != RING:
                self._watch(session)

    def close(self) -> None:
        """Close every connection and every fd of the loop. The owner of the listener closes the listener."""
        self.service.close()
        self._host.close()
        self._reader.close()
        self._pipes.close()
        self._mounts.close()
        self._epoll.close()
