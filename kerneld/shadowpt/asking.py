"""Questions about real processes, whose answers may take long: how a request waits for an answer.

A request calls `Asking.get` as if the answer were there. If it is not, the request begins again from its start when the
answer has come, and finds it then. So every check of the request runs again, and the request must not change anything
before it asks. Linux does the same with a system call that a signal interrupts (-ERESTARTSYS). It keeps the code of the
five calls simple.

Owns the answers that the current request has received. A `HostReader` finds the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kerneld.mm.space.wait import Wait
from kerneld.shadowpt.host_look import Look, Question, look


class Pending(Wait):
    """The future answer to one question."""

    __slots__ = ("_error", "_found", "on_over")

    def __init__(self) -> None:
        super().__init__()
        self._found: Look | None = None
        self._error: OSError | None = None
        self.on_over: Callable[[], None] | None = None
        """Called when the answer has come or failed."""

    def finish(self, found: Look | None, error: OSError | None = None) -> None:
        """Set the answer, or the error if there is none."""
        self._found, self._error = found, error
        on_over, self.on_over = self.on_over, None
        self.is_over = True
        if on_over is not None:
            on_over()
        self.end()

    def result(self) -> Look:
        """Return the answer, which must have come. Raises the OSError of the reader, or ETIMEDOUT."""
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
    """A reader of real processes."""

    def ask(self, question: Question) -> Pending:
        """Ask; its descriptor may be closed on return."""

    def give_up(self, pending: Pending) -> None:
        """Note that no request waits for this answer any more."""


class DirectReader:
    """A reader that reads at once and may block, for a machine without a loop."""

    def ask(self, question: Question) -> Pending:
        """Ask. The answer is there on return."""
        pending = Pending()
        try:
            pending.finish(look(question))
        except OSError as error:
            pending.finish(None, error)
        return pending

    def give_up(self, pending: Pending) -> None:
        """Do nothing: every question has its answer at once."""


class Asking:
    """The questions of one request, one after the other, and their answers."""

    def __init__(self, reader: HostReader) -> None:
        self.reader = reader
        self._told: list[tuple[Question, Pending]] = []
        self._position = 0

    def get(self, question: Question) -> Look:
        """Return the answer to a question. Raises OSError, and WouldWait if the answer has not come yet."""
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
        """Return the questions and answers of the current request, and forget them for the next request."""
        told, self._told, self._position = self._told, [], 0
        return told

    def take_up(self, told: list[tuple[Question, Pending]]) -> None:
        """Restore the answers of a request that begins again after a wait."""
        self._told, self._position = told, 0
