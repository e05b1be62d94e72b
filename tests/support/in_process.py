"""Hostile datagrams straight into a machine in this process: no socket, no process, and therefore many a second.

Stands where the server's loop does: attaches, lets go of what has ended, and kills processes. Every answer is looked
at; anything that the daemon's log would call an error fails the drive.
"""

from __future__ import annotations

import gc
import os
import random
import select
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from kerneld.errors import SysError
from kerneld.server.batch import Batch
from kerneld.server.connection import Datagram
from kerneld.server.exchange import answer_datagram, answer_usual
from kerneld.server.pipe_watch import PipeWatch
from kerneld.server.reply import Outcome
from kerneld.server.ring import Rings
from kerneld.server.session import Session
from kerneld.syscalls import dispatch as dispatch_module
from kerneld.syscalls.kernel import Kernel, KernelConfig, Sender
from kerneld.task import table
from shared import wire
from shared.client import realmem
from tests.hostile.datagrams import Hostile, Writer
from tests.hostile.descriptors import Descriptors

RAM_BYTES = 16 << 20
FIRST_PID = 1 << 23
"""Above any pid that the host gives."""
NR_CLIENTS = 5
MAX_ERRNO = 4095
"""As in Linux; beyond the last that has a name mmap answers, as there, a MAP_FIXED address of the last page."""
TABLE_BYTES = 12 << 12
MOST_CHECKED = 10
"""Requests of a datagram that is checked after each: a batch of thousands would take a quarter of a minute."""


class OopsError(AssertionError):
    """A handler has failed as none should."""


class _Log:
    """In place of dispatch's log, of which errors alone count."""

    def debug(self, event: str, **fields: object) -> None:
        pass

    warning = debug

    def exception(self, event: str, **fields: object) -> None:
        raise OopsError(f"{event}: {fields}")


class _NoSocket:
    """In place of a session's connection."""

    fd = -1
    receive = None
    reply_limit = wire.MAX_REPLY
    has_unread = False


class Client(Session):
    """The session of a client that has no socket."""

    __slots__ = ("sender",)

    def __init__(self, sender: Sender) -> None:
        super().__init__(cast(Any, _NoSocket()), Rings())
        self.sender = sender


class Drive:
    """One machine and its hostile clients."""

    def __init__(self, seed: int, check_share: float, *, check_each: bool = False, ram_bytes: int = RAM_BYTES) -> None:
        """Every invariant is checked after each request of `check_share` of all datagrams.

        With `check_each` it is after each datagram too, once, whatever the datagram was.
        """
        self._check_each = check_each
        self._random = random.Random(seed)
        self._check_share = check_share
        self._directory = tempfile.TemporaryDirectory(prefix="hostile-")
        self._config = KernelConfig(ram_bytes=ram_bytes, superuser_uid=0)
        self.kernel = Kernel(self._config)
        self.free_pages = self.kernel.frames.free_pages
        self._parents: dict[int, int] = {}
        self._next_pid = FIRST_PID
        self._entries = realmem.map_anonymous(TABLE_BYTES)
        self.fds = Descriptors(Path(self._directory.name))
        self._epoll = select.epoll()
        self.pipes = PipeWatch(self.kernel, self._epoll)
        gc.collect()  # What earlier tests have left to the collector is not ours to count.
        self.nr_fds = len(os.listdir("/proc/self/fd"))
        self.writer = Writer(seed, lambda: list(self.kernel.processes), self._entries)
        self._clients = [Client(self._sender(number)) for number in range(NR_CLIENTS)]
        self._former = cast(Any, table).find_ppid, cast(Any, dispatch_module)._log
        cast(Any, table).find_ppid = self._parents.get
        cast(Any, dispatch_module)._log = _Log()
        self.nr_replies = 0
        self.nr_good = 0
        self.nr_checked = 0

    def _sender(self, number: int) -> Sender:
        """Return who the client of this number is: the first is this very process, the superuser with real memory."""
        if number == 0:
            return Sender(os.getpid(), 0, 0)
        self._next_pid += 1
        self._parents[self._next_pid] = self._random.choice([os.getpid(), *range(self._next_pid - 9, self._next_pid)])
        uid = self._random.choice((0, 1000, 1000, 1001))
        return Sender(self._next_pid, uid, uid)

    def run(self, count: int) -> None:
        """Send `count` datagrams. Raises OopsError, KernelBug, or whatever else goes wrong."""
        for _ in range(count):
            self.step()

    def step(self) -> None:
        """Send one datagram of one client and look at the answer."""
        at = self._random.randrange(NR_CLIENTS)
        client = self._clients[at]
        hostile = self.writer.datagram() if client.thread is not None else self.writer.attach()
        fds = [os.dup(fd) for fd in self.fds.pick(self._random, hostile.nr_fds)] if hostile.nr_fds else []
        checked = self._random.random() < self._check_share and len(hostile.requests) <= MOST_CHECKED
        self.kernel.config = replace(self._config, check_invariants=checked)
        is_last = self._answer(client, hostile, fds)
        for fd in fds:
            os.close(fd)
        if is_last or self._random.random() < 0.002:
            self._leave(client)
        self._reap()
        if self._check_each:
            self.kernel.config = replace(self._config, check_invariants=True)
            self.kernel.check()
            self.nr_checked += 1

    def _answer(self, client: Client, hostile: Hostile, fds: list[int]) -> bool:
        sender = client.sender
        if self._random.random() < 0.01:
            sender = sender._replace(pid=self._random.choice((0, 1, FIRST_PID)))
        length = len(hostile.data)
        data = memoryview(hostile.data)[: wire.MAX_DATAGRAM]
        if sender is client.sender and not fds and length <= wire.MAX_DATAGRAM:
            usual = answer_usual(client, data, length)
            while isinstance(usual, Batch):
                usual = usual.run(0.0) or usual
            if usual is not None:
                return self._look(hostile, Outcome(usual, [], False) if isinstance(usual, bytes) else usual)
        datagram = Datagram(data, sender, fds, length > wire.MAX_DATAGRAM, self._random.random() < 0.002)
        slice_seconds = self._random.choice((0.0, 10.0))
        attach = cast(Any, self._attach)
        outcome = answer_datagram(self.kernel, client, datagram, attach, slice_seconds)
        while isinstance(outcome, Batch):
            outcome = outcome.run(slice_seconds) or outcome
        return self._look(hostile, outcome)

    def _look(self, hostile: Hostile, outcome: Outcome) -> bool:
        """Look at an answer; returns whether the client leaves with it."""
        for fd in outcome.fds:
            os.close(fd)
        assert len(outcome.answer) <= wire.MAX_REPLY
        assert len(outcome.fds) <= wire.MAX_FDS
        replies = wire.unpack_replies(outcome.answer)
        assert replies
        assert not hostile.requests or len(replies) <= len(hostile.requests)
        for request, reply in zip(hostile.requests, replies, strict=False):
            assert reply.ret >= -MAX_ERRNO, (request, reply)
        self.nr_replies += len(replies)
        self.nr_good += sum(reply.ret >= 0 for reply in replies)
        self.writer.learn(hostile.requests, replies)
        return outcome.is_last

    def _attach(self, client: Client, sender: Sender, request: wire.Request) -> int:
        if client.thread is not None or sender.pid != client.sender.pid:
            return -22
        try:
            thread = self.kernel.attach(sender, *request.args[:4])
        except SysError as error:
            return -error.errno
        client.attached(self.kernel, thread, sender)
        return thread.process.pid

    def _leave(self, client: Client) -> None:
        """Have the client leave, or its real process die."""
        thread, client.thread = client.thread, None
        if thread is None or thread.process.ended:
            return
        if self._random.random() < 0.5:
            self.kernel.process_died(thread.process)
        else:
            self.kernel.thread_exited(thread)

    def tend(self) -> None:
        """Tell the kernel which pipes have no reader any more, as the server's loop does."""
        if self.pipes.fd >= 0:
            self.pipes.tend()
        self.release()

    def release(self) -> None:
        """Go on with the userfaultfds that nobody has any more, to their end."""
        while self.kernel.userfaultfds.releasing:
            self.kernel.release_userfaultfds()

    def _reap(self) -> None:
        self.tend()
        ended = self.kernel.take_ended()
        for at, client in enumerate(self._clients):
            thread = client.thread
            if thread is not None and (thread.process in ended or thread not in thread.process.threads):
                client.thread = None
            if client.thread is None and ended:
                self._clients[at] = Client(self._sender(at))

    def finish(self) -> None:
        """Let every client go and see that nothing has stayed."""
        self.kernel.config = replace(self._config, check_invariants=True)
        for client in self._clients:
            self._leave(client)
        for process in list(self.kernel.processes.values()):
            self.kernel.process_died(process)
        self._reap()
        self.kernel.check()
        self.kernel.files.kept.drop_all()
        assert self.kernel.frames.free_pages == self.free_pages, "frames are lost"
        assert not self.kernel.processes
        assert len(self.kernel.files) == 0
        assert self.kernel.shadowpt.describe_session()[0] == "closed"
        # A real process that has given up rights is known as long as it lives: one here has the pid of one.
        self.kernel.table.close()
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == self.nr_fds, "descriptors are left"

    def close(self) -> None:
        """Put everything back that the drive has changed outside its machine."""
        cast(Any, table).find_ppid, cast(Any, dispatch_module)._log = self._former
        self.kernel.shutdown()
        self.pipes.close()
        self._epoll.close()
        self.fds.close()
        realmem.unmap(self._entries, TABLE_BYTES)
        self._directory.cleanup()
