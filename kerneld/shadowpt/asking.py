"""Questions about real processes, whose answers may be long in coming: how a request waits for one.

Who needs an answer asks for it as if it were there (`Asking.get`). Where it is not, the request is begun again when it
has come, from its first line, and finds it then; so whatever it has checked before is checked again, as it is by then,
and it must not have changed anything before it asks. This is what Linux does with a system call that a signal
interrupts (-ERESTARTSYS), and it keeps the code of the five calls straight.

Owns what the request under way has been told so far. Who finds the answers out, and when, is a `HostReader`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kerneld.shadowpt.host_look import Look, Question, look


class Pending:
    """The answer to one question, as soon as it is there."""

    __slots__ = ("_error", "_found", "is_over", "on_over", "wake")

    def __init__(self) -> None:
        self.is_over = False
        self._found: Look | None = None
        self._error: OSError | None = None
        self.on_over: Callable[[], None] | None = None
        """Called once it is over."""
        self.wake: Callable[[], None] | None = None
        """Wakes the thread that sleeps for it."""

    def finish(self, found: Look | None, error: OSError | None = None) -> None:
        """The answer is there, or it is known why there is none."""
        self.is_over, self._found, self._error = True, found, error
        for call in (self.on_over, self.wake):
            if call is not None:
                call()
        self.on_over = self.wake = None

    def result(self) -> Look:
        """Return the answer, once it is there. Raises the OSError of who has looked, ETIMEDOUT where nobody could."""
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found


class WouldWait(Exception):
    """The answer is not there yet."""

    def __init__(self, pending: Pending) -> None:
        super().__init__()
        self.pending = pending


class HostReader(Protocol):
    """Who looks into real processes."""

    def ask(self, question: Question) -> Pending:
        """Ask; its descriptor may be closed on return."""

    def give_up(self, pending: Pending) -> None:
        """Nobody waits for this answer any more."""


class DirectReader:
    """Looks at once, and waits as long as that takes: for a machine without a loop."""

    def ask(self, question: Question) -> Pending:
        """Ask, and have the answer on return."""
        pending = Pending()
        try:
            pending.finish(look(question))
        except OSError as error:
            pending.finish(None, error)
        return pending

    def give_up(self, pending: Pending) -> None:
        """Nothing is ever under way."""


class Asking:
    """What one request asks, one question after the other, and what it has been told."""

    def __init__(self, reader: HostReader) -> None:
        self.reader = reader
        self._told: list[tuple[Question, Pending]] = []
        self._position = 0

    def get(self, question: Question) -> Look:
        """Return the answer to a question. Raises OSError, and WouldWait where it is not there yet."""
        at = self._position
        self._position = at + 1
        if at < len(self._told) and question.is_same(self._told[at][0]):
            return self._told[at][1].result()
        del self._told[at:]
        pending = self.reader.ask(question)
        if pending.is_over:
            self._position = at
            return pending.result()
        self._told.append((question, pending))
        raise WouldWait(pending)

    def put_aside(self) -> list[tuple[Question, Pending]]:
        """Return what the request has been told, which waits or has ended: the next one begins with nothing."""
        told, self._told, self._position = self._told, [], 0
        return told

    def take_up(self, told: list[tuple[Question, Pending]]) -> None:
        """Begin a request again that has waited."""
        self._told, self._position = told, 0
