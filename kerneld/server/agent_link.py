"""The connection of a native program's agent: sends orders to the agent, and waits for the acknowledgement.

Owns the longest wait. An agent does no other work and waits for no other process. So it answers in microseconds, as a
processor answers an interrupt. If an agent is silent and does not want to run, the kernel kills its process after a
tenth of a second. Other clients lose no more than that time. An agent that waits for a processor has longer: it cannot
answer. An agent that is stopped (SIGSTOP) will not answer.
Answers to Linux v6.8 kernel/smp.c:smp_call_function_many_cond().
"""

from __future__ import annotations

import contextlib
import select
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from kerneld.server.connection import SEND_FLAGS
from kerneld.server.starving import Starvation
from kerneld.tlb.record import DISMISSED, RECORD

if TYPE_CHECKING:
    from kerneld.server.connection import Connection

PATIENCE_SECONDS = 1.0
"""How much processor time the process of a silent agent may use, and how long the host may hold it up."""
_LOOK_MS = 20
_MOST_IDLE = 4
"""So many looks must find an agent idle: it sleeps a millisecond at a time while it waits for a thread that maps."""
AGENT_NAME = "kerneld-tlb"
"""Source: stub/memory/agent.c."""
_ACKNOWLEDGED = struct.Struct("<Q")
_MILLISECONDS = 1000
log = structlog.get_logger("kerneld.server")


class AgentLink:
    """One agent; see `kerneld.tlb.tlb.Agent`."""

    def __init__(self, connection: Connection, kill: Callable[[], None]) -> None:
        """`kill` ends the real process of the agent."""
        self._connection = connection
        self._kill = kill
        self._is_over = False
        self._poll = select.poll()
        self._poll.register(connection.fd, select.POLLIN)

    def order(self, record: bytes) -> None:
        """Send an order and wait for the acknowledgement. Without an acknowledgement in time, kill the process."""
        if self._is_over:
            return
        with contextlib.suppress(OSError):
            self._connection.socket.send(record, SEND_FLAGS)
            if self._is_answered(RECORD.unpack_from(record)[2]):
                return
        self._end_process("its agent does not answer")

    def _is_answered(self, number: int) -> bool:
        while self._has_word():
            answer = self._connection.socket.recv(_ACKNOWLEDGED.size)
            if answer == _ACKNOWLEDGED.pack(number):
                return True
            if not answer:
                break
        return False

    def _has_word(self) -> bool:
        """Wait for a word of the agent, as long as it may take."""
        if self._poll.poll(_LOOK_MS):
            return True
        most_held = int(PATIENCE_SECONDS * _MILLISECONDS) // _LOOK_MS
        starvation = Starvation(self._connection.peer.pid, AGENT_NAME, PATIENCE_SECONDS, _MOST_IDLE, most_held)
        while not starvation.is_over():
            if self._poll.poll(_LOOK_MS):
                return True
        return False

    def dismiss(self) -> None:
        """Tell the agent to end: it is not needed any more."""
        self._is_over = True
        with contextlib.suppress(OSError):
            self._connection.socket.send(RECORD.pack(RECORD.size, DISMISSED, 0), SEND_FLAGS)

    def lost(self) -> None:
        """Note that the connection has ended, and kill the process."""
        self._end_process("its agent has gone")

    def _end_process(self, why: str) -> None:
        if not self._is_over:
            self._is_over = True
            log.warning("native process killed", pid=self._connection.peer.pid, why=why)
            self._kill()
