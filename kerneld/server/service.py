"""Serving: what happens on a connection that is ready, and to the process behind it.

Owns the sessions, the watches of their processes, and the batches that go on in a later turn; when each of these is
its turn is `kerneld.server.loop`'s. It must not know what a request means. A connection that breaks, or a request that
fails in an unforeseen way, costs that connection, never the loop. KernelBug alone goes through: dispatch has made an
oops of what one task can be blamed for, so where one comes out of it the machine itself is broken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from typing import TYPE_CHECKING

import structlog

from kerneld.errors import KernelBug, SysError
from kerneld.server.agent_link import AgentLink, with_record
from kerneld.server.airlock import Airlock, client_of
from kerneld.server.batch import SLICE_SECONDS, Batch
from kerneld.server.connection import (
    ANCILLARY_BYTES,
    MSG_CUT,
    RECEIVE_FLAGS,
    Datagram,
    Inbox,
    close_fds,
)
from kerneld.server.door import ClientLimits, Door
from kerneld.server.exchange import answer_datagram, answer_usual
from kerneld.server.session import Session
from kerneld.server.watch import NO_PIDFD, Watch, Watches, open_pidfd
from shared.uapi.native import ATTACH_AGENT

if TYPE_CHECKING:
    import socket

    from kerneld.server.reply import Outcome
    from kerneld.syscalls.kernel import Kernel, Sender
    from shared import wire

OTHER_FDS = 6
"""What epoll watches beside connections and pidfds: listener, stop pipe, a host target's pidfd, who looks at it,
changes of files, the readers of traces."""
LEAST_SLICE_SECONDS = 0.0005
BROKEN = select.EPOLLHUP | select.EPOLLERR

log = structlog.get_logger("kerneld.server")


class Service:
    """The clients of `listener`, served with `kernel`; what is to be listened to is in `epoll`."""

    def __init__(self, kernel: Kernel, listener: socket.socket, limits: ClientLimits, epoll: select.epoll) -> None:
        self._kernel = kernel
        self._epoll = epoll
        self._airlock = Airlock(kernel.files.mounts)
        self._door = Door(listener, limits, self._airlock.is_barred)
        self._inbox = Inbox()
        self.sessions: dict[int, Session] = {}
        self.watches = Watches(epoll)
        self.most_events = OTHER_FDS
        """How many descriptors epoll watches at most."""
        self.slice_seconds = SLICE_SECONDS
        """How long a batch runs before others are served."""
        self._locks = kernel.table.mmap_locks
        self.waiting = kernel.rq.queue
        """The threads with a batch that goes on in the next turn; one that has died meanwhile is not there any more."""

    def _recount(self) -> None:
        self.most_events = len(self.sessions) + len(self.watches.by_pidfd) + OTHER_FDS

    def close(self) -> None:
        """Close every connection and every pidfd; the listener and epoll stay their owners'."""
        for session in list(self.sessions.values()):
            self._drop(session)
        self.watches.close()
        self._door.close()

    def serve(self, session: Session, mask: int) -> None:
        """Do what a connection is ready for, once: answer a datagram, send what waited, or let it go."""
        if session.batch is not None:
            # Watched for nothing meanwhile, and yet an end is told of: the batch is run first, as if it were short.
            return
        try:
            if not session.connection.unsent:
                self._answer_next(session)
            elif mask & BROKEN:
                self._hang_up(session)
            else:
                self._send_again(session)
        except KernelBug:
            raise
        except Exception:
            self._give_up(session)
        if self._kernel.ended:
            self._reap()

    def _answer_next(self, session: Session) -> None:
        """Take one datagram from the connection and answer it."""
        inbox = self._inbox
        try:
            length, ancillary, flags, _ = session.receive(inbox.buffers, ANCILLARY_BYTES, RECEIVE_FLAGS)
        except BlockingIOError:
            return
        except OSError:
            # ECONNRESET: the client closed without reading all that we sent. As good an end as any.
            self._hang_up(session)
            return
        outcome = None
        if session.thread is not None and session.thread.tlb is not None:
            session.thread.tlb.begin()
        if ancillary == session.usual and not flags & MSG_CUT:
            outcome = answer_usual(session, inbox.view, length)
        if outcome is None:
            datagram = inbox.datagram(length, ancillary, flags)
            if datagram is None:
                self._hang_up(session)
                return
            whole = self._answer(session, datagram)
            if whole is None:
                return
            outcome = whole
        self._send(session, outcome)

    def _send(self, session: Session, outcome: Outcome | Batch | bytes) -> None:
        """Send the answer to a datagram, and do what it came to besides."""
        if session.thread is not None and session.thread.tlb is not None and not isinstance(outcome, Batch):
            outcome = with_record(outcome, session.thread.tlb.take())
        try:
            if isinstance(outcome, bytes):
                is_sent, is_last = session.connection.send(outcome), False
            elif isinstance(outcome, Batch):
                self._put_aside(session, outcome)
                return
            else:
                is_sent, is_last = session.connection.send(outcome.answer, outcome.fds), outcome.is_last
        except OSError as error:
            _note_broken(session, error)
            self._hang_up(session)
            return
        if is_last:
            # The reply is in the client's queue, and stays there after the close. Had a client that never reads left no
            # room for it, it is dropped: a well-behaved one has at most one datagram unanswered.
            self._hang_up(session)
        elif not is_sent:
            self._epoll.modify(session.fd, select.EPOLLOUT)
        watch = session.watch
        if watch is not None and len(watch.process.threads) < len(watch.sessions):
            self._drop_ended_threads(watch)

    def _answer(self, session: Session, datagram: Datagram) -> Outcome | None:
        """Return what a datagram came to, its fds that nobody has consumed closed; None where it goes on."""
        if datagram.fds:
            self._airlock.admit(datagram.fds, session.connection.peer)
            if self._airlock.is_barred(session.connection.peer):
                close_fds(datagram.fds)
                self._turn_out(session.connection.peer)
                return None
        try:
            outcome = answer_datagram(self._kernel, session, datagram, self._attach, self._slice())
        except BaseException:
            close_fds(datagram.fds)
            raise
        if isinstance(outcome, Batch):
            self._put_aside(session, outcome)
            return None
        if datagram.fds:
            close_fds(datagram.fds)
        return outcome

    def _put_aside(self, session: Session, batch: Batch) -> None:
        """Others are served before a batch goes on; nothing more is read from its connection until it is done."""
        session.batch = batch
        # Edge-triggered: a client that has gone is told of once, not in every turn that the batch sleeps.
        self._epoll.modify(session.fd, select.EPOLLET)
        self._drop_ended_threads(session.watch)

    def _slice(self) -> float:
        """Return how long one of those that wait may run, in seconds: all of them together take one slice or so."""
        return max(self.slice_seconds / (len(self.waiting) or 1), min(self.slice_seconds, LEAST_SLICE_SECONDS))

    def is_held(self, session: Session) -> bool:
        """Tell whether a thread waits: for another one of its process, or for a change of a file that this maps."""
        thread = session.thread
        if thread is None:
            return False
        return self._locks.keeps_waiting(thread) or self._kernel.files.changes.holds(thread.process.mm)

    def go_on(self) -> None:
        """Run a slice of each thread's that waits for the processor."""
        for thread in list(self.waiting):
            session = thread.session
            if not isinstance(session, Session) or session.batch is None or self.is_held(session):
                continue
            try:
                self._go_on_with(session, session.batch)
            except KernelBug:
                raise
            except Exception:
                self._give_up(session)
            if self._kernel.ended:
                self._reap()

    def _go_on_with(self, session: Session, batch: Batch) -> None:
        outcome = batch.run(self._slice())
        if outcome is None:
            self._drop_ended_threads(session.watch)
            return
        session.batch = None
        close_fds(batch.fds)
        self._epoll.modify(session.fd, select.EPOLLIN)
        self._send(session, outcome)

    def _send_again(self, session: Session) -> None:
        """The client has read: send the answer that waited, then listen to it again."""
        try:
            if session.connection.send_again():
                self._epoll.modify(session.fd, select.EPOLLIN)
        except OSError as error:
            _note_broken(session, error)
            self._hang_up(session)

    def _turn_out(self, peer: Sender) -> None:
        """Let go of a client whose descriptors cannot be closed, with every connection of its."""
        log.warning("connections closed: too many descriptors that nobody can close", pid=peer.pid, uid=peer.uid)
        for session in list(self.sessions.values()):
            if client_of(session.connection.peer) == client_of(peer):
                self._hang_up(session)

    def _give_up(self, session: Session) -> None:
        # First: where there is no memory to log, there may be some to close a connection whose client waits.
        self._hang_up(session)
        log.exception("request failed in an unforeseen way: its connection is closed", pid=session.pid)

    def _hang_up(self, session: Session) -> None:
        """The connection is over, and with it the thread behind it."""
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
        del self.sessions[session.fd]
        self._door.left(session.connection.peer)
        self._recount()
        if session.watch is not None:
            session.watch.sessions.remove(session)
        with contextlib.suppress(OSError):
            self._epoll.unregister(session.fd)
        session.close()

    # Processes

    def _attach(self, session: Session, sender: Sender, request: wire.Request) -> int:
        """Make the connection a thread of the process that sent the request; returns its pid or -errno."""
        if session.thread is not None:
            return -errno.EINVAL
        if sender.pid <= 0:
            # A process of another pid namespace: it has no pid here.
            return -errno.EPERM
        watch = self.watches.find(sender.pid)
        if request.args[3] & ATTACH_AGENT:
            return self._attach_agent(session, watch, request.args[2])
        try:
            pidfd = NO_PIDFD if watch is not None else open_pidfd(sender.pid)
        except OSError as error:
            return -(error.errno or errno.EAGAIN)
        try:
            thread = self._kernel.attach(sender, *request.args[:4])
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
                # It died between sending this and now; whoever reads the reply is not it.
                self._kernel.process_died(thread.process)
        watch.sessions.append(session)
        session.watch = watch
        log.debug("attached", pid=sender.pid, tid=thread.tid)
        return thread.process.pid

    def _attach_agent(self, session: Session, watch: Watch | None, token: int) -> int:
        """Make the connection the agent's of a TLB of the process that sent the request; returns 0 or -errno."""
        if watch is None:
            return -errno.EINVAL
        process = watch.process
        link = AgentLink(session.connection, lambda: self.watches.kill(process))
        try:
            self._kernel.tlbs.employ(token, link)
        except SysError as error:
            return -error.errno
        session.on_close = link.lost
        return 0

    def end_process(self, watch: Watch) -> None:
        """The real process is dead."""
        try:
            self._kernel.process_died(watch.process)
        except KernelBug:
            raise
        except Exception:
            log.exception("process could not be ended cleanly", pid=watch.process.pid)
        self._reap()
        self._unwatch(watch)

    def _reap(self) -> None:
        """Kill the real processes that the OOM killer has chosen; let go of those that the kernel has ended."""
        for process in self._kernel.take_killed():
            self.watches.kill(process)
        for process in self._kernel.take_ended():
            watch = self.watches.find_of(process)
            if watch is not None:
                self._unwatch(watch)

    def _drop_ended_threads(self, watch: Watch | None) -> None:
        """Close the connections of threads that the kernel has ended, as execve does with all but the caller's.

        To be done before anybody else is served: a thread that has ended must not run again.
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
        """Admit who has knocked."""
        for connection in self._door.admit(self._make_room):
            try:
                self._epoll.register(connection.fd, select.EPOLLIN)
            except OSError as error:
                log.warning("connection refused", error=error.strerror)
                self._door.left(connection.peer)
                connection.close()
                continue
            self.sessions[connection.fd] = Session(connection)
            self._recount()

    def _make_room(self) -> None:
        """Who connects and never attaches may stay as long as nobody else needs the room: the oldest goes first."""
        silent = next((session for session in self.sessions.values() if session.thread is None), None)
        if silent is not None:
            log.warning("connection closed: it never attached, and others wait", pid=silent.pid)
            self._drop(silent)


def _note_broken(session: Session, error: OSError) -> None:
    """A client may leave without waiting for its answer; anything else is worth a line."""
    if error.errno not in (errno.EPIPE, errno.ECONNRESET):
        log.warning("answer cannot be sent: connection closed", pid=session.pid, error=error.strerror)
