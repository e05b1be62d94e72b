"""The event loop: who is served next. One thread; every call runs to completion, so the kernel needs no lock.

The list of ready descriptors is the run queue, round robin: in a turn each ready connection has one datagram answered,
then epoll is asked again (level-triggered: what is left over is ready still, behind those that came meanwhile). A batch
that is longer than a slice of time goes on in the next turn, behind those that are ready by then.

Order within a turn: dead processes first, so that a pid that was used again never meets its predecessor's watch; then
connections; then new ones. An fd closed in a turn may be given out again in the same turn: connections are therefore
looked up before any is served, and one that was closed meanwhile is passed over.

It must not know what a request means. A connection that breaks, or a request that fails in an unforeseen way, costs
that connection; never the loop. KernelBug alone goes through: dispatch has made an oops of what one task can be blamed
for, so where one comes out of it the machine itself is broken, and going on would only spread that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from kerneld.errors import KernelBug, SysError
from kerneld.server.connection import (
    ANCILLARY_BYTES,
    MSG_CUT,
    RECEIVE_FLAGS,
    Connection,
    Datagram,
    Inbox,
    close_fds,
)
from kerneld.server.door import ClientLimits, Door
from kerneld.server.exchange import SLICE_SECONDS, Batch, Outcome, answer_datagram, answer_usual
from kerneld.server.host_watch import HOST_INTERVAL_SECONDS, HostWatch
from kerneld.server.watch import NO_PIDFD, Watch, open_pidfd
from shared.spin import Spin

if TYPE_CHECKING:
    from kerneld.syscalls.kernel import Kernel, Sender
    from kerneld.task.task import Process
    from shared import wire

ACCEPTS_A_TURN = 64
STOP_SECONDS = 1.0
"""How long a daemon that is asked to stop goes on with the batches that have begun."""
BROKEN = select.EPOLLHUP | select.EPOLLERR

log = structlog.get_logger("kerneld.server")


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
        self._door = Door(listener, limits)
        self._stop_fd = stop_fd
        self._inbox = Inbox()
        self._connections: dict[int, Connection] = {}
        self._pidfds: dict[int, Watch] = {}
        self._watches: dict[int, Watch] = {}
        self.slice_seconds = SLICE_SECONDS
        """How long a batch runs before others are served."""
        self._unfinished: list[Connection] = []
        """Those with a batch that goes on in the next turn; one that was closed meanwhile has none any more."""
        self._is_stopping = False
        self._spin = Spin()
        self._most = 3
        """How many descriptors epoll watches at most: the listener, the stop pipe, the host's pidfd, and the others."""
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._epoll.register(stop_fd, select.EPOLLIN)
        self._host = HostWatch(kernel.shadowpt, self._epoll, host_interval_seconds)
        self._tends = False
        """Whether the host is to be looked at between requests."""

    def run(self) -> None:
        """Serve until asked to stop, then let every client go."""
        try:
            while not self._is_stopping:
                self.turn()
            self._finish_batches()
        finally:
            self.close()

    def _finish_batches(self) -> None:
        """What has begun is finished, and answered, as far as that does not keep the daemon from ending."""
        until = monotonic() + STOP_SECONDS
        while self._unfinished and monotonic() < until:
            self._go_on()

    def turn(self, timeout_seconds: float | None = None) -> None:
        """Wait until something is ready, and serve each that is once."""
        events = self._wait(timeout_seconds)
        connection = self._connections.get(events[0][0]) if len(events) == 1 else None
        if connection is not None:
            self._serve(connection, events[0][1])
        else:
            self._serve_all(events)
        if self._unfinished:
            self._go_on()
        self._tends = self._host.is_needed
        if self._tends:
            self._host.tend()

    def _wait(self, timeout_seconds: float | None) -> list[tuple[int, int]]:
        """Return what is ready, all of it: a pidfd left out for lack of room would break the order promised above."""
        spin = self._spin
        if self._unfinished:
            return self._look()
        if spin.skip:
            spin.skip -= 1
        elif timeout_seconds is None:
            events = spin.wait(self._look)
            if events:
                return events
        if self._tends:
            timeout_seconds = self._host.wait_seconds(timeout_seconds)
        return self._poll(timeout_seconds, self._most)

    def _look(self) -> list[tuple[int, int]]:
        return self._poll(0, self._most)

    def _serve_all(self, events: list[tuple[int, int]]) -> None:
        accepting = False
        ready: list[tuple[Connection, int]] = []
        for fd, mask in events:
            connection = self._connections.get(fd)
            if connection is not None:
                ready.append((connection, mask))
            elif fd in self._pidfds:
                self._end_process(self._pidfds[fd])
            elif fd == self._host.pidfd:
                self._host.end()
            elif fd == self._stop_fd:
                self._is_stopping = True
            else:
                accepting = True
        for connection, mask in ready:
            if not connection.is_closed:
                self._serve(connection, mask)
        if accepting:
            self._accept()

    def close(self) -> None:
        """Close every connection and every fd of the loop; the listener stays its owner's."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        for pidfd in self._pidfds:
            os.close(pidfd)
        self._pidfds.clear()
        self._watches.clear()
        self._host.close()
        self._epoll.close()
        self._door.close()

    # Serving a connection

    def _serve(self, connection: Connection, mask: int) -> None:
        if connection.batch is not None:
            # Watched for nothing meanwhile, and yet an end is told of: the batch is run first, as if it were short.
            return
        try:
            if not connection.unsent:
                self._answer_next(connection)
            elif mask & BROKEN:
                self._hang_up(connection)
            else:
                self._send_again(connection)
        except KernelBug:
            raise
        except Exception:
            log.exception("request failed in an unforeseen way: its connection is closed", pid=_pid_of(connection))
            self._hang_up(connection)
        if self._kernel.ended:
            self._reap()

    def _answer_next(self, connection: Connection) -> None:
        """Take one datagram from the connection and answer it."""
        inbox = self._inbox
        try:
            length, ancillary, flags, _ = connection.receive(inbox.buffers, ANCILLARY_BYTES, RECEIVE_FLAGS)
        except BlockingIOError:
            return
        except OSError:
            # ECONNRESET: the client closed without reading all that we sent. As good an end as any.
            self._hang_up(connection)
            return
        outcome = None
        if ancillary == connection.usual and not flags & MSG_CUT:
            outcome = answer_usual(connection, inbox.view, length)
        if outcome is None:
            datagram = inbox.datagram(length, ancillary, flags)
            if datagram is None:
                self._hang_up(connection)
                return
            whole = self._answer(connection, datagram)
            if whole is None:
                return
            outcome = whole
        self._send(connection, outcome)

    def _send(self, connection: Connection, outcome: Outcome | bytes) -> None:
        """Send the answer to a datagram, and do what it came to besides."""
        try:
            if isinstance(outcome, bytes):
                is_sent, is_last = connection.send(outcome), False
            else:
                is_sent, is_last = connection.send(outcome.answer, outcome.fds), outcome.is_last
        except OSError as error:
            _note_broken(connection, error)
            self._hang_up(connection)
            return
        if is_last:
            # The reply is in the client's queue, and stays there after the close. Had a client that never reads left no
            # room for it, it is dropped: a well-behaved one has at most one datagram unanswered.
            self._hang_up(connection)
        elif not is_sent:
            self._epoll.modify(connection.fd, select.EPOLLOUT)
        watch = connection.watch
        if watch is not None and len(watch.process.threads) < len(watch.connections):
            self._drop_ended_threads(watch)

    def _answer(self, connection: Connection, datagram: Datagram) -> Outcome | None:
        """Return what a datagram came to, its fds that nobody has consumed closed; None where it goes on."""
        try:
            outcome = answer_datagram(self._kernel, connection, datagram, self._attach, self.slice_seconds)
        except BaseException:
            close_fds(datagram.fds)
            raise
        if isinstance(outcome, Batch):
            connection.batch = outcome
            self._unfinished.append(connection)
            self._epoll.modify(connection.fd, 0)
            return None
        if datagram.fds:
            close_fds(datagram.fds)
        return outcome

    def _go_on(self) -> None:
        """Run a slice of each unfinished batch."""
        connections, self._unfinished = self._unfinished, []
        for connection in connections:
            if connection.batch is None:
                continue
            try:
                self._go_on_with(connection, connection.batch)
            except KernelBug:
                raise
            except Exception:
                log.exception("request failed in an unforeseen way: its connection is closed", pid=_pid_of(connection))
                self._hang_up(connection)
            if self._kernel.ended:
                self._reap()

    def _go_on_with(self, connection: Connection, batch: Batch) -> None:
        outcome = batch.run(self.slice_seconds)
        if outcome is None:
            self._unfinished.append(connection)
            return
        connection.batch = None
        close_fds(batch.fds)
        self._epoll.modify(connection.fd, select.EPOLLIN)
        self._send(connection, outcome)

    def _send_again(self, connection: Connection) -> None:
        """The client has read: send the answer that waited, then listen to it again."""
        try:
            if connection.send_again():
                self._epoll.modify(connection.fd, select.EPOLLIN)
        except OSError as error:
            _note_broken(connection, error)
            self._hang_up(connection)

    def _hang_up(self, connection: Connection) -> None:
        """The connection is over, and with it the thread behind it."""
        self._drop(connection)
        thread = connection.thread
        if thread is None or thread.process.ended:
            return
        try:
            self._kernel.thread_exited(thread)
        except KernelBug:
            raise
        except Exception:
            log.exception("thread could not be ended cleanly", pid=thread.process.pid, tid=thread.tid)

    def _drop(self, connection: Connection) -> None:
        if connection.is_closed:
            return
        del self._connections[connection.fd]
        self._door.left(connection.peer)
        self._most -= 1
        if connection.watch is not None:
            connection.watch.connections.remove(connection)
        with contextlib.suppress(OSError):
            self._epoll.unregister(connection.fd)
        connection.close()

    # Processes

    def _attach(self, connection: Connection, sender: Sender, request: wire.Request) -> int:
        """Make the connection a thread of the process that sent the request; returns its pid or -errno."""
        if connection.thread is not None:
            return -errno.EINVAL
        if sender.pid <= 0:
            # A process of another pid namespace: it has no pid here.
            return -errno.EPERM
        watch = self._watches.get(sender.pid)
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
        connection.attached(self._kernel, thread, sender)
        if watch is None:
            watch = self._watch(Watch(thread.process, pidfd))
        watch.connections.append(connection)
        connection.watch = watch
        log.debug("attached", pid=sender.pid, tid=thread.tid)
        return thread.process.pid

    def _watch(self, watch: Watch) -> Watch:
        self._watches[watch.process.pid] = watch
        if watch.pidfd == NO_PIDFD:
            # It died between sending this and now; whoever reads the reply is not it.
            self._kernel.process_died(watch.process)
        else:
            self._pidfds[watch.pidfd] = watch
            self._most += 1
            self._epoll.register(watch.pidfd, select.EPOLLIN)
        return watch

    def _end_process(self, watch: Watch) -> None:
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
            self._kill(process)
        for process in self._kernel.take_ended():
            watch = self._watches.get(process.pid)
            if watch is not None and watch.process is process:
                self._unwatch(watch)

    def _kill(self, process: Process) -> None:
        """End the real process: one that ignores its last reply, or never asks for it, must not live on."""
        watch = self._watches.get(process.pid)
        if watch is None or watch.process is not process or watch.pidfd == NO_PIDFD:
            return
        try:
            signal.pidfd_send_signal(watch.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except OSError as error:
            # Another user's, and we are not root: it loses its connections all the same.
            log.warning("process cannot be killed", pid=process.pid, error=error.strerror)

    def _drop_ended_threads(self, watch: Watch) -> None:
        """Close the connections of threads that the kernel has ended, as execve does with all but the caller's."""
        threads = watch.process.threads
        for connection in [other for other in watch.connections if other.thread not in threads]:
            self._drop(connection)

    def _unwatch(self, watch: Watch) -> None:
        if self._watches.get(watch.process.pid) is not watch:
            return
        del self._watches[watch.process.pid]
        for connection in list(watch.connections):
            self._drop(connection)
        if watch.pidfd != NO_PIDFD:
            del self._pidfds[watch.pidfd]
            self._most -= 1
            self._epoll.unregister(watch.pidfd)
            os.close(watch.pidfd)
        log.debug("process gone", pid=watch.process.pid)

    # New connections

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            caller = self._door.accept()
            if caller is None:
                return
            accepted, peer = caller
            if self._door.is_full:
                self._drop_a_silent_one()
            objection = self._door.find_objection(peer)
            if objection:
                log.warning(f"connection refused: {objection}", pid=peer.pid, uid=peer.uid)
                accepted.close()
            else:
                self._add(accepted, peer)

    def _drop_a_silent_one(self) -> None:
        """Who connects and never attaches may stay as long as nobody else needs the room: the oldest goes first."""
        for connection in self._connections.values():
            if connection.thread is None:
                log.warning("connection closed: it never attached, and others wait", pid=connection.peer.pid)
                self._drop(connection)
                return

    def _add(self, accepted: socket.socket, peer: Sender) -> None:
        try:
            connection = Connection(accepted, peer)
            self._epoll.register(connection.fd, select.EPOLLIN)
        except OSError as error:
            log.warning("connection refused", error=error.strerror)
            accepted.close()
            return
        self._connections[connection.fd] = connection
        self._door.let_in(peer)
        self._most += 1


def _pid_of(connection: Connection) -> int | None:
    return connection.thread.process.pid if connection.thread is not None else None


def _note_broken(connection: Connection, error: OSError) -> None:
    """A client may leave without waiting for its answer; anything else is worth a line."""
    if error.errno not in (errno.EPIPE, errno.ECONNRESET):
        log.warning("answer cannot be sent: connection closed", pid=_pid_of(connection), error=error.strerror)
