"""The connection of a native program's agent: sends orders to the agent, and hears when they are carried out.

Owns how long the kernel waits. An agent does no other work and waits for no other process. So it answers in
microseconds, as a processor answers an interrupt, and the kernel waits for that. An agent that waits for a processor,
or is stopped, is not dead: after some hundredths of a second the kernel goes on without its answer
(`kerneld.tlb.debts`), and hears it when it comes. Only if the agent has gone, its program is killed.
Answers to Linux v6.8 kernel/smp.c:smp_call_function_many_cond().
"""

from __future__ import annotations

import contextlib
import select
import struct
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from kerneld.server.connection import SEND_FLAGS
from kerneld.tlb.record import DISMISSED, RECORD, pack_record
from shared.uapi.page import TASK_SIZE

if TYPE_CHECKING:
    from kerneld.server.connection import Connection
    from kerneld.task.task import Process

PATIENCE_SECONDS = 0.04
"""How long the kernel waits for agents in each PERIOD_SECONDS: all others wait meanwhile."""
PERIOD_SECONDS = 0.1
_ACKNOWLEDGED = struct.Struct("<Q")
_MILLISECONDS = 1000
log = structlog.get_logger("kerneld.server")


class Patience:
    """How long the kernel may still wait for agents; of all agents together."""

    def __init__(self) -> None:
        self._left = PATIENCE_SECONDS
        self._began = 0.0

    def poll(self, poll: select.poll) -> bool:
        """Wait for a word, if there is time. Return whether there is one."""
        began = monotonic()
        if began >= self._began + PERIOD_SECONDS:
            self._began, self._left = began, PATIENCE_SECONDS
        has_word = bool(poll.poll(max(0, self._left) * _MILLISECONDS))
        self._left -= monotonic() - began
        return has_word


class AgentLink:
    """One agent; see `kerneld.tlb.view.Agent`."""

    def __init__(
        self, connection: Connection, process: Process, kill: Callable[[], None], told: Callable[[AgentLink], None],
        patience: Patience,
    ) -> None:  # fmt: skip
        """`process` began the memory of the agent; `kill` ends its real process. `told` is called when the agent may
        have acknowledged what it had owed."""
        self.process = process
        self.acknowledged = 0
        self.is_dismissed = False
        self._connection = connection
        self._kill = kill
        self._told = told
        self._patience = patience
        self._ordered = 0
        """The number of the last order."""
        self._is_gone = self._has_missed = self._has_farewell = False
        """Whether the agent has gone; whether an order has found no room in the connection; whether the farewell is
        sent."""
        self._poll = select.poll()
        self._poll.register(connection.fd, select.POLLIN)

    def order(self, record: bytes) -> bool:
        """Send an order, and wait a little. Return whether it is carried out, or the program cannot run any more."""
        if self._is_gone:
            return True
        owes = self.acknowledged < self._ordered
        number: int = RECORD.unpack_from(record)[2]
        self._ordered = number
        if self._has_missed or not self._send(record):
            self._has_missed = True
        while not owes and self.acknowledged < number:
            # One that owed an answer before is not waited for again.
            if not self._patience.poll(self._poll):
                return False
            self._take_word()
        return self.acknowledged >= number

    def _send(self, record: bytes) -> bool:
        """Return whether a record is sent: if not, there is no room for it yet."""
        try:
            self._connection.socket.send(record, SEND_FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            self.lost()
        return True

    def hear(self) -> bool:
        """Take the words of an agent that has owed them. Return whether there can be more."""
        with contextlib.suppress(BlockingIOError):
            while self._take_word():
                pass
        if self._has_missed:
            # It has read some of what it had. What it has missed was to drop pages: it drops all.
            self._has_missed = not self._send(pack_record([(0, TASK_SIZE)], [], self._ordered))
        if self.is_dismissed:
            self._say_farewell()
        self._told(self)
        return not self._is_gone

    def _take_word(self) -> bool:
        """Take one word. Return False if the agent has gone. Raises BlockingIOError if it has said nothing."""
        try:
            word: bytes = self._connection.socket.recv(_ACKNOWLEDGED.size)
        except ConnectionResetError:
            word = b""
        if len(word) != _ACKNOWLEDGED.size:
            self.lost()
            return False
        self.acknowledged = min(self._ordered, *_ACKNOWLEDGED.unpack(word))
        return True

    def dismiss(self) -> None:
        """Tell the agent to end: it is not needed any more."""
        self.is_dismissed = True
        self._say_farewell()

    def _say_farewell(self) -> None:
        if not self._has_missed and not self._has_farewell and not self._is_gone:
            self._has_farewell = self._send(RECORD.pack(RECORD.size, DISMISSED, 0))

    def lost(self) -> None:
        """Note that the connection has ended, and kill the process, unless the agent was dismissed."""
        if not self._is_gone:
            self._is_gone = True
            if not self.is_dismissed:
                log.warning("native process killed", pid=self._connection.peer.pid, why="its agent has gone")
                self._kill()
        self.forgive()

    def forgive(self) -> None:
        """Wait for no answer any more: no code runs in the memory."""
        self.acknowledged = self._ordered
        self._told(self)
