"""Serves a ready connection, and handles the end of processes.

Owns the sessions, the watches of their processes, and the unfinished batches. `kerneld.server.loop` decides when each
of them runs. It must not know the meaning of a request. If a connection breaks, or a request fails in an unexpected
way, only that connection is closed, and the loop goes on. Only KernelBug goes through: dispatch turns the bug of one
task into an oops, so a KernelBug that leaves dispatch means that the machine itself is broken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from typing import TYPE_CHECKING

import structlog

from kerneld.errors import KernelBug, SysError
from kerneld.server.airlock import Airlock, client_of
from kerneld.server.batch import Batch
from kerneld.server.connection import (
    ANCILLARY_BYTES,
    MSG_CUT,
    RECEIVE_FLAGS,
    Datagram,
    Inbox,
    close_fds,
    note_broken,
)
from kerneld.server.door import ClientLimits, Door
from kerneld.server.exchange import answer_datagram, answer_usual
from kerneld.server.fair import GO_ON, FairShare
from kerneld.server.held import Held
from kerneld.server.lines import LentLines
from kerneld.server.ring import Rings
from kerneld.server.session import Session
from kerneld.server.watch import NO_PIDFD, Watch, Watches, open_pidfd
from shared import wire
from shared.uapi.ring import MOST_REQUEST_BYTES, REQUEST_NUMBER

if TYPE_CHECKING:
    import socket

    from kerneld.server.held import HeldAnswer
    from kerneld.server.reply import Outcome
    from kerneld.server.ring import Ring
    from kerneld.syscalls.kernel import Kernel, Sender

OTHER_FDS = 6
"""The number of other descriptors in epoll, beside connections and pidfds: listener, stop pipe, pidfd of a host target,
helper process, changes of files, readers of traces."""
BROKEN = select.EPOLLHUP | select.EPOLLERR

log = structlog.get_logger("kerneld.server")


class Service:
    """The clients of `listener`, served with `kernel`. `epoll` has all descriptors to wait for."""

    def __init__(self, kernel: Kernel, listener: socket.socket, limits: ClientLimits, epoll: select.epoll) -> None:
        self._kernel = kernel
        self._epoll = epoll
        self._airlock = Airlock(kernel.files.mounts)
        self._door = Door(listener, limits, self._airlock.is_barred)
        self._inbox = Inbox()
        self.sessions: dict[int, Session] = {}
        self.rings: Rings[Session] = Rings()
        self.watches = Watches(epoll)
        self.most_events = OTHER_FDS
        """The most descriptors that epoll watches."""
        self._dying = kernel.dying
        self._debts = kernel.tlbs.debts
        self.held = Held(kernel, epoll, self.rings)
        kernel.lines = LentLines(self._door, self.rings, self.watches, self._welcome, self.held.told)
        self.waiting = kernel.rq.queue
        """The threads whose batch continues in the next turn. A thread that has died is not in it."""
        self.fair = FairShare(self.waiting)

    def _recount(self) -> None:
        self.most_events = len(self.sessions) + len(self.watches.by_pidfd) + OTHER_FDS

    def close(self) -> None:
        """Close every connection and every pidfd. The listener and epoll are closed by their owners."""
        self._kernel.lines = None
        for session in list(self.sessions.values()):
            self._drop(session)
        self.watches.close()
        self._door.close()

    def serve(self, session: Session, mask: int) -> None:
        """Serve a ready connection, or a ready ring (`mask` 0), once: answer, send an old answer again, or close.

        `mask` GO_ON: run one slice of its unfinished batch.
        """
        try:
            ring, batch = session.ring, session.batch
            is_broken = mask & BROKEN
            if batch is not None:
                if mask == GO_ON:
                    self._go_on_with(session, batch)
                # It is finished before epoll's events are acted upon, unless it waits for what may never come.
                elif batch.waits_for_page and is_broken:
                    self._hang_up(session)
                elif isinstance(batch, Batch) and batch.is_interruptible and mask:
                    self._finish(session, batch, batch.interrupt())
            elif session.connection.unsent:
                self._hang_up(session) if is_broken else self._send_again(session)
            elif ring is not None and ring.words[REQUEST_NUMBER] != ring.taken and not is_broken:
                # What comes by the socket is later: a bell, or a request of a client that does not wait for its answer.
                self._answer_ring(session, ring)
            else:
                self._answer_next(session)
        except KernelBug:
            raise
        except Exception:
            self._give_up(session)
        if self._kernel.ended:
            self._reap()
        if self._dying.is_fresh:
            self._kernel.begin_reaping()

    def _answer_next(self, session: Session) -> None:
        """Take one datagram from the connection and answer it."""
        if session.on_word is not None:
            if not session.on_word():
                self._hang_up(session)
            return
        inbox = self._inbox
        try:
            length, ancillary, flags, _ = session.receive(inbox.buffers, ANCILLARY_BYTES, RECEIVE_FLAGS)
        except BlockingIOError:
            return
        except OSError:
            # ECONNRESET: the client closed without reading all answers. That is an end like any other.
            self._hang_up(session)
            return
        outcome = None
        session.begin_request(inbox.view)
        if ancillary == session.usual and not flags & MSG_CUT:
            outcome = answer_usual(session, inbox.view, length)
            if isinstance(outcome, Batch):
                outcome = self.fair.begin(outcome)
        if outcome is None:
            datagram = inbox.datagram(length, ancillary, flags)
            if datagram is None:
                self._hang_up(session)
                return
            outcome = self._answer(session, datagram)
        if outcome is not None:
            self._send(session, outcome)
        session.on_answered()

    def _answer_ring(self, session: Session, ring: Ring) -> None:
        """Take the datagram in a session's ring and answer it."""
        length = ring.take()
        session.begin_request(ring.requests)
        outcome = answer_usual(session, ring.requests, length) if length <= MOST_REQUEST_BYTES else None
        if not isinstance(outcome, bytes):
            outcome = self.fair.begin(outcome) or self._answer(session, ring.datagram(length, session.sender))
        if outcome is not None:
            self._send(session, outcome)
        session.on_answered()

    def _send(self, session: Session, outcome: Outcome | Batch | bytes) -> None:
        """Send the answer to a datagram, and close the connection if the answer says so."""
        if isinstance(outcome, Batch):
            self._put_aside(session, outcome)
            return
        if self._debts.fresh and (answer_kept := self.held.keep_back(session, outcome)) is not None:
            self._put_aside(session, answer_kept)
            return
        record = session.thread.tlb.take() if session.thread is not None and session.thread.tlb is not None else b""
        answer, fds, is_last = (outcome, None, False) if isinstance(outcome, bytes) else outcome
        if record:
            answer += record
        ring = session.ring
        if ring is not None and ring.is_serving and ring.answer(answer, has_fds=bool(fds)):
            is_sent = True
        else:
            try:
                is_sent = session.connection.send(answer, fds)
            except OSError as error:
                note_broken(session.pid, error)
                self._hang_up(session)
                return
        if is_last:
            # The reply stays in the client's queue after the close. It is dropped if a client that never reads has
            # left no room: a well-behaved client has at most one datagram unanswered.
            self._hang_up(session)
        elif not is_sent:
            self._epoll.modify(session.fd, select.EPOLLOUT)
        watch = session.watch
        if watch is not None and len(watch.process.threads) < len(watch.sessions):
            self._drop_ended_threads(watch)

    def _answer(self, session: Session, datagram: Datagram) -> Outcome | None:
        """Return the outcome of a datagram, and close its fds that no request consumed.

        None if the datagram goes on.
        """
        if datagram.fds:
            self._airlock.admit(datagram.fds, session.connection.peer)
            if self._airlock.is_barred(session.connection.peer):
                close_fds(datagram.fds)
                self._turn_out(session.connection.peer)
                return None
        try:
            outcome = answer_datagram(self._kernel, session, datagram, self._attach, self.fair.slice())
        except BaseException:
            close_fds(datagram.fds)
            raise
        if isinstance(outcome, Batch):
            self._put_aside(session, outcome)
            return None
        if datagram.fds:
            close_fds(datagram.fds)
        return outcome

    def _put_aside(self, session: Session, batch: Batch | HeldAnswer) -> None:
        """Keep an unfinished batch while other clients are served. Its connection is not read until it is done."""
        if self._debts.fresh and isinstance(batch, Batch):
            batch.await_agents(self._debts.take_wait())
        session.batch = batch
        self._epoll.modify(session.fd, batch.events_meanwhile)
        self._drop_ended_threads(session.watch)

    def go_on(self, session: Session) -> None:
        """Run one slice of a session's unfinished batch, if it has not been given up meanwhile."""
        if session.batch is not None and session.thread in self.waiting and not self.held.has(session):
            self.serve(session, GO_ON)

    def _go_on_with(self, session: Session, batch: Batch | HeldAnswer) -> None:
        outcome = batch.run(self.fair.slice())
        if outcome is None:
            self._put_aside(session, batch)
        else:
            self._finish(session, batch, outcome)

    def _finish(self, session: Session, batch: Batch | HeldAnswer, outcome: Outcome) -> None:
        session.batch = None
        close_fds(batch.fds)
        self._epoll.modify(session.fd, select.EPOLLIN)
        self._send(session, outcome)

    def _send_again(self, session: Session) -> None:
        """Send the answer that waited, because the client has read; then listen to the client again."""
        try:
            if session.connection.send_again():
                self._epoll.modify(session.fd, select.EPOLLIN)
        except OSError as error:
            note_broken(session.pid, error)
            self._hang_up(session)

    def _turn_out(self, peer: Sender) -> None:
        """Close every connection of a client with too many descriptors that cannot be closed."""
        log.warning("connections closed: too many descriptors that nobody can close", pid=peer.pid, uid=peer.uid)
        for session in list(self.sessions.values()):
            if client_of(session.connection.peer) == client_of(peer):
                self._hang_up(session)

    def _give_up(self, session: Session) -> None:
        # The connection is closed before the log is written: there may be memory for the close and not for the log.
        self._hang_up(session)
        log.exception("request failed in an unforeseen way: its connection is closed", pid=session.pid)

    def _hang_up(self, session: Session) -> None:
        """End a connection and its thread."""
        self._drop(session)
        thread = session.thread
        if thread is None or thread.process.ended:
            return
        try:
            self._kernel.thread_exited(thread)
        except KernelBug:
            raise
        except Exception:
            log.exception("thread could not be ended cleanly", pid=thread.process.pid, tid=thread.tid)

    def _drop(self, session: Session) -> None:
        if session.connection.is_closed:
            return
        if session.ring is not None:
            # It may be the last to know the pid of a child that has not attached.
            self._kernel.admit_children()
        del self.sessions[session.fd]
        self._kernel.table.line_lost(session.connection.line)
        self._door.left(session.connection.peer)
        self._recount()
        if session.watch is not None:
            session.watch.sessions.remove(session)
        with contextlib.suppress(OSError):
            self._epoll.unregister(session.fd)
        session.close()

    # Processes

    def _attach(self, session: Session, sender: Sender, request: wire.Request) -> int:
        """Make the connection a thread of the process that sent the request. Return its pid or -errno."""
        if session.thread is not None:
            return -errno.EINVAL
        if sender.pid <= 0:
            # A process of another pid namespace has no pid here.
            return -errno.EPERM
        if session.connection.line:
            self._door.claim(session.connection, sender)
        watch = self.watches.find(sender.pid)
        try:
            pidfd = NO_PIDFD if watch is not None else open_pidfd(sender.pid)
        except OSError as error:
            return -(error.errno or errno.EAGAIN)
        try:
            thread = self._kernel.attach(sender, *request.args[:4], session.inherited)
        except SysError as error:
            if pidfd != NO_PIDFD:
                os.close(pidfd)
            return -error.errno
        session.attached(self._kernel, thread, sender)
        if watch is None:
            watch = Watch(thread.process, pidfd)
            self.watches.add(watch)
            self._recount()
            if pidfd == NO_PIDFD:
                # The process died after it sent this request: another process may read the reply.
                self._kernel.process_died(thread.process)
        watch.sessions.append(session)
        session.watch = watch
        log.debug("attached", pid=sender.pid, tid=thread.tid)
        return thread.process.pid

    def end_process(self, watch: Watch) -> None:
        """End a process in the kernel, because the real process is dead."""
        try:
            self._kernel.process_died(watch.process)
        except KernelBug:
            raise
        except Exception:
            log.exception("process could not be ended cleanly", pid=watch.process.pid)
        self.held.forget(watch.process)
        self._reap()
        self._unwatch(watch)
        if self._dying.is_fresh:
            self._kernel.begin_reaping()

    def _reap(self) -> None:
        """Kill the real processes that the OOM killer has chosen. Drop the processes that the kernel has ended."""
        for process in self._kernel.take_killed():
            self.watches.kill(process)
        for process in self._kernel.take_ended():
            watch = self.watches.find_of(process)
            if watch is not None:
                self._unwatch(watch)

    def _drop_ended_threads(self, watch: Watch | None) -> None:
        """Close the connections of threads that the kernel has ended. execve ends all threads except the caller.

        Must be called before another client is served: a thread that has ended must not run again.
        """
        if watch is None:
            return
        threads = watch.process.threads
        for session in [other for other in watch.sessions if other.thread not in threads]:
            self._drop(session)

    def _unwatch(self, watch: Watch) -> None:
        if self.watches.find_of(watch.process) is not watch:
            return
        for session in list(watch.sessions):
            self._drop(session)
        self.watches.remove(watch)
        self._recount()

    # New connections

    def accept(self) -> None:
        """Accept the new connections."""
        for connection in self._door.admit(self._make_room):
            self._welcome(Session(connection, self.rings))

    def _welcome(self, session: Session) -> bool:
        """Serve a connection from now on. Return False, and close it, if epoll takes no more."""
        try:
            self._epoll.register(session.fd, select.EPOLLIN)
        except OSError as error:
            log.warning("connection refused", error=error.strerror)
            self._door.left(session.connection.peer)
            session.connection.close()
            return False
        self.sessions[session.fd] = session
        self.fair.welcome(session)
        self._recount()
        return True

    def _make_room(self) -> None:
        """Close the oldest connection that has never attached. Such connections stay until others need the room."""
        silent = next((session for session in self.sessions.values() if session.thread is None), None)
        if silent is not None:
            log.warning("connection closed: it never attached, and others wait", pid=silent.pid)
            self._drop(silent)
