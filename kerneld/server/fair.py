"""Who is served first when the clients ask for more than one turn of the loop has time for.

Each session has a virtual runtime: the seconds of the processor that its requests have taken, without the first tenth
of a millisecond of each. A crowded turn serves the sessions with the smallest one first, for TURN_SECONDS; the others
wait for a next turn. So a client that asks little is served in the next turn, however many clients keep the machine
busy, and the busy ones share the rest equally.

Owns the order, and the fields `vruntime` and `crowd` of each session. Answers to Linux v6.8 kernel/sched/fair.c:
place_entity() and update_min_vruntime(). Differs from Linux: v6.8 also has deadlines, and a task with an earlier one
interrupts another; here nothing interrupts a piece. So pieces and slices are short in a crowded turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from kerneld.mm.space.pace import CROWD, Pace
from kerneld.server.batch import SLICE_SECONDS, Batch
from kerneld.server.reply import Outcome
from kerneld.server.session import Session

if TYPE_CHECKING:
    from kerneld.task.task import Thread

TURN_SECONDS = 0.01
"""How long a turn serves sessions. Its last piece may end later."""
SLEEPER_BONUS = 2 * TURN_SECONDS
"""How far a session that has not asked for anything goes before those that have, in seconds."""
LEAST_SLICE_SECONDS = 0.00025
LIGHT_SECONDS = 0.0001
"""What each request has free: so a client that only asks little is before all that ask more."""
RING, GO_ON = 0, -1
"""In place of an epoll mask: the session has a request in its ring, or a batch that is not finished."""
Entry = tuple[Session, int]
Answered = Outcome | Batch | bytes | None
"""What has come of a datagram; None: nothing yet."""


class FairShare:
    """The order in which one loop serves its sessions."""

    def __init__(self, waiting: Collection[Thread]) -> None:
        """`waiting` has the threads whose batch is not finished."""
        self._waiting = waiting
        self._nr_ready = 1
        self.slice_seconds = SLICE_SECONDS
        """How long a batch runs before other clients are served, if few want the processor."""
        self.turn_seconds = TURN_SECONDS
        """How long a turn serves sessions."""
        self._min_vruntime = 0.0
        """A session that waits has at least this. It never decreases."""
        self._left_over: set[Session] = set()
        """The sessions that the last turn had no time for."""
        self._crowd = 0
        """The number of the present crowd: of the turns since one had time for all."""

    def welcome(self, session: Session) -> None:
        """Let a new session begin where the others are."""
        session.vruntime, session.crowd = self._min_vruntime, self._crowd

    def serve(self, entries: list[Entry], run: Callable[[Session, int], None]) -> None:
        """Run the entries, as many as fit into a turn and at least one. What is left is ready in the next turn too."""
        self._nr_ready = len(entries)
        Pace.share_among(len(entries))
        if self._left_over:
            for session, mask in entries:
                self._place(session, mask)
            entries = sorted(entries, key=_vruntime)
            served = _serve_crowd(entries, run, self.turn_seconds)
            self._advance(entries, served)
        else:
            self._crowd += 1
            served = _serve_some(entries, run, self.turn_seconds)
        self._left_over = {session for session, _ in entries[served:]}

    def unfinished(self) -> list[Session]:
        """Return the sessions whose batch goes on, in the order of the run queue."""
        return [
            session
            for thread in self._waiting
            if isinstance(session := thread.session, Session) and session.batch is not None
        ]

    def begin(self, outcome: Answered) -> Answered:
        """Run more pieces of a request whose first piece has run, unless many others have not had one yet."""
        if not isinstance(outcome, Batch):
            return outcome
        if self._nr_ready > CROWD or outcome.gives_way:
            outcome.put_off()
            return outcome
        return outcome.run(self.slice()) or outcome

    def slice(self) -> float:
        """Return the slice of each thread, in seconds: all that want the processor take about one whole slice."""
        threads = max(len(self._waiting), self._nr_ready, 1)
        return max(self.slice_seconds / threads, min(self.slice_seconds, LEAST_SLICE_SECONDS))

    def _place(self, session: Session, mask: int) -> None:
        """Let a session that was asleep go before the busy ones, but not by all that it has not used.

        What it has used before this crowd does not count.
        """
        least = self._min_vruntime - SLEEPER_BONUS
        if session.crowd != self._crowd:
            session.vruntime, session.crowd = least, self._crowd
        elif mask != GO_ON and session not in self._left_over:
            session.vruntime = max(session.vruntime, least)

    def _advance(self, entries: list[Entry], served: int) -> None:
        waiting = [session.vruntime for session, _ in entries[served:]]
        waiting += [session.vruntime for session, _ in entries[:served] if session.batch is not None]
        if waiting:
            self._min_vruntime = max(self._min_vruntime, min(waiting))


def _serve_some(entries: list[Entry], run: Callable[[Session, int], None], turn_seconds: float) -> int:
    """Run entries for a turn and return how many. The usual turn: there is time for all, and nobody counts it."""
    until = monotonic() + turn_seconds
    for number, (session, mask) in enumerate(entries, 1):
        run(session, mask)
        if monotonic() >= until:
            return number
    return len(entries)


def _serve_crowd(entries: list[Entry], run: Callable[[Session, int], None], turn_seconds: float) -> int:
    """Do the same, and add the time of the processor to each session: other programs may have had it meanwhile."""
    begun = before = thread_time()
    for number, (session, mask) in enumerate(entries, 1):
        run(session, mask)
        after = thread_time()
        session.vruntime += max(0.0, after - before - LIGHT_SECONDS)
        before = after
        if after - begun >= turn_seconds:
            return number
    return len(entries)


def _vruntime(entry: Entry) -> float:
    return entry[0].vruntime
