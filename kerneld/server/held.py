"""Sessions that wait: for a late agent, for another thread of their process, for the change of a file.

Owns who waits for an agent: the threads of its program, and those whose request needs its answer. A session of an
unsettled address space (`kerneld.tlb.debts`) that has made a request is put aside: epoll reports nothing of it until
the agent has answered. An answer that says that pages are gone is kept back until they are. All other sessions are
served meanwhile.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from kerneld.server.agent_link import AgentLink
from kerneld.server.connection import close_fds
from kerneld.server.reply import Outcome
from kerneld.task.sched import run_task, sleep

if TYPE_CHECKING:
    from kerneld.mm.space.wait import Wait
    from kerneld.server.ring import Rings
    from kerneld.server.session import Session
    from kerneld.syscalls.kernel import Kernel
    from kerneld.task.task import Process, Thread

_REPORT_ONCE = select.EPOLLET
"""epoll reports the end of a client once, not in every turn in which it waits."""


class HeldAnswer:
    """The answer to a request that is done, but for what an agent owes. It has the place of a `Batch`."""

    fds: tuple[int, ...] = ()
    gives_way = waits_for_page = is_interruptible = False
    events_meanwhile = _REPORT_ONCE

    def __init__(self, thread: Thread, outcome: Outcome, wait: Wait) -> None:
        self._thread = thread
        self._outcome = outcome
        self._wait = wait

    def run(self, _slice_seconds: float) -> Outcome | None:
        """Return the answer if the agent has answered; else let the thread sleep, and return None."""
        if self._wait.is_over:
            return self._outcome
        self._wait.wake = sleep(self._thread)
        return None

    def close(self) -> None:
        """Give the answer up."""
        close_fds(self._outcome.fds)


class Held:
    """The sessions of one server that wait for agents."""

    def __init__(self, kernel: Kernel, epoll: select.epoll, rings: Rings[Session]) -> None:
        self._rq = kernel.rq
        self._debts = kernel.tlbs.debts
        self._locks = kernel.table.mmap_locks
        self._changes = kernel.files.changes
        self._epoll = epoll
        self._rings = rings
        self._aside: set[Session] = set()

    def told(self, link: AgentLink) -> None:
        """Note that an agent may have acknowledged what it had owed."""
        self._debts.settle(link)
        for session in [session for session in self._aside if not self._is_unsettled(session)]:
            self._aside.discard(session)
            if not session.connection.is_closed:
                self._epoll.modify(session.fd, _events_of(session))

    def _is_unsettled(self, session: Session) -> bool:
        return session.thread is not None and session.thread.process.mm in self._locks.unsettled

    def put_aside(self, sessions: list[Session]) -> None:
        """Look no more at those sessions that have to wait, until their agent has answered."""
        for session in sessions:
            if session not in self._aside and self._is_unsettled(session):
                self._aside.add(session)
                self._epoll.modify(session.fd, _REPORT_ONCE)
                if session.ring is not None:
                    self._rings.forget(session.ring)

    def has(self, session: Session) -> bool:
        """Return whether a thread waits: for another thread of its process, for its agent, or for the change of a file
        that it maps."""
        thread = session.thread
        if thread is None:
            return False
        return self._locks.keeps_waiting(thread) or self._changes.holds(thread.process.mm)

    def keep_back(self, session: Session, outcome: Outcome | bytes) -> HeldAnswer | None:
        """Return the answer to a request as one that waits for those agents that have come to owe something by it.

        None if it is to be sent now: the agents have answered, or its thread has ended.
        """
        if isinstance(outcome, bytes):
            outcome = Outcome(outcome, [], False)
        wait, thread = self._debts.take_wait(), session.thread
        if wait.is_over or outcome.is_last or thread is None or thread not in thread.process.threads:
            return None
        run_task(self._rq, thread)
        answer = HeldAnswer(thread, outcome, wait)
        answer.run(0)
        return answer

    def forget(self, process: Process) -> None:
        """Note that a real process is dead: if it was the last that used its memory, no code runs there any more."""
        for agent in self._debts.agents():
            if isinstance(agent, AgentLink) and agent.process is process and agent.is_dismissed:
                agent.forgive()


def _events_of(session: Session) -> int:
    """Return the events of a session's connection that the server waits for."""
    if session.batch is not None:
        return session.batch.events_meanwhile
    return select.EPOLLOUT if session.connection.unsent else select.EPOLLIN
