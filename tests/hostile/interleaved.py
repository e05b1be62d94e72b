"""Hostile datagrams into a machine in this process, where what is long waits between any two of its pieces.

Every request that can go on in pieces does, and so does every batch; meanwhile others have theirs run, and whoever
waits may leave, or be killed for want of memory. Stands where the server does, which does so only under load.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, cast

from kerneld.server.batch import Batch
from kerneld.server.connection import Datagram, close_fds
from kerneld.server.exchange import answer_datagram, answer_usual
from kerneld.server.reply import Outcome
from shared import wire
from tests.hostile.datagrams import Hostile
from tests.support.in_process import NR_CLIENTS, Client, Drive


class InterleavedDrive(Drive):
    """One machine and its hostile clients, of whom several wait at a time."""

    def __init__(self, seed: int, check_share: float, *, ram_bytes: int) -> None:
        self._waiting: dict[Client, tuple[Hostile, Batch]] = {}
        self.nr_waits = 0
        """Datagrams that others were served in the middle of."""
        self.nr_given_up = 0
        """Of these, how many were given up, as their process left."""
        super().__init__(seed, check_share, ram_bytes=ram_bytes)
        self.kernel.dying.slice_seconds = 0.0

    def step(self) -> None:
        """Let some of those that wait go on, and send one datagram of one client that does not."""
        for _ in range(self._random.randrange(4)):
            ready = [client for client in self._waiting if not self._is_held(client)]
            if ready:
                self._go_on(self._random.choice(ready))
        if self._random.random() < 0.5:
            self._choose_whether_to_check()
            self.kernel.reap_memory()
        client = self._clients[self._random.randrange(NR_CLIENTS)]
        if client not in self._waiting:
            if not self._is_held(client):
                self._send(client)
        elif self._random.random() < 0.02:
            self._leave(client)
        self._reap()

    def _is_held(self, client: Client) -> bool:
        """Whether its thread waits for who holds its address space, as the server lets it."""
        return client.thread is not None and self.kernel.table.mmap_locks.keeps_waiting(client.thread)

    def release(self) -> None:
        """Go on with a userfaultfd that nobody has any more, for one piece."""
        if self.kernel.userfaultfds.releasing:
            self.kernel.release_userfaultfds()

    def _send(self, client: Client) -> None:
        hostile = self.writer.datagram() if client.thread is not None else self.writer.attach()
        fds = [os.dup(fd) for fd in self.fds.pick(self._random, hostile.nr_fds)] if hostile.nr_fds else []
        self._choose_whether_to_check()
        data, length = memoryview(hostile.data)[: wire.MAX_DATAGRAM], len(hostile.data)
        is_cut = length > wire.MAX_DATAGRAM
        came_to = None if fds or is_cut else answer_usual(client, data, length)
        if came_to is None:
            datagram = Datagram(data, client.sender, fds, is_cut, False)
            came_to = answer_datagram(self.kernel, client, datagram, cast(Any, self._attach), 0.0)
        if isinstance(came_to, Batch):
            self._waiting[client] = hostile, came_to
            self.nr_waits += 1
            return
        close_fds(fds)
        outcome = Outcome(came_to, [], False) if isinstance(came_to, bytes) else came_to
        if self._look(hostile, outcome) or self._random.random() < 0.002:
            self._leave(client)

    def _choose_whether_to_check(self) -> None:
        self.kernel.config = replace(self._config, check_invariants=self._random.random() < self._check_share)

    def _go_on(self, client: Client) -> None:
        hostile, batch = self._waiting[client]
        self._choose_whether_to_check()
        outcome = batch.run(0.0)
        if outcome is not None:
            del self._waiting[client]
            close_fds(batch.fds)
            if self._look(hostile, outcome):
                self._leave(client)
        self._reap()

    def _leave(self, client: Client) -> None:
        self._give_up(client)
        super()._leave(client)

    def _give_up(self, client: Client) -> None:
        """The client leaves, and with it what waits, before anybody else is served."""
        if client in self._waiting:
            self._waiting.pop(client)[1].close()
            self.nr_given_up += 1

    def _reap(self) -> None:
        super()._reap()
        for client in list(self._waiting):
            if client.thread is None or client not in self._clients:
                self._give_up(client)

    def finish(self) -> None:
        """Let every client go, also those that wait, and see that nothing has stayed."""
        for client in list(self._waiting):
            self._give_up(client)
        super().release()
        self.kernel.dying.slice_seconds = None
        super().finish()
